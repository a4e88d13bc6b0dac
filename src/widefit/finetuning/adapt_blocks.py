"""Fine-tuning of models with repeated blocks, such as transformers: what is adapted, from where on, and how it ends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from widefit.callbacks import Callback
from widefit.finetuning.aim import Aim
from widefit.finetuning.batches import Batch, read_batches, split_off
from widefit.finetuning.block_choice import Probe, first_block, probed, spread
from widefit.finetuning.block_steps import BlockSteps, Rows
from widefit.finetuning.blocks import Structure
from widefit.finetuning.checks import checked_layers
from widefit.finetuning.checks_of_batches import check_batches
from widefit.finetuning.fingerprint import fingerprint
from widefit.finetuning.head import constant_loss, new_readout
from widefit.finetuning.kept_states import BlockList, KeptStates, find_blocks
from widefit.finetuning.layer_delta import WholeLayer
from widefit.finetuning.linear_calls import LinearCalls, linear_calls
from widefit.finetuning.projected_layers import ProjectedLayer
from widefit.finetuning.record import FineTuning
from widefit.losses.custom import Custom
from widefit.losses.family import output_loss
from widefit.losses.softmax import Softmax
from widefit.plan.base import Choice, Plan, placed_model
from widefit.training.loop import Loop, State

# λ as a part of the mean of diag H, which counts each row's answer to itself: so far above it a step follows what the
# rows of a batch have in common, and rows that were not seen gain with them.
_DAMPING = 4.0
# Columns of the bases of a layer's change, and so the largest rank that it can have: the most whose rows of J take no
# more than the bytes in any step.
_RANKS = (128, 64, 32)
_ROWS_OF_J = 1 << 28
# Parts of that rank that the change is cut to where this costs next to nothing.
_CUTS = (16, 8, 4, 2)
# Factor of the held-out loss that a lower rank may cost.
_COSTS = 1.005
# A given readout whose loss is below this part of that of a constant has been trained for these targets.
_TRAINED = 0.9
# Share of the rows held out, by default: a mean over an epoch is judged, of which the best is not much better than the
# next, and what a fifth of 500 rows teaches is worth a point of accuracy. Of few rows up to the second share, so that
# there are enough.
_HELD = 0.1
_HELD_MOST = 0.2
_HELD_ENOUGH = 50
# The fewest held-out rows that tell anything.
_FEWEST = 5
# Training rows that run through the whole model at the start: means of classes and a loss need no more.
_THROUGH = 512
# Rows on which the structure is looked at.
_LOOKED_AT = 3
FOLLOWING = "next_token"


@dataclass(frozen=True)
class Wishes:
    """Arguments of `widefit.finetune` that this way of it heeds; see there."""

    loss: Any
    layers: str | Sequence[str]
    validation: float | None
    patience: int
    damping: float | None
    max_iter: int
    tol: float
    batch_size: int | None
    seed: int
    callbacks: Sequence[Callback]
    resume: State | None


@dataclass(frozen=True)
class _Data:
    """Training and held-out rows."""

    training: list[Batch]
    held: list[Batch] | None

    @property
    def tensors(self) -> list[Tensor]:
        """Inputs and targets of all batches."""
        return [
            tensor for one in [*self.training, *(self.held or [])] for tensor in (*one.tensors.values(), one.targets)
        ]


def finetune_blocks(
    model: nn.Module, work: nn.Module, X: Any, y: Any, X_val: Any, y_val: Any, wishes: Wishes
) -> nn.Module:
    """Return a copy of a model, adapted; `work` is one in evaluation mode, in float32 or float64."""
    following = wishes.loss == FOLLOWING
    aim = Aim(Softmax() if following else output_loss(wishes.loss), following)
    data = _data(work, X, y, X_val, y_val, isinstance(aim.loss, Softmax | Custom), wishes)
    _without_cache(work)
    every = [*data.training, *(data.held or [])]
    aim = check_batches(work, every, aim)
    few = data.training[0].take(torch.arange(min(_LOOKED_AT, data.training[0].rows)))
    lists = find_blocks(work, few)
    found = linear_calls(work, lists, few)
    structure = Structure(tuple(found.places), found.readout, (), found.skipped, {})
    named = checked_layers("all" if wishes.layers == "auto" else wishes.layers, structure)
    blocks = [block for one in lists for block in one.blocks]
    rank = _rank(len(named), data)
    fresh, choices = _begun(work, found, named, data, aim)
    near = _near(found, named, len(blocks)) if wishes.layers == "auto" else named
    probe = probed(work, found, near, data.training, aim, rank)
    place, why = first_block(probe, found, len(blocks), wishes.layers)
    if len(near) < len(named) and place == min(probe.grams):
        probe = probed(work, found, named, data.training, aim, rank)
        place, why = first_block(probe, found, len(blocks), wishes.layers)
    names = [name for name in named if found.places[name] >= place]
    first = blocks[place] if 0 < place < len(blocks) else None
    steps, started = _prepared(model, work, lists, first, probe, names, found, fresh, data, aim, wishes)
    choices += [Choice("layers", _in_words(names, place, len(blocks)), why), *started]
    history = Loop(steps, max_iter=wishes.max_iter, tol=wishes.tol, callbacks=wishes.callbacks).run(wishes.resume)
    delta, reason = steps.compressed([rank // part for part in _CUTS], _COSTS)
    ranks = sorted({layer.rank for layer in delta.layers.values()}) or [0]
    choices.append(Choice("rank", " … ".join(map(str, dict.fromkeys([ranks[0], ranks[-1]]))), reason))
    result = delta.merged(model).eval()
    record = FineTuning(history, delta, structure, (tuple(names),), Plan((*choices, placed_model(work))))
    result.__dict__["finetuning_"] = record  # past nn.Module's own setter, which is for parameters and submodules
    return result


def _data(work: nn.Module, X: Any, y: Any, X_val: Any, y_val: Any, classes: bool, wishes: Wishes) -> _Data:
    like = next((own for own in work.parameters() if own.is_floating_point()), None)
    if like is None:
        raise ValueError("model has no weights of floating numbers")
    batches = read_batches(X, y, like, classes=classes, size=wishes.batch_size)
    if X_val is not None:
        return _Data(batches, read_batches(X_val, y_val, like, ("X_val", "y_val"), classes=classes))
    if y_val is not None:
        raise ValueError("X_val and y_val belong together: give both, or neither")
    rows = sum(batch.rows for batch in batches)
    count = _held_count(rows) if wishes.validation is None else round(wishes.validation * rows)
    if count < _FEWEST or count >= rows:
        return _Data(batches, None)
    order = torch.from_numpy(np.random.default_rng(wishes.seed).permutation(rows))
    return _Data(*split_off(batches, order[:count]))


def _held_count(rows: int) -> int:
    """Rows to hold out by default."""
    return max(round(_HELD * rows), min(_HELD_ENOUGH, round(_HELD_MOST * rows)))


def _without_cache(work: nn.Module) -> None:
    """Turn off what decoders keep for the tokens that follow: nothing follows here."""
    config = getattr(work, "config", None)
    if getattr(config, "use_cache", False):
        config.use_cache = False  # pyright: ignore[reportOptionalMemberAccess]


def _rank(layers: int, data: _Data) -> int:
    """Columns of the bases, by what the rows of J of a step take in float32."""
    rows = max(batch.rows for batch in data.training)
    return next((rank for rank in _RANKS if 4 * layers * rows * rank**2 <= _ROWS_OF_J), _RANKS[-1])


def _near(found: LinearCalls, named: Sequence[str], blocks: int) -> list[str]:
    """Layers in the last half of the blocks, and in the block before it, which tells whether to look further."""
    near = [name for name in named if found.places[name] >= blocks - blocks // 2 - 1]
    return near or list(named)


def _begun(
    work: nn.Module, found: LinearCalls, named: Sequence[str], data: _Data, aim: Aim
) -> tuple[bool, list[Choice]]:
    """Set a readout that begins anew from a few rows; whether it does, and why."""
    choices = []
    fresh = False
    if found.readout is not None and found.readout in named and isinstance(aim.loss, Softmax) and not aim.following:
        few = spread(data.training)
        layer = work.get_submodule(found.readout)
        features, targets, loss = _features(work, layer, few, aim)
        if len(features):
            limit = _TRAINED * constant_loss(targets)
            fresh = loss >= limit
            if fresh:
                _set(layer, new_readout(features, targets, _weight(layer)))
            chosen = "begins anew, from the means of the classes" if fresh else "goes on from its weights"
            reason = f"its loss is {loss:.3g} on a few rows, that of a constant {constant_loss(targets):.3g}"
            choices.append(Choice("readout", chosen, reason))
    return fresh, choices


def _features(work: nn.Module, layer: nn.Module, batches: Sequence[Batch], aim: Aim) -> tuple[Tensor, Tensor, float]:
    """Inputs of the readout and targets, of what counts, and the loss there."""
    seen: list[Tensor] = []
    features, targets = [], []
    total, counted = 0.0, 0
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        for batch in batches:
            seen.clear()
            with torch.no_grad():
                outputs = batch.call(work)
            rows, wanted, _ = aim.counted(outputs, batch.targets)
            inputs, _, _ = aim.counted(seen[0], batch.targets)
            features.append(inputs)
            targets.append(aim.loss.prepared(rows, wanted).to(rows))
            value, count = aim.value(outputs, batch.targets)
            total, counted = total + value, counted + count
    finally:
        handle.remove()
    return torch.cat(features), torch.cat(targets), total / max(counted, 1)


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return layer.weight


def _set(layer: nn.Module, weights: WholeLayer) -> None:
    with torch.no_grad():
        for kind, value in weights.tensors().items():
            if getattr(layer, kind, None) is not None:
                layer.get_parameter(kind).copy_(value)


def _prepared(
    model: nn.Module,
    work: nn.Module,
    lists: Sequence[BlockList],
    first: str | None,
    probe: Probe,
    names: Sequence[str],
    found: LinearCalls,
    fresh: bool,
    data: _Data,
    aim: Aim,
    wishes: Wishes,
) -> tuple[BlockSteps, list[Choice]]:
    """Run what is frozen once, find the readout on many rows where it begins anew, and return the stepper."""
    given = model.get_submodule(found.readout) if fresh and found.readout else None
    readout = work.get_submodule(found.readout) if fresh and found.readout else None
    parts, losses, features, targets = [], [], [], []
    seen: list[Tensor] = []
    handle = readout.register_forward_pre_hook(lambda module, args: seen.append(args[0])) if readout else None
    for batches in (data.training, data.held):
        if batches is None:
            continue
        states = KeptStates(work, lists, first)
        total, counted = 0.0, 0
        through = range(len(batches)) if batches is data.held else _some(batches)
        for number, batch in enumerate(batches):
            if number not in through:
                states.run_in_front(batch)
                continue
            seen.clear()
            outputs = states.run(batch)
            if given is not None and isinstance(given, nn.Linear):
                bias = None if given.bias is None else given.bias.detach().to(outputs)
                outputs = nn.functional.linear(seen[0], given.weight.detach().to(outputs), bias)
            if given is not None and batches is data.training:
                rows, wanted, _ = aim.counted(outputs, batch.targets)
                features.append(aim.counted(seen[0], batch.targets)[0])
                targets.append(aim.loss.prepared(rows, wanted).to(rows))
            value, count = aim.value(outputs, batch.targets)
            total, counted = total + value, counted + count
        parts.append(Rows(batches, states))
        losses.append(total / max(counted, 1))
    if handle is not None:
        handle.remove()
    if not np.isfinite(losses).all():
        raise ValueError(f"model: its loss is {losses[0]:.4g}, fine-tuning needs one that is finite")
    layers = [probe.layers[name] for name in names]
    if readout is not None:
        _set(readout, new_readout(torch.cat(features), torch.cat(targets), _weight(readout)))
        layers = [_begun_from(layer, readout) if layer.name == found.readout else layer for layer in layers]
    damping = _DAMPING if wishes.damping is None else wishes.damping
    steps = BlockSteps(
        model,
        work,
        layers,
        found.readout,
        aim,
        parts[0],
        parts[1] if len(parts) > 1 else None,
        (losses[0], losses[1] if len(losses) > 1 else None),
        damping,
        wishes.patience,
        wishes.seed,
        fingerprint((aim, damping, wishes.patience, wishes.seed, list(names)), data.tensors, model),
    )
    return steps, _choices_of(parts, first)


def _some(batches: Sequence[Batch]) -> range:
    """Numbers of evenly spread batches, of all where they are few."""
    rows = sum(batch.rows for batch in batches)
    return range(0, len(batches), -(-rows // _THROUGH))


def _choices_of(parts: Sequence[Rows], first: str | None) -> list[Choice]:
    nbytes = sum(part.states.nbytes for part in parts)
    before = "none" if first is None else f"everything before {first} runs once"
    why = "adapted layers begin with the first block" if first is None else "no adapted weight reaches it"
    start = Choice("frozen start", before, why)
    if first is None:
        return [start]
    disk = any(part.states.on_disk for part in parts)
    return [
        start,
        Choice("kept states", "mapped from disk" if disk else "in memory", f"they take {nbytes / 1e6:.3g} MB"),
    ]


def _begun_from(layer: ProjectedLayer, module: nn.Module) -> ProjectedLayer:
    """The layer with the weights that its module has now."""
    assert isinstance(module, nn.Linear)
    bias = None if module.bias is None else module.bias.detach().clone()
    return replace(layer, given=module.weight.detach().clone(), bias=bias)


def _in_words(names: Sequence[str], place: int, blocks: int) -> str:
    if len(names) == 1:
        return f"{names[0]} alone"
    return f"{len(names)} linear layers of the last {blocks - place} of {blocks} blocks, and behind them"
