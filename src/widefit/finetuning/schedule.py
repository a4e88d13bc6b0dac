"""Layers that are trained together, in which order, and with how much damping to begin with."""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import nn

from widefit.finetuning.checks import Data
from widefit.finetuning.choice import LOOKED_AT, left_out_error
from widefit.finetuning.delta import LowRankDelta
from widefit.finetuning.rows import Rows
from widefit.finetuning.stage import Point, Products, Stage, parameters_of
from widefit.losses.base import OutputLoss
from widefit.plan.base import Choice

# Rows up to which matrices of all pairs of them are held.
_PAIRED = 8000
# λ to begin with, as a part of the mean of diag H. What a readout does to the outputs is linear; other layers are
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


@dataclass(frozen=True)
class Settings:
    """Settings that the stages follow from, beside the model and the data.

    Attributes
    ----------
    names
        The layers to adapt.
    readout
        The layer that makes the outputs; None where there is none.
    damping
        λ to begin with, as a part of the mean of diag H; None: 0.01 for a readout, 0.1 for other layers.
    limit
        Most steps.
    one_by_one
        Whether layers may be trained one by one, beginning with the one that promises most.
    batches
        Whether stages beyond the readout work in batches of rows.
    """

    names: tuple[str, ...]
    readout: str | None
    damping: float | None
    limit: int
    one_by_one: bool
    batches: bool


class Schedule:
    """The stages of a fine-tuning.

    Parameters
    ----------
    model
        In evaluation mode, without gradients.
    data
        Training and held-out rows.
    surrogate
        The loss that steps minimize.
    settings
        See there.
    products
        How products with the inputs of layers are computed.

    Attributes
    ----------
    choices
        Decisions so far, and why.
    """

    def __init__(self, model: nn.Module, data: Data, surrogate: OutputLoss, settings: Settings, products: Products):
        self.choices: list[Choice] = []
        self.data = data
        self.settings = settings
        self._model = model
        self._surrogate = surrogate
        self._products = products

    def tasks(self, delta: Callable[[], LowRankDelta]) -> Generator[Task, Point, None]:
        """Yield the stages in order; the best point of each is sent back before the next is made.

        Parameters
        ----------
        delta
            Returns what the stages so far have added to the given weights.
        """
        self.choices.clear()
        names, readout = self.settings.names, self.settings.readout
        if readout is None or readout not in names or len(names) == 1:
            whole = self._stage(names, self.data)
            self._explain_prefix(whole)
            yield self._task(whole, self.settings.limit)
            return
        if self.settings.one_by_one and len(names) == 2:
            first = self._stage((names[0],), self.data)
            last = first.following((readout,), first.start())
            errors = self._left_out_errors(first, last)
            if errors is not None:
                yield from self._best_first(first, last, errors)
                return
        yield from self._readout_first(readout, delta)

    def _best_first(self, first: Stage, last: Stage, errors: tuple[float, float]) -> Generator[Task, Point, None]:
        """The readout alone, or the layer before it and then the readout."""
        hidden, readout = first.names[0], last.names[0]
        why = (
            f"one step on {hidden} would leave {errors[0]:.1%} of the residual on rows left out, "
            f"one on {readout} {errors[1]:.1%}"
        )
        alone = errors[1] <= errors[0]
        self.choices.append(Choice("layers", f"{readout} alone" if alone else f"{hidden}, then {readout}", why))
        self._explain_prefix(first)
        if not alone:
            point = yield self._task(first, self._half)
            last = first.following((readout,), point)
        yield self._task(last, self.settings.limit)

    def _readout_first(self, readout: str, delta: Callable[[], LowRankDelta]) -> Generator[Task, Point, None]:
        """The readout, a convex problem, and then all layers together."""
        names = self.settings.names
        whole = self._stage(names, self.data)
        self._explain_prefix(whole)
        yield self._task(whole.following((readout,), whole.start()), self._half)
        adapted = parameters_of(delta().merged(self._model), names)
        yield self._task(whole.starting_at(adapted), self.settings.limit)

    def _left_out_errors(self, first: Stage, last: Stage) -> tuple[float, float] | None:
        """Leave-one-out error of a step on either stage; None where their H is not at hand."""
        data = self.data
        if not first.boundary:  # too many rows for that, but a few tell
            data = self.data.spread(LOOKED_AT)
            first = self._stage(first.names, data, with_boundary=True)
            last = first.following(last.names, first.start())
        if any(len(stage.boundary) != 1 or stage.weights for stage in (first, last)):
            return None
        return (
            left_out_error(first, data.targets, self._surrogate, self._damping_of(first.names)),
            left_out_error(last, data.targets, self._surrogate, self._damping_of(last.names)),
        )

    @property
    def _half(self) -> int:
        """Most steps of the first of two stages."""
        return -(-self.settings.limit // 2)

    def _task(self, stage: Stage, limit: int) -> Task:
        return Task(stage, limit, self._damping_of(stage.names))

    def _stage(self, names: tuple[str, ...], data: Data, with_boundary: bool | None = None) -> Stage:
        readout = self.settings.readout
        if with_boundary is None:
            with_boundary = names == (readout,) or not (self.settings.batches or len(data.inputs) > _PAIRED)
        inputs = Rows((data.inputs,), None if data.held_inputs is None else (data.held_inputs,))
        owners = names if readout is None or readout in names else (*names, readout)
        given = parameters_of(self._model, owners)
        return Stage.of(self._model, names, inputs, given, self._products, with_boundary=with_boundary)

    def _damping_of(self, names: tuple[str, ...]) -> float:
        if self.settings.damping is not None:
            return self.settings.damping
        return _READOUT_DAMPING if names == (self.settings.readout,) else _DAMPING

    def _explain_prefix(self, stage: Stage) -> None:
        if stage.suffix is self._model:
            choice = Choice("frozen start", "none, the module runs whole in every step", "torch.fx cannot follow it")
        else:
            before = f"runs once before {', '.join(stage.names)}"
            choice = Choice("frozen start", before, "no adapted weight reaches it")
        self.choices.append(choice)
