"""A loop around an optimizer that steps on given data: goal, progress, Ctrl-C, as in `widefit.train`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from widefit.callbacks import Callback, interrupt_flag
from widefit.history import History, StepInfo

# So many rejected steps in a row on the same data, and rounding has won.
_PATIENCE = 3


@runtime_checkable
class Stepper(Protocol):
    """What is looped around."""

    history: History

    def step(self, *data: Any) -> StepInfo: ...

    def evaluate(self, *data: Any) -> float: ...

    def state_dict(self) -> dict[str, Any]: ...


class Minimization:
    """One run of `GaussNewton.minimize`, which documents the arguments; what callbacks see.

    Attributes
    ----------
    history
        Of the optimizer, with all steps it has taken.
    max_iter
        The step at which this run ends, counted like `StepInfo.step`.
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
        taken = self.history[-1].step if len(self.history) else 0
        self.max_iter, self.tol = taken + max_iter, float(tol)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Model and optimizer as `state_dict` gives them: tensors by their path, and all plain values."""
        tensors: dict[str, Tensor] = {}
        whole = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        return tensors, _without_tensors(whole, "", tensors)

    def run(self) -> History:
        """Step until the goal, max_iter, a callback or an interrupt ends it."""
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
        if self._fixed and not any(info.accepted for info in self.history[-_PATIENCE:]):
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
