"""A loop around an optimizer that steps on given data: goal, progress, Ctrl-C, as in `widefit.train`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from widefit.training.callback import Callback
from widefit.training.history import History, StepInfo
from widefit.training.interruption import interrupt_flag

State = tuple[dict[str, Tensor], dict[str, Any]]

# So many rejected steps in a row on the same data, and rounding has won.
_PATIENCE = 3


@runtime_checkable
class Stepper(Protocol):
    """What is looped around."""

    history: History

    @property
    def stationary(self) -> bool: ...

    def step(self, *data: Any) -> StepInfo: ...

    def evaluate(self, *data: Any) -> float: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Minimization:
    """One run of `GaussNewton.minimize`, which documents the arguments; what callbacks see.

    Attributes
    ----------
    history
        Of the optimizer, with all steps it has taken.
    max_iter
        The step at which this run ends at the latest, counted like `StepInfo.step`.
    tol
        The goal.
    """

    def __init__(
        self,
        optimizer: Stepper,
        model: torch.nn.Module,
        data: tuple[Any, ...],
        max_iter: int,
        tol: float,
        metric: Callable[[torch.nn.Module], float] | None,
        callbacks: Sequence[Callback],
    ):
        if max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, got {max_iter}")
        if not tol >= 0:
            raise ValueError(f"tol must be at least 0, got {tol}")
        self._optimizer, self._model = optimizer, model
        self._fixed = not (len(data) == 1 and callable(data[0]))
        self._draw = (lambda: data) if self._fixed else cast(Callable[[], tuple[Any, ...]], data[0])
        self._waiting: tuple[Any, ...] | None = self._draw()
        self._metric, self._callbacks = metric, tuple(callbacks)
        self.history = optimizer.history
        self._began = self.history[-1].step if len(self.history) else 0
        self.max_iter, self.tol = self._began + max_iter, float(tol)

    def state(self) -> State:
        """Model and optimizer as `state_dict` gives them: tensors by their path, and all plain values."""
        tensors: dict[str, Tensor] = {}
        whole = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict(), "began": self._began}
        return tensors, _without_tensors(whole, "", tensors)

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        tensors, document = state
        if not {"model", "optimizer", "began"} <= document.keys():
            raise ValueError("resume: this is not the state of a GaussNewton.minimize; widefit.train resumes its own")
        whole = _with_tensors(document, "", tensors)
        optimizer = whole["optimizer"]
        # A document has words for keys, torch numbers its parameters.
        optimizer["state"] = {int(number): own for number, own in optimizer["state"].items()}
        self._model.load_state_dict(whole["model"])
        self._optimizer.load_state_dict(optimizer)
        self.history = self._optimizer.history
        self.max_iter += whole["began"] - self._began
        self._began = whole["began"]

    def run(self, resume: State | None = None) -> History:
        """Step until the goal, max_iter, a callback or an interrupt ends it."""
        if resume is not None:
            self.restore(resume)
        if not len(self.history):
            self.history.steps.append(StepInfo(step=0, loss=self._optimizer.evaluate(*(self._waiting or ()))))
        for callback in self._callbacks:
            callback.start(self)
        reason = ""
        with interrupt_flag() as interrupted:
            while not reason:
                reason = self._ended(self._step(), interrupted.is_set())
        self.history.stop_reason = reason
        for callback in self._callbacks:
            callback.finish(self, self.history)
        return self.history

    def _step(self) -> bool:
        """One step; whether a callback ends the run."""
        data, self._waiting = self._waiting, None
        self._optimizer.step(*(self._draw() if data is None else data))
        if self._metric is not None:
            self.history.steps[-1] = replace(self.history[-1], metric=float(self._metric(self._model)))
        asked = [bool(callback.step(self, self.history[-1])) for callback in self._callbacks]
        return any(asked)

    def _ended(self, asked: bool, interrupted: bool) -> str:
        """Why the run is over; empty while it is not."""
        last = self.history[-1]
        if last.loss <= self.tol:
            return "tol"
        if asked or interrupted:
            return "callback" if asked else "interrupted"
        stuck = self._optimizer.stationary or not any(info.accepted for info in self.history[-_PATIENCE:])
        if self._fixed and stuck:
            return "stalled"
        return "max_iter" if last.step >= self.max_iter else ""


def _without_tensors(value: Any, path: str, found: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        found[path] = value.detach()
        return None
    if isinstance(value, dict):
        return {str(key): _without_tensors(item, f"{path}.{key}".lstrip("."), found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{path}.{place}", found) for place, item in enumerate(value)]
    return value


def _with_tensors(value: Any, path: str, found: dict[str, Tensor]) -> Any:
    """The inverse of `_without_tensors`, but for keys that were no words and for tuples."""
    if path in found:
        return found[path]
    if isinstance(value, dict):
        return {key: _with_tensors(item, f"{path}.{key}".lstrip("."), found) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, f"{path}.{place}", found) for place, item in enumerate(value)]
    return value
