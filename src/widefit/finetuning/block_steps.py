"""Damped Gauss-Newton steps on the blocks behind kept states, an epoch of batches at a time."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.finetuning.aim import Aim
from widefit.finetuning.batches import Batch
from widefit.finetuning.delta import LowRankDelta
from widefit.finetuning.judgement import Judgement
from widefit.finetuning.kept_states import KeptStates
from widefit.finetuning.layer_delta import LayerDelta, WholeLayer
from widefit.finetuning.projected_layers import LayerCall, ProjectedLayer, differentiated
from widefit.finetuning.stage_run import Progress
from widefit.losses.envelopes import CrossEntropy
from widefit.records import FileError, read
from widefit.rules import StopReason
from widefit.training.history import History, StepInfo
from widefit.training.loop import State
from widefit.training.phases import Phases
from widefit.training.saved import check_tensors

# Factor of the watched loss up to which an epoch counts as one that gained.
_GAIN = 0.98
# An epoch after which the loss that is watched stands this part above the best counts as two that did not gain.
_WORSE = 0.05
# An epoch that leaves more than this times the best is taken back.
_FAR = 1.5
# Factor of λ after that.
_RISE = 10.0
_MOST_RISES = 6
# Part of the spread of the held-out losses that a lower rank may move them by.
_MOVED = 0.05
# Factors of the readout that held-out rows choose from; none comes first, and stays where nothing is better.
_SCALES = (1.0, *(2.0 ** (quarters / 4) for quarters in range(-8, 5) if quarters))


@dataclass(frozen=True)
class Rows:
    """Batches, and the states that they have in front of the cut.

    Attributes
    ----------
    batches
        As the model takes them.
    states
        Kept for each of them.
    """

    batches: Sequence[Batch]
    states: KeptStates


@dataclass(frozen=True)
class _Record:
    """The document of a run."""

    finetuning: str
    progress: Progress
    rises: int
    kept: int
    history: History


class BlockSteps:
    """Epochs of Gauss-Newton steps; the stepper of `widefit.finetune` for models with repeated blocks.

    A step takes a batch: the outputs' directions, one backward pass for each, rows J of the layers, and
    M ← M − Jᵀ (J Jᵀ + λ I)⁻¹ r in the space of the samples. The mean of the points in the second half of an epoch is
    what is judged and kept: it fits the rows of single batches less (Polyak and Juditsky 1992). The last one is kept
    that gets no more held-out rows wrong than the one of the lowest loss, but for a standard error: of few rows the
    lowest loss is a matter of luck, and more rows become right while it rises. (Breiman et al. 1984 take the simplest
    model within that error; that it serves the longest training is this project's.) An epoch has gained where losses or
    wrong answers of held-out rows are lower than at the lowest loss by more than chance. Where the loss is a
    cross-entropy its readout is scaled to the logits that held-out rows confirm (Guo et al. 2017).

    Parameters
    ----------
    model
        As it was given.
    work
        Its copy in float32 or float64, in evaluation mode and without gradients.
    layers
        What is trained, the readout last where there is one.
    readout
        Name of the readout, which is kept whole.
    aim
        The loss.
    training, held
        Rows to learn from and to watch; None: the training loss is watched.
    start
        Losses before any step, on training and on held-out rows.
    damping
        λ as a part of the mean of diag H.
    patience
        Epochs in a row that have not gained and end the run.
    seed
        Orders the batches.
    fingerprint
        Of everything that a resumed run must share with the one before it.
    """

    def __init__(
        self,
        model: nn.Module,
        work: nn.Module,
        layers: Sequence[ProjectedLayer],
        readout: str | None,
        aim: Aim,
        training: Rows,
        held: Rows | None,
        start: tuple[float, float | None],
        damping: float,
        patience: int,
        seed: int,
        fingerprint: str,
    ):
        self.phases = Phases()
        self._model = model
        self._work = work
        self._layers = list(layers)
        self._readout = readout
        self._aim = aim
        self._training = training
        self._held = held
        self._start = start
        self._patience = patience
        self._fingerprint = fingerprint
        self._generator = torch.Generator().manual_seed(seed)
        self._step = 0
        self._rises = 0
        first = self._layers[0].given
        self._point = first.new_zeros(sum(layer.size for layer in layers))
        self._best = self._point
        self._kept = 0
        self._lowest = self._point
        self._lowest_judgement: Judgement | None = None
        self._rows = first.new_empty(0, len(self._point))
        self._loss_at_best = start[0]
        watched = start[0] if start[1] is None else start[1]
        self._kept_loss = watched
        self._progress = Progress(damping, 0, watched)

    def begin(self) -> StepInfo:
        """Return the losses before any step."""
        return StepInfo(0, *self._start)

    def step(self) -> tuple[StepInfo, StopReason | None]:
        """Take a step on every batch; the loss is the mean over the batches, each before its step."""
        self._step += 1
        number, damping = self._step, self._progress.damping
        with self.phases("pass"):
            loss, average = self._epoch(damping)
            judgement, average = self._judged(average)
            self._put(self._point)
        metric = None if judgement is None else judgement.loss
        watched = loss if metric is None else metric
        info = StepInfo(number, loss, metric, damping=damping, solver="cholesky")
        best = self._progress.best_loss
        if not (math.isfinite(watched) and math.isfinite(loss) and watched <= _FAR * best):
            return self._taken_back(info)
        lowest = self._judgement_of_lowest()
        far = number > 1 and watched > (1 + _WORSE) * best
        gained = watched < _GAIN * best
        if judgement is not None and lowest is not None:
            gained = gained and judgement.is_surely_better(lowest)
        if watched < best or (judgement is not None and lowest is not None and judgement.is_close(lowest)):
            self._best, self._kept, self._kept_loss = average, number, watched
            self._loss_at_best = loss
        if watched < best:
            self._lowest, self._lowest_judgement = average, judgement
            self._progress = replace(self._progress, best_loss=watched)
        waited = 0 if gained else self._progress.waited + (2 if far else 1)
        self._progress = replace(self._progress, waited=waited)
        return info, StopReason.CONVERGED if waited >= self._patience else None

    def state(self) -> State:
        """Return the present and the best point, and how the run stands."""
        points = {"point": self._point, "best": self._best, "lowest": self._lowest}
        document = {
            "finetuning": self._fingerprint,
            "progress": asdict(self._progress),
            "rises": self._rises,
            "kept": self._kept,
        }
        return points | {"generator": self._generator.get_state()}, document

    def restore(self, state: State) -> StopReason | None:
        """Go on from a state.

        Raises
        ------
        FileError
            The state is not one of such a fine-tuning, or was altered.
        ValueError
            It belongs to another model, other data or other settings.
        """
        tensors, document = state
        if document.get("finetuning", self._fingerprint) != self._fingerprint:
            raise ValueError(
                "resume: the checkpoint belongs to another model, other data or other settings; resume with those it "
                "was made with"
            )
        record = read(_Record, document, "the checkpoint")
        check_tensors(tensors, self.state()[0])
        for name in ("point", "best", "lowest"):
            if not bool(torch.isfinite(tensors[name]).all()):
                raise FileError(f"{name!r} of the checkpoint is not finite")
        if not record.history.steps or record.history[-1].step < 0:
            raise FileError("the checkpoint has no steps")
        try:
            self._generator.set_state(tensors["generator"])
        except RuntimeError as error:
            raise FileError("'generator' of the checkpoint is no state of a random generator") from error
        kept = next((info for info in record.history if info.step == record.kept), None)
        if kept is None:
            raise FileError(f"the checkpoint keeps the point of step {record.kept}, which it has not taken")
        device = self._point.device
        self._point, self._best, self._lowest = (tensors[name].to(device) for name in ("point", "best", "lowest"))
        self._kept, self._loss_at_best = record.kept, kept.loss
        self._kept_loss = kept.loss if kept.metric is None else kept.metric
        self._lowest_judgement = None
        self._progress = record.progress
        self._rises = record.rises
        self._step = record.history[-1].step
        self._put(self._point)
        return None

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """Yield a copy of the module with the best weights so far."""
        yield self.delta().merged(self._model)

    def finish(self) -> None:
        """Leave the working copy with the best weights."""
        self._put(self._best)

    def delta(self) -> LowRankDelta:
        """Return the best weights so far, minus those that were given; nothing where no epoch was better."""
        if not bool(self._best.any()):
            return LowRankDelta({})
        return self._delta_of({layer.name: change for layer, change in self._parts(self._best)})

    def compressed(self, ranks: Sequence[int], loss_factor: float) -> tuple[LowRankDelta, str]:
        """Return the change cut to the lowest rank that leaves held-out losses where they are, almost.

        Their mean rises by no more than a factor, and that of few rows tells little: each one moves by a small part of
        what they differ by, in the mean square. Found by halving: a lower rank is taken to cost more.
        """
        whole = self.delta()
        if not whole.layers:
            return (
                whole,
                "the readout alone was changed" if whole.whole else "no epoch was better than the given weights",
            )
        if self._held is None:
            return whole, "no held-out rows to check a lower one"
        uncut = self._held_losses_of(whole)
        reach = _MOVED * float(uncut.std(correction=0))
        found = whole, "a lower one would raise or move held-out losses"
        left = sorted(ranks)
        while left:
            rank = left[len(left) // 2 - (len(left) % 2 == 0)]
            cut = found[0].truncated(rank)
            losses = self._held_losses_of(cut)
            moved = float((losses - uncut).square().mean().sqrt())
            if float(losses.mean()) <= loss_factor * float(uncut.mean()) and moved <= reach:
                after, before = float(losses.mean()), float(uncut.mean())
                said = f"cut to rank {rank}, the held-out loss is {after:.4g}, {before:.4g} uncut"
                found = cut, said
                left = [lower for lower in left if lower < rank]
            else:
                left = [higher for higher in left if higher > rank]
        return found

    def _held_losses_of(self, delta: LowRankDelta) -> Float[Tensor, " r"]:
        """Losses of everything held out at the best point with the change of layers replaced."""
        self._put(self._best)
        with torch.no_grad():
            for layer in self._layers:
                if layer.name in delta.layers:
                    layer.module.weight.copy_(layer.given + delta.layers[layer.name].dense())
        return self._held_values((1.0,))[0][0]

    def _delta_of(self, changes: dict[str, Tensor]) -> LowRankDelta:
        layers: dict[str, LayerDelta] = {}
        whole: dict[str, WholeLayer] = {}
        for layer in self._layers:
            delta = layer.delta(changes[layer.name])
            if layer.name != self._readout:
                layers[layer.name] = delta
                continue
            bias = None if layer.bias is None or delta.bias is None else layer.bias + delta.bias
            whole[layer.name] = WholeLayer(layer.given + delta.dense(), bias)
        return LowRankDelta(layers, whole)

    def _epoch(self, damping: float) -> tuple[float, Float[Tensor, " m"]]:
        """Take the steps of an epoch; its loss, and the mean of the points in its second half."""
        total, counted = 0.0, 0
        order = torch.randperm(len(self._training.batches), generator=self._generator).tolist()
        average, averaged = torch.zeros_like(self._point), 0
        for place, number in enumerate(order):
            batch = self._training.batches[number]
            with self._training.states.behind(number):
                outputs, directions, calls = differentiated(self._work, self._modules, batch, self._aim)
            value, count = self._aim.value(outputs, batch.targets)
            total, counted = total + value, counted + count
            residual = directions.residual.reshape(-1)
            rows = self._rows_of(calls, len(residual))
            self._point = self._point - rows.T @ damped_solution(rows, residual, damping)
            self._put(self._point)
            if 2 * place + 1 >= len(order):
                averaged += 1
                average += (self._point - average) / averaged
        return total / max(counted, 1), average

    def _rows_of(self, calls: dict[str, LayerCall], count: int) -> Float[Tensor, "r m"]:
        """Rows of J of all layers; they are written where those of the step before stood."""
        if count > len(self._rows):
            self._rows = self._point.new_empty(count, len(self._point))
        rows = self._rows[:count]
        for layer, own in zip(self._layers, rows.split([layer.size for layer in self._layers], dim=1), strict=True):
            layer.rows(calls[layer.name], own)
        return rows

    def _judgement_of_lowest(self) -> Judgement | None:
        """Answers at the lowest loss; None before an epoch has lowered it, and without held-out rows."""
        if self._held is None or not self._kept:
            return None
        if self._lowest_judgement is None:  # the run goes on from a checkpoint
            self._put(self._lowest)
            values, marks = self._held_values((1.0,))
            self._lowest_judgement = Judgement(values[0], marks)
            self._put(self._point)
        return self._lowest_judgement

    def _judged(self, point: Float[Tensor, " m"]) -> tuple[Judgement | None, Float[Tensor, " m"]]:
        """Judge a point, its readout scaled to where the held-out loss is least, and return the point scaled so.

        A longer training makes logits longer, which raises a cross-entropy while more rows are right.
        """
        self._put(point)
        if self._held is None:
            return None, point
        free = any(layer.name == self._readout and layer.scale > 0 for layer in self._layers)
        scales = _SCALES if free and isinstance(self._aim.loss, CrossEntropy) else (1.0,)
        values, marks = self._held_values(scales)
        losses = values.mean(1).tolist() if values.shape[1] else [0.0] * len(scales)
        best = min(range(len(scales)), key=lambda number: losses[number])
        return Judgement(values[best], marks), self._rescaled(point, scales[best])

    def _rescaled(self, point: Float[Tensor, " m"], factor: float) -> Float[Tensor, " m"]:
        """The point with the readout's weights, and so the outputs, times a factor."""
        if factor == 1.0:
            return point
        parts = [change.clone() for _, change in self._parts(point)]
        for layer, change in zip(self._layers, parts, strict=True):
            if layer.name == self._readout:
                whole = [layer.given.reshape(-1), *([] if layer.bias is None else [layer.bias])]
                change.mul_(factor).add_(torch.cat(whole), alpha=(factor - 1) / layer.scale)
        return torch.cat(parts)

    def _held_values(self, scales: Sequence[float]) -> tuple[Float[Tensor, "s r"], Float[Tensor, " r"]]:
        """Losses of everything held out, of the outputs times some factors, and their marks."""
        assert self._held is not None
        found, marks = [], []
        for number, batch in enumerate(self._held.batches):
            with torch.no_grad(), self._held.states.behind(number):
                outputs = batch.call(self._work)
            found.append(torch.stack([self._aim.values(scale * outputs, batch.targets) for scale in scales]))
            marks.append(self._aim.marks(outputs, batch.targets))
        return torch.cat(found, dim=1), torch.cat(marks)

    def _taken_back(self, info: StepInfo) -> tuple[StepInfo, StopReason | None]:
        """Go back to the best point with more damping."""
        self._rises += 1
        self._point = self._best.clone()
        self._put(self._point)
        self._progress = replace(self._progress, damping=self._progress.damping * _RISE)
        metric = None if info.metric is None else self._kept_loss
        info = replace(info, loss=self._loss_at_best, metric=metric, accepted=False)
        return info, StopReason.STALLED if self._rises >= _MOST_RISES else None

    @property
    def _modules(self) -> dict[str, nn.Linear]:
        return {layer.name: layer.module for layer in self._layers}

    def _parts(self, point: Float[Tensor, " m"]) -> list[tuple[ProjectedLayer, Tensor]]:
        return list(zip(self._layers, point.split([layer.size for layer in self._layers]), strict=True))

    def _put(self, point: Float[Tensor, " m"]) -> None:
        for layer, change in self._parts(point):
            layer.put(change)


def damped_solution(rows: Float[Tensor, "r m"], residual: Float[Tensor, " r"], damping: float) -> Float[Tensor, " r"]:
    """Return g of (J Jᵀ + λ I) g = r with λ as a part of the mean of the diagonal, solved in float64."""
    gram = (rows @ rows.T).double()
    mean = float(gram.diagonal().mean())
    if not (mean > 0 and math.isfinite(mean)):
        return torch.full_like(residual, math.nan) if not math.isfinite(mean) else torch.zeros_like(residual)
    gram.diagonal().add_(damping * mean)
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info):
        return torch.full_like(residual, math.nan)
    return torch.cholesky_solve(residual.double()[:, None], factor)[:, 0].to(residual)
