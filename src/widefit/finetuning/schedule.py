"""Which layers are trained together, in which order, and how carefully."""

from dataclasses import dataclass, replace

from torch import nn

from widefit.finetuning.checks import Data
from widefit.finetuning.choice import LOOKED_AT, left_out_error
from widefit.finetuning.cut import cut
from widefit.finetuning.run import FineTuningRun
from widefit.finetuning.stage import Stage, parameters_of
from widefit.losses.base import OutputLoss
from widefit.plan.base import Choice

Stages = tuple[tuple[str, ...], ...]

# Rows up to which matrices of all pairs of them are held.
_PAIRED = 8000
# λ to begin with, as a part of the mean of diag H. What a read-out does to the outputs is linear; other layers are
# further from it, and a more careful step gets further.
_READOUT_DAMPING = 0.01
_DAMPING = 0.1


@dataclass(frozen=True)
class Schedule:
    """The stages of a fine-tuning.

    Attributes
    ----------
    model
        In evaluation mode, without gradients.
    data
        Training and held-out rows.
    readout
        The layer that makes the outputs; None where there is none.
    merit
        What steps lower.
    damping
        λ to begin with, as a part of the mean of diag H; None: 0.01 for a read-out, 0.1 for other layers.
    limit
        Most steps.
    batches
        Whether stages beyond the read-out work in batches of rows.
    sparse, threads
        Layers whose inputs are read as sparse rows, on so many threads.
    """

    model: nn.Module
    data: Data
    readout: str | None
    merit: OutputLoss
    damping: float | None
    limit: int
    batches: bool
    sparse: frozenset[str]
    threads: int

    def train(self, run: FineTuningRun, names: tuple[str, ...], best_first: bool) -> tuple[Stages, tuple[Choice, ...]]:
        """Train the layers; the stages there were, and what was chosen.

        Parameters
        ----------
        run
            What trains a stage.
        names
            The layers to adapt.
        best_first
            Whether they may be trained one by one, beginning with the one that promises most.
        """
        if self.readout is None or self.readout not in names or len(names) == 1:
            whole = self._stage(names)
            run.stage(whole, self.limit, self._damping(names))
            return (names,), (self._frozen(whole),)
        if best_first and len(names) == 2:
            found = self._best_first(run, names[0], self.readout)
            if found is not None:
                return found
        return self._readout_first(run, names, self.readout)

    def _best_first(self, run: FineTuningRun, hidden: str, readout: str) -> tuple[Stages, tuple[Choice, ...]] | None:
        """The read-out alone, or the layer before it and then the read-out; None where their H is not at hand."""
        first = self._stage((hidden,))
        last = first.inside((readout,), first.start(), self.sparse, self.threads)
        judged, data = (first, last), self.data
        if not first.direct:  # too many rows for that, but a few tell
            few = replace(self, data=data.spread(LOOKED_AT), batches=False)
            few_first = few._stage((hidden,))
            judged, data = (few_first, few_first.inside((readout,), few_first.start())), few.data
        if any(len(stage.direct) != 1 or stage.weights for stage in judged):
            return None
        errors = [left_out_error(stage, data.targets, self.merit, self._damping(stage.names)) for stage in judged]
        why = (
            f"one step on {hidden} would leave {errors[0]:.1%} of the residual on rows left out, "
            f"one on {readout} {errors[1]:.1%}"
        )
        if errors[1] <= errors[0]:
            run.stage(last, self.limit, self._damping((readout,)))
            return ((readout,),), (Choice("layers", f"{readout} alone", why), self._frozen(first))
        point = run.stage(first, -(-self.limit // 2), self._damping((hidden,)))
        if not run.ended:
            last = first.inside((readout,), point, self.sparse, self.threads)
            run.stage(last, self.limit, self._damping((readout,)))
        return ((hidden,), (readout,)), (Choice("layers", f"{hidden}, then {readout}", why), self._frozen(first))

    def _readout_first(
        self, run: FineTuningRun, names: tuple[str, ...], readout: str
    ) -> tuple[Stages, tuple[Choice, ...]]:
        """The read-out, a convex problem, and then all layers together."""
        whole = self._stage(names)
        warm = whole.inside((readout,), whole.start(), self.sparse, self.threads)
        run.stage(warm, -(-self.limit // 2), self._damping((readout,)))
        if not run.ended:
            run.stage(
                whole.changed(parameters_of(run.delta.merged(self.model), names)), self.limit, self._damping(names)
            )
        return ((readout,), names), (self._frozen(whole),)

    def _stage(self, names: tuple[str, ...]) -> Stage:
        direct = names == (self.readout,) or not (self.batches or len(self.data.inputs) > _PAIRED)
        data = self.data
        parts = cut(self.model, names, (data.inputs[:2],), direct=direct)
        held = None if data.held_inputs is None else (data.held_inputs,)
        owners = names if self.readout is None or self.readout in names else (*names, self.readout)
        given = parameters_of(self.model, owners)
        return Stage.of(self.model, names, parts, (data.inputs,), held, given, self.sparse, self.threads)

    def _damping(self, names: tuple[str, ...]) -> float:
        if self.damping is not None:
            return self.damping
        return _READOUT_DAMPING if names == (self.readout,) else _DAMPING

    def _frozen(self, stage: Stage) -> Choice:
        if stage.rest is self.model:
            return Choice("frozen start", "the whole module runs in every step", "torch.fx cannot follow it")
        before = ", ".join(stage.names)
        return Choice("frozen start", f"what comes before {before} runs once", "torch.fx can follow the module")
