"""The steps of an optimizer on given data, as the loop takes them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from widefit.optim.batch import as_arguments
from widefit.optim.validation import check_minimization
from widefit.rules import StopReason
from widefit.training.callback import Callback
from widefit.training.history import History, StepInfo
from widefit.training.loop import Loop, State
from widefit.training.phases import Phases

# So many rejected steps in a row on the same data, and rounding has won. A factorization answers the same again; an
# iteration is asked for more accuracy.
_PATIENCE, _PATIENCE_OF_ITERATIONS = 1, 3


@runtime_checkable
class Optimizer(Protocol):
    """The optimizer that takes the steps, and keeps their history."""

    history: History

    @property
    def stationary(self) -> bool: ...

    @property
    def status(self) -> str: ...

    def step(self, *data: Any) -> StepInfo: ...

    def evaluate(self, *data: Any) -> float: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class OptimizerSteps:
    """Steps on the same data, or on data drawn anew before each; the stepper of `GaussNewton.minimize`.

    Parameters
    ----------
    optimizer, model
        What steps, and what is stepped.
    data
        What `optimizer.step` takes, or one function that draws it.
    began
        Number of the step from which the run counts.
    """

    def __init__(self, optimizer: Optimizer, model: torch.nn.Module, data: tuple[Any, ...], began: int):
        self.phases = Phases()
        self._optimizer = optimizer
        self._model = model
        self._began = began
        self._fixed = not (len(data) == 1 and callable(data[0]))
        self._data = data
        self._waiting: tuple[Any, ...] | None = self._draw()

    def begin(self) -> StepInfo:
        """The loss before any step."""
        return StepInfo(step=0, loss=self._optimizer.evaluate(*(self._waiting or ())))

    def step(self) -> tuple[StepInfo, StopReason | None]:
        """One step of the optimizer, which adds it to its history."""
        data = self._draw() if self._waiting is None else self._waiting
        self._waiting = None
        info = self._optimizer.step(*data)
        latest = self._optimizer.history[-(_PATIENCE_OF_ITERATIONS if info.solver_iterations else _PATIENCE) :]
        stuck = self._optimizer.stationary or not any(entry.accepted for entry in latest)
        return info, StopReason.STALLED if self._fixed and stuck else None

    def _draw(self) -> tuple[Any, ...]:
        """The data of a step."""
        return self._data if self._fixed else as_arguments(self._data[0](), "what the function draws")

    def record(self, info: StepInfo) -> None:
        """Add an entry, or the metric to the entry that the optimizer has added."""
        steps = self._optimizer.history.steps
        if steps and steps[-1].step == info.step:
            steps[-1] = replace(steps[-1], metric=info.metric)
        else:
            steps.append(info)

    def state(self) -> State:
        """Model and optimizer as `state_dict` gives them: tensors by their path, and all plain values."""
        tensors: dict[str, Tensor] = {}
        whole = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict(), "began": self._began}
        return tensors, _without_tensors(whole, "", tensors)

    def restore(self, state: State) -> StopReason | None:
        """Go on from what `state` gave."""
        tensors, document = state
        check_minimization(tensors, document, self._model, cast(torch.optim.Optimizer, self._optimizer))
        whole = _with_tensors(document, "", tensors)
        optimizer = whole["optimizer"]
        # A document has words for keys, torch numbers its parameters.
        optimizer["state"] = {int(number): own for number, own in optimizer["state"].items()}
        history = self._optimizer.history
        self._model.load_state_dict(whole["model"])
        self._optimizer.load_state_dict(optimizer)
        # The run looks at the history that the optimizer had when it began.
        history.steps[:] = self._optimizer.history.steps
        self._optimizer.history = history
        return None

    @contextmanager
    def network(self) -> Iterator[torch.nn.Module]:
        """The model, which is up to date after every step."""
        yield self._model

    def finish(self) -> None:
        """Nothing is left to do: the model is up to date."""


def minimize(
    optimizer: Optimizer,
    model: torch.nn.Module,
    data: tuple[Any, ...],
    *,
    max_iter: int,
    tol: float,
    metric: Callable[[Any], float] | None,
    callbacks: Sequence[Callback],
    resume: State | None,
    agree: Callable[[bool], bool] | None = None,
) -> History:
    """Step until a goal is reached; `GaussNewton.minimize` and `Loop` document the arguments."""
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    if not tol >= 0:
        raise ValueError(f"tol must be at least 0, got {tol}")
    history = optimizer.history
    began = history[-1].step if len(history) else 0
    if resume is not None:
        if not {"model", "optimizer", "began"} <= resume[1].keys():
            raise ValueError("resume: this is not the state of a GaussNewton.minimize; widefit.train resumes its own")
        began = int(resume[1]["began"])
    steps = OptimizerSteps(optimizer, model, data, began)
    loop = Loop(
        steps,
        max_iter=began + max_iter,
        tol=float(tol),
        metric=metric,
        callbacks=callbacks,
        history=history,
        record=steps.record,
        agree=agree,
    )
    history.advice = ""
    found = loop.run(resume)
    if found.stop_reason == StopReason.STALLED:
        found.advice = optimizer.status
    return found


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
