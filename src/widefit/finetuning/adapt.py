"""`widefit.finetune`: what to adapt, in which order, on which rows."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from widefit.callbacks import Callback, Progress
from widefit.finetuning.blocks import Structure, observe
from widefit.finetuning.checks import checked_data, checked_layers, checked_settings
from widefit.finetuning.cut import cut
from widefit.finetuning.delta import LowRankDelta
from widefit.finetuning.run import FineTuningRun, Problem
from widefit.finetuning.stage import Stage, parameters_of
from widefit.history import History
from widefit.losses import BinaryCrossEntropy, CrossEntropy, OutputLoss, output_loss
from widefit.memory import available_memory
from widefit.nn.dense_blocks import DENSE
from widefit.optim.envelope import BinaryCrossEntropyEnvelope, CrossEntropyEnvelope

# Rows a step of more layers than the read-out takes, where there are more.
_BATCH = 1000
# Entries of a layer from which on sparse products can pay for laying its weights out.
_WORTHWHILE = 1 << 20
# Rows on which the structure is looked at.
_LOOKED_AT = 64


@dataclass(frozen=True)
class FineTuning:
    """How a module was fine-tuned: the attribute `finetuning_` of what `widefit.finetune` returns.

    Attributes
    ----------
    history
        One StepInfo a step; `metric` is the loss on held-out rows.
    delta
        Adapted minus given weights.
    structure
        Layers and blocks that were found, and what was passed over, with the reason.
    stages
        The layers that were trained together, stage by stage.
    decisions
        What was chosen, and why, in sentences.
    """

    history: History
    delta: LowRankDelta
    structure: Structure
    stages: tuple[tuple[str, ...], ...]
    decisions: tuple[str, ...]


def finetune(
    model: nn.Module,
    X: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "mse",
    layers: str | Sequence[str] = "auto",
    alpha: float = 0.0,
    X_val: ArrayLike | Tensor | None = None,
    y_val: ArrayLike | Tensor | None = None,
    validation: float = 0.2,
    patience: int = 2,
    damping: float = 0.01,
    max_iter: int = 20,
    tol: float = 1e-6,
    batch_size: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    verbose: bool = False,
    threads: int | None = None,
) -> nn.Module:
    """Adapt a trained network to new data by Gauss-Newton steps in sample space.

    What the adapted layers cannot change is computed once. First the read-out alone is trained, a convex problem with
    one n × n system for all outputs; then all chosen layers, by the exact H = Σ (Δ Δᵀ) ∘ (A Aᵀ) of arXiv 2112.07628,
    with the weights of layers behind a frozen start kept as W₀ + U Vᵀ. (The stages, the envelope of the cross-entropies
    that the steps aim at, and the preconditioner are this project's.)

    Parameters
    ----------
    model
        Any module that maps a batch to a tensor, with `nn.Linear` layers in it; it stays as it is. Dropout and batch
        statistics are off during training.
    X
        What it takes, one row a sample.
    y
        Targets: shape (n,) or that of the outputs; class numbers for "cross_entropy".
    loss
        "mse", "cross_entropy", "bce" (logits), "huber", or a mean-reduced callable(outputs, targets).
    layers
        Which linear layers to adapt: "auto" (the last block Linear → ReLU → Linear), "readout" (the last layer),
        "all", or a list of names.
    alpha
        Ridge towards the given weights: α/2 ‖θ − θ₀‖² is added to the loss.
    X_val, y_val
        Held-out rows of your own.
    validation
        Share of the rows held out where there are none; 0: none.
    patience
        Steps in a row that lower the held-out loss by less than two percent and end a stage; the best weights are
        restored. Without held-out rows the training loss is watched.
    damping
        Smallest λ, as a part of the mean of diag H.
    max_iter
        Most steps, of all stages together; the first has half of them at most.
    tol
        Training loss at which to stop.
    batch_size
        Rows a step in the second stage; None: all, or 1000 where there are more than 2000 or memory is short.
    seed
        Draws the held-out rows and the batches.
    callbacks, verbose
        What watches the training; `verbose` adds a progress bar.
    threads
        Cores for sparse products; None: as torch.

    Returns
    -------
    A copy of the model with the same state-dict keys, and the attribute `finetuning_` (a `FineTuning`).

    Raises
    ------
    ValueError
        Data that do not fit the model or each other, or are not finite; class numbers beyond the outputs; no linear
        layer that can be adapted, or no layer of a name; settings out of range.
    """
    checked_settings(
        alpha=alpha, validation=validation, patience=patience, damping=damping, max_iter=max_iter, tol=tol,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    exact = output_loss(loss)
    work = _evaluating(model)
    data = checked_data(work, exact, X, y, X_val, y_val)
    structure = observe(work, data.inputs[:_LOOKED_AT])
    stages = checked_layers(layers, structure)
    inputs, targets, held, held_targets = data.inputs, data.targets, data.held_inputs, data.held_targets
    if held is None and validation > 0:
        training, chosen = _split(len(inputs), validation, seed)
        if len(chosen):
            held, held_targets = inputs[chosen], targets[chosen]
            inputs, targets = inputs[training], targets[training]
    batch = _batch(batch_size, stages, structure, work, inputs, data.outputs)
    problem = Problem(exact, _merit(exact), targets, held_targets, alpha, damping, max_iter, tol, patience, batch, seed)
    run = FineTuningRun(problem, [*callbacks, *([Progress()] if verbose else [])])
    cores = torch.get_num_threads() if threads is None else threads
    sparse, decisions = _sparse_layers(stages, structure, work, inputs)

    names = stages[-1]
    direct = batch is None or (len(names) == 1 and names[0] == structure.readout)
    parts = cut(work, names, (inputs[:2],), direct=direct)
    given = parameters_of(work, names)
    whole = Stage.of(work, names, parts, (inputs,), None if held is None else (held,), given, sparse, cores)
    if len(stages) > 1:
        warm = whole.inside(stages[0], sparse, cores)
        found = run.stage(warm, -(-max_iter // 2))
        started = found.merged(work)
        whole = whole.changed(parameters_of(started, names))
    if not run.ended:
        run.stage(whole, max_iter)
    result = run.delta.merged(model)
    decisions = (
        *decisions,
        f"a frozen start runs once before {', '.join(names)}" if parts.start is not None
        else "the whole module runs in every step: torch.fx cannot follow it",
        "all rows in every step" if batch is None else f"{batch} rows a step beyond the read-out",
    )  # fmt: skip
    # Past nn.Module's own setter, which is for parameters and submodules.
    result.__dict__["finetuning_"] = FineTuning(run.finish(), run.delta, structure, stages, decisions)
    return result


def _evaluating(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    work = copy.deepcopy(model).eval()
    return work.requires_grad_(False)


def _split(rows: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Training and held-out rows; none are held out where fewer than five would be."""
    count = round(share * rows)
    if count < 5:
        return torch.arange(rows), torch.arange(0)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(rows))
    return order[count:].sort().values, order[:count].sort().values


def _merit(loss: OutputLoss) -> OutputLoss:
    """What steps lower."""
    if isinstance(loss, CrossEntropy):
        return CrossEntropyEnvelope()
    if isinstance(loss, BinaryCrossEntropy):
        return BinaryCrossEntropyEnvelope()
    return loss


def _batch(
    wanted: int | None,
    stages: tuple[tuple[str, ...], ...],
    structure: Structure,
    model: nn.Module,
    inputs: Tensor,
    outputs: int,
) -> int | None:
    """Rows a step beyond the read-out; None: all of them."""
    rows = len(inputs)
    if wanted is not None:
        return wanted if wanted < rows else None
    if stages[-1] == (structure.readout,):
        return None
    wide = sum(sum(_linear(model, name).weight.shape) for name in stages[-1])
    # Signals of every output and their gradient, and a few matrices of all pairs of rows.
    needed = inputs.element_size() * rows * (2 * outputs * wide + 4 * rows)
    return _BATCH if rows > 2 * _BATCH or needed > available_memory() // 2 else None


def _sparse_layers(
    stages: tuple[tuple[str, ...], ...], structure: Structure, model: nn.Module, inputs: Tensor
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Layers whose inputs are sparse enough for sparse products, and a sentence on each layer."""
    chosen, decisions = [], []
    for name in dict.fromkeys(name for stage in stages for name in stage):
        layer = _linear(model, name)
        density = structure.densities[name]
        pays = density <= DENSE and layer.weight.numel() >= _WORTHWHILE and inputs.device.type == "cpu"
        if pays:
            chosen.append(name)
        why = "sparse products" if pays else "dense products"
        limit = f"sparse ones pay up to {DENSE:.1%} of {_WORTHWHILE:,} weights or more"
        decisions.append(f"{name}: {density:.1%} of its inputs are not zero, so {why} ({limit})")
    return frozenset(chosen), tuple(decisions)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
