"""The loop: callbacks, Ctrl-C, goals, metric, resume, and why a run ends. Everything that trains goes through it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import Event
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from widefit.kernels import clock
from widefit.processes import ALONE, Alone
from widefit.rules.stop_reason import StopReason
from widefit.training.callback import Callback
from widefit.training.history import History, StepInfo
from widefit.training.interruption import AbandonedError, abandonable, interrupt_flag
from widefit.training.phases import Phases

State = tuple[dict[str, Tensor], dict[str, Any]]


@runtime_checkable
class Stepper(Protocol):
    """One training as the loop sees it: something that takes steps.

    Attributes
    ----------
    phases
        Clocks of its work.
    """

    phases: Phases

    def begin(self) -> StepInfo:
        """Make ready; the entry of step 0."""
        ...

    def step(self) -> tuple[StepInfo, StopReason | None]:
        """Take a step; its entry without metric and time, and why the run should end, if it should.

        Raises
        ------
        AbandonedError
            The run was asked to end, and everything is as it was before the step.
        """
        ...

    def state(self) -> State:
        """Everything needed to go on from here to the same bits: tensors, and a document of plain values."""
        ...

    def restore(self, state: State) -> StopReason | None:
        """Make ready to go on from what `state` gave, in place of `begin`; why nothing is left to do, if so."""
        ...

    def network(self) -> AbstractContextManager[Any]:
        """Inside, the network as it is now, for a metric."""
        ...

    def finish(self) -> None:
        """Leave the network as the last step has it; called once, also after an error."""
        ...


class Loop:
    """One run. Callbacks see it as their `run`.

    Attributes
    ----------
    history
        The steps so far.
    max_iter, tol
        Goals.
    stepper
        Takes the steps.
    processes
        Those that share the state of the run out: all of them ask for it at once.

    Parameters
    ----------
    stepper
        Takes the steps.
    max_iter
        Largest number of the last step; None: no limit.
    tol
        Loss at which the run ends; None: none.
    metric
        Called with the network after every step.
    callbacks
        Told of every step.
    loss_floor
        Part of the loss that no weights can remove, left out of the comparison with `tol`.
    history
        Where a run goes on that has a history already; None: a new one.
    record
        Adds an entry to the history; None: appends it.
    agree
        Whether a wish to end the run is there on any of the processes that share it; None: `processes` are asked.
    processes
        As above.
    """

    def __init__(
        self,
        stepper: Stepper,
        *,
        max_iter: int | None = None,
        tol: float | None = None,
        metric: Callable[[Any], float] | None = None,
        callbacks: Sequence[Callback] = (),
        loss_floor: float = 0.0,
        history: History | None = None,
        record: Callable[[StepInfo], None] | None = None,
        agree: Callable[[bool], bool] | None = None,
        processes: Alone = ALONE,
    ):
        self.max_iter = max_iter
        self.tol = tol
        self.history = History() if history is None else history
        self.history.phases = stepper.phases.seconds
        self.stepper = stepper
        self._metric = metric
        self._callbacks = tuple(callbacks)
        self._loss_floor = loss_floor
        self._record = self.history.steps.append if record is None else record
        self.processes = processes
        self._alone = agree is None and processes.size == 1
        self._agree = processes.any if agree is None else agree
        self._started = 0.0

    def run(self, resume: State | None = None) -> History:
        """Step until a goal, the stepper, a callback or an interrupt ends the run."""
        try:
            with interrupt_flag() as interrupted:
                ended = self._begin(resume)
                asked = [bool(callback.start(self)) for callback in self._callbacks]
                self.history.stop_reason = str(self._steps(ended, any(asked), interrupted))
            for callback in self._callbacks:
                callback.finish(self, self.history)
        finally:
            with self.stepper.phases("update"):
                self.stepper.finish()
        return self.history

    def state(self) -> State:
        """Everything needed to go on from the last step to the same bits."""
        tensors, document = self.stepper.state()
        return tensors, {"history": self.history.to_dict(), **document}

    def _begin(self, resume: State | None) -> StopReason | None:
        """Make ready; why nothing is left to do, if so."""
        before = self.history[-1].seconds if self.history.steps else 0.0
        self._started = clock.now() - before
        if resume is None:
            if not self.history.steps:
                self._add(self.stepper.begin())
            return None
        ended = self.stepper.restore(resume)
        if "history" in resume[1]:
            self._take_up(History.from_dict(resume[1]["history"]))
        reason = self.history.stop_reason
        return StopReason(reason) if reason and StopReason(reason).final else ended

    def _take_up(self, earlier: History) -> None:
        """Go on with the history of an earlier run."""
        seconds = self.history.phases
        for name, spent in earlier.phases.items():
            seconds[name] = seconds.get(name, 0.0) + spent
        self.history.steps[:] = earlier.steps
        self.history.stop_reason = earlier.stop_reason
        self._started -= earlier[-1].seconds

    def _steps(self, ended: StopReason | None, asked: bool, interrupted: Event) -> StopReason:
        reason = self._reason(self.history[-1], ended, self._agree(asked), self._agree(interrupted.is_set()))
        while reason is None:
            try:
                # Several processes give up no step: the others would wait for this one.
                with abandonable(interrupted) if self._alone else nullcontext():
                    info, stop = self.stepper.step()
            except AbandonedError:
                return StopReason.INTERRUPTED
            info = self._add(info)
            answers = [bool(callback.step(self, info)) for callback in self._callbacks]
            reason = self._reason(info, stop, self._agree(any(answers)), self._agree(interrupted.is_set()))
        return reason

    def _reason(self, info: StepInfo, stop: StopReason | None, asked: bool, interrupted: bool) -> StopReason | None:
        """Why the run ends here; of several reasons the first."""
        if self.tol is not None and info.loss - self._loss_floor <= self.tol:
            return StopReason.TOL
        if stop is not None:
            return stop
        if asked:
            return StopReason.CALLBACK
        if interrupted:
            return StopReason.INTERRUPTED
        if self.max_iter is not None and info.step >= self.max_iter:
            return StopReason.MAX_ITER
        return None

    def _add(self, info: StepInfo) -> StepInfo:
        """Complete an entry and add it to the history."""
        if self._metric is not None:
            with self.stepper.phases("metric"), self.stepper.network() as network:
                info = replace(info, metric=float(self._metric(network)))
        info = replace(info, seconds=clock.now() - self._started)
        self._record(info)
        return info
