"""Which layers are trained together, in which order, and how carefully."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from torch import nn

from widefit.finetuning.checks import Data
from widefit.finetuning.choice import LOOKED_AT, left_out_error
from widefit.finetuning.cut import cut
from widefit.finetuning.delta import LowRankDelta
from widefit.finetuning.stage import Point, Stage, parameters_of
from widefit.losses.base import OutputLoss
from widefit.plan.base import Choice

# Rows up to which matrices of all pairs of them are held.
_PAIRED = 8000
# λ to begin with, as a part of the mean of diag H. What a read-out does to the outputs is linear; other layers are
# further from it, and a more careful step gets further.
_READOUT_DAMPING = 0.01
_DAMPING = 0.1


@dataclass(frozen=True)
class Task:
    """A stage to be trained: to its end, or to a number of steps since the beginning of the fine-tuning.

    Attributes
    ----------
    stage
        The layers, and where they begin.
    limit
        Number of its last step.
    damping
        λ to begin with, as a part of the mean of diag H.
    """

    stage: Stage
    limit: int
    damping: float


class Schedule:
    """The stages of a fine-tuning.

    Parameters
    ----------
    model
        In evaluation mode, without gradients.
    data
        Training and held-out rows.
    names
        The layers to adapt.
    readout
        The layer that makes the outputs; None where there is none.
    surrogate
        The loss that steps minimize.
    damping
        λ to begin with, as a part of the mean of diag H; None: 0.01 for a readout, 0.1 for other layers.
    limit
        Most steps.
    one_by_one
        Whether layers may be trained one by one, beginning with the one that promises most.
    batches
        Whether stages beyond the readout work in batches of rows.
    sparse, threads
        Layers whose inputs are read as sparse rows, on so many threads.

    Attributes
    ----------
    choices
        What was chosen so far, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        names: tuple[str, ...],
        readout: str | None,
        surrogate: OutputLoss,
        *,
        damping: float | None,
        limit: int,
        one_by_one: bool,
        batches: bool,
        sparse: frozenset[str],
        threads: int,
    ):
        self.choices: list[Choice] = []
        self.data = data
        self._model = model
        self._names = names
        self._readout = readout
        self._surrogate = surrogate
        self._damping = damping
        self._limit = limit
        self._one_by_one = one_by_one
        self._batches = batches
        self._sparse = sparse
        self._threads = threads

    def settings(self) -> tuple[Any, ...]:
        """What the stages follow from, beside the model and the data."""
        return self._names, self._readout, self._damping, self._limit, self._one_by_one, self._batches

    def tasks(self, delta: Callable[[], LowRankDelta]) -> Generator[Task, Point, None]:
        """Yield the stages in order; the best point of each is sent back before the next is made.

        Parameters
        ----------
        delta
            What the stages so far have added to the given weights.
        """
        self.choices.clear()
        names, readout = self._names, self._readout
        if readout is None or readout not in names or len(names) == 1:
            whole = self._stage(names, self.data)
            self._say_frozen(whole)
            yield self._task(whole, self._limit)
            return
        if self._one_by_one and len(names) == 2:
            first = self._stage((names[0],), self.data)
            last = first.inside((readout,), first.start(), self._sparse, self._threads)
            errors = self._left_out_errors(first, last)
            if errors is not None:
                yield from self._best_first(first, last, errors)
                return
        yield from self._readout_first(delta)

    def _best_first(self, first: Stage, last: Stage, errors: tuple[float, float]) -> Generator[Task, Point, None]:
        """The readout alone, or the layer before it and then the readout."""
        hidden, readout = first.names[0], last.names[0]
        why = (
            f"one step on {hidden} would leave {errors[0]:.1%} of the residual on rows left out, "
            f"one on {readout} {errors[1]:.1%}"
        )
        alone = errors[1] <= errors[0]
        self.choices.append(Choice("layers", f"{readout} alone" if alone else f"{hidden}, then {readout}", why))
        self._say_frozen(first)
        if alone:
            yield self._task(last, self._limit)
            return
        point = yield self._task(first, -(-self._limit // 2))
        yield self._task(first.inside((readout,), point, self._sparse, self._threads), self._limit)

    def _readout_first(self, delta: Callable[[], LowRankDelta]) -> Generator[Task, Point, None]:
        """The readout, a convex problem, and then all layers together."""
        assert self._readout is not None
        whole = self._stage(self._names, self.data)
        self._say_frozen(whole)
        yield self._task(
            whole.inside((self._readout,), whole.start(), self._sparse, self._threads), -(-self._limit // 2)
        )
        adapted = parameters_of(delta().merged(self._model), self._names)
        yield self._task(whole.changed(adapted), self._limit)

    def _left_out_errors(self, first: Stage, last: Stage) -> tuple[float, float] | None:
        """What a step on either stage would leave on rows left out; None where their H is not at hand."""
        data = self.data
        if not first.direct:  # too many rows for that, but a few tell
            data = self.data.spread(LOOKED_AT)
            first = self._stage(first.names, data, direct=True)
            last = first.inside(last.names, first.start())
        if any(len(stage.direct) != 1 or stage.weights for stage in (first, last)):
            return None
        return (
            left_out_error(first, data.targets, self._surrogate, self._damping_of(first.names)),
            left_out_error(last, data.targets, self._surrogate, self._damping_of(last.names)),
        )

    def _task(self, stage: Stage, limit: int) -> Task:
        return Task(stage, limit, self._damping_of(stage.names))

    def _stage(self, names: tuple[str, ...], data: Data, direct: bool | None = None) -> Stage:
        if direct is None:
            direct = names == (self._readout,) or not (self._batches or len(data.inputs) > _PAIRED)
        parts = cut(self._model, names, (data.inputs[:2],), direct=direct)
        held = None if data.held_inputs is None else (data.held_inputs,)
        owners = names if self._readout is None or self._readout in names else (*names, self._readout)
        given = parameters_of(self._model, owners)
        return Stage.of(self._model, names, parts, (data.inputs,), held, given, self._sparse, self._threads)

    def _damping_of(self, names: tuple[str, ...]) -> float:
        if self._damping is not None:
            return self._damping
        return _READOUT_DAMPING if names == (self._readout,) else _DAMPING

    def _say_frozen(self, stage: Stage) -> None:
        behind = ", ".join(stage.names)
        if stage.rest is self._model:
            self.choices.append(Choice("module", "runs whole in every step", "torch.fx cannot follow it"))
        else:
            self.choices.append(Choice("module", "frozen start", f"it runs once before {behind}"))
