"""`widefit.finetune`: the layers to adapt, their order, and the rows of a step."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from widefit.callbacks import Callback, Progress
from widefit.finetuning.adapt_blocks import FOLLOWING, Wishes, finetune_blocks
from widefit.finetuning.blocks import Structure, observe
from widefit.finetuning.checks import Data, checked_data, checked_layers, checked_settings
from widefit.finetuning.record import FineTuning
from widefit.finetuning.schedule import Schedule, Settings
from widefit.finetuning.stage import Products
from widefit.finetuning.stage_run import Problem
from widefit.finetuning.steps import FineTuningSteps
from widefit.finetuning.sweep import parts_of
from widefit.finetuning.tensors import tensor_of
from widefit.kernels.devices import check_precision
from widefit.kernels.memory import available_memory
from widefit.kernels.precision import full_precision
from widefit.linalg.dense_blocks import DENSE
from widefit.losses.base import OutputLoss
from widefit.losses.family import output_loss
from widefit.plan.base import Choice, Plan, placed_model
from widefit.training.loop import Loop, State

# Rows a step of more layers than the readout takes, where there are more.
_BATCH = 1000
# Entries of a layer from which on sparse products can pay for laying its weights out.
_SPARSE_WEIGHTS = 1 << 20
# Share of the rows held out.
_HELD = 0.2
# Rows on which the structure is looked at.
_LOOKED_AT = 64


@full_precision()
def finetune(
    model: nn.Module,
    X: Any,
    y: ArrayLike | Tensor | None = None,
    *,
    loss: str | OutputLoss | Callable[[Tensor, Tensor], Tensor] = "mse",
    layers: str | Sequence[str] = "auto",
    alpha: float = 0.0,
    X_val: Any = None,
    y_val: ArrayLike | Tensor | None = None,
    validation: float | None = None,
    patience: int = 2,
    damping: float | None = None,
    max_iter: int = 20,
    tol: float = 1e-6,
    batch_size: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    resume: State | None = None,
    verbose: bool = False,
    threads: int | None = None,
) -> nn.Module:
    """Adapt a trained network to new data by Gauss-Newton steps in sample space.

    What the adapted layers cannot change is computed once; a step moves them by H = Σ (Δ Δᵀ) ∘ (A Aᵀ) of arXiv
    2112.07628, and weights behind a frozen start are kept as W₀ + U Vᵀ. By default the rows decide where to begin: with
    the layer before the readout, and the readout after it, or with the readout alone, a convex problem with one
    n × n system for all outputs. (The order, the envelope of the cross-entropies that the steps aim at, and the
    preconditioner are this project's.)

    Parameters
    ----------
    model
        Any module with `nn.Linear` layers that maps a batch to a tensor, to an object with `.logits` or to a tuple; it
        stays as it is, in its own precision (steps on half precision are taken in float32). Dropout and batch
        statistics are off during training, whatever mode it is in.
    X
        What it takes, one row a sample: a tensor or an array, a mapping of them that the model is called with by
        keyword (what tokenizers give), a tuple of them. Or an iterable such as a DataLoader, without y: of
        (inputs, targets), or of mappings with "labels", in batches or row by row.
    y
        Targets: shape (n,) or that of the outputs; class numbers for "cross_entropy". With outputs for every position a
        class number for each, -100 where there is none.
    loss
        "mse", "cross_entropy", "bce" (logits), "huber", "next_token" (y are the tokens themselves), a loss of
        `widefit.losses`, a loss module of torch, or a mean-reduced callable(outputs, targets).
    layers
        Which linear layers to adapt, weights and biases: "auto" (the readout, or the layer before it and then the
        readout; of repeated blocks as many of the last as help with rows left out), "readout" (the last layer),
        "all" or a list of names (the readout, then all of them together).
    alpha
        Ridge towards the given weights: α/2 ‖θ − θ₀‖² is added to the loss.
    X_val, y_val
        Held-out rows of your own.
    validation
        Share of the rows held out where there are none; 0: none. None: a fifth, of repeated blocks a tenth, or up to a
        fifth where that is less than 50 rows.
    patience
        Steps in a row that lower the held-out loss by less than two percent (of repeated blocks: or not by more than
        chance would) and end a stage; the best weights are restored. Without held-out rows the training loss is
        watched.
    damping
        λ to begin with, as a part of the mean of diag H; None: 0.01 for the readout alone, 0.1 for other layers, 4 for
        repeated blocks. It falls to 0.01 where a step has not gained, and rises where an epoch on blocks was far off.
    max_iter
        Most steps, of all stages together; the first of two has half of them at most.
    tol
        Training loss at which to stop.
    batch_size
        Rows a step beyond the readout; None: all, or 1000 where there are more than 2000 or memory is short. Of
        repeated blocks the most rows of a step; None: 32, fewer of long texts. An iterable of batches has its own.
    seed
        Draws the held-out rows and the batches.
    callbacks, verbose
        What watches the training; `verbose` adds a progress bar.
    resume
        A state from `widefit.files.read_checkpoint`: the fine-tuning that wrote it goes on, to the same bits.
    threads
        Cores for sparse products, which repeated blocks do not have; None: as torch.

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
        alpha=alpha,
        validation=validation,
        patience=patience,
        damping=damping,
        max_iter=max_iter,
        tol=tol,
        batch_size=batch_size,
        seed=seed,
        threads=threads,
        resume=resume,
    )
    work = _evaluating(model)
    watch = [*callbacks, *([Progress()] if verbose else [])]
    wishes = Wishes(loss, layers, validation, patience, damping, max_iter, tol, batch_size, seed, watch, resume)
    if _by_blocks(work, X, y, wishes):
        if alpha:
            raise ValueError("alpha: repeated blocks are held back by held-out rows and a low rank; leave it at 0")
        if threads is not None:
            raise ValueError("threads: repeated blocks have no sparse products; torch.set_num_threads sets their cores")
        return finetune_blocks(model, _in_single(work), X, y, X_val, y_val, wishes)
    assert y is not None
    exact, data = checked_data(work, output_loss(loss), X, y, X_val, y_val)
    surrogate = exact.smoothed()
    structure = observe(work, data.inputs[:_LOOKED_AT])
    names = checked_layers(layers, structure)
    data = data.held_apart(_HELD if validation is None else validation, seed)
    batch, rows = _batch(batch_size, names, structure, work, data)
    sparse, reasons = _sparse_layers(names, structure, work, data.inputs)
    products = Products(sparse, torch.get_num_threads() if threads is None else threads)

    settings = Settings(names, structure.readout, damping, max_iter, layers == "auto", batch is not None)
    schedule = Schedule(work, data, surrogate, settings, products)
    problem = Problem(exact, surrogate, data.targets, data.held_targets, alpha, patience, batch, seed)
    steps = FineTuningSteps(work, problem, schedule)
    history = Loop(steps, max_iter=max_iter, tol=tol, callbacks=watch).run(resume)
    delta = steps.delta()
    result = delta.merged(model)
    plan = Plan((*reasons, *_alone(layers, names, structure), *steps.choices, placed_model(work), rows))
    record = FineTuning(history, delta, structure, tuple(steps.stages), plan)
    result.__dict__["finetuning_"] = record  # past nn.Module's own setter, which is for parameters and submodules
    return result


def _alone(layers: str | Sequence[str], names: tuple[str, ...], structure: Structure) -> tuple[Choice, ...]:
    """The reason why the readout alone is trained, where nobody asked for it."""
    if layers == "auto" and names == (structure.readout,):
        return (Choice("layers", f"{names[0]} alone", "no Linear → ReLU → Linear ends in the readout"),)
    return ()


def _evaluating(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without gradients."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.Linear):
        raise ValueError("model is a single linear layer: pass torch.nn.Sequential(model)")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("model has parameters that are not initialized: call it on a batch first")
    for parameter in model.parameters():
        check_precision(parameter.device)
    return copy.deepcopy(model).eval().requires_grad_(False)


def _by_blocks(work: nn.Module, X: Any, y: Any, wishes: Wishes) -> bool:
    """Whether the model is one of repeated blocks, or its data are more than one tensor."""
    if y is None or wishes.loss == FOLLOWING or isinstance(X, Mapping | tuple):
        return True
    weights = [own for own in work.parameters() if own.is_floating_point()]
    if any(own.dtype in (torch.float16, torch.bfloat16) for own in weights):
        return True
    lists = [module for module in work.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    if not lists or not weights or not isinstance(wishes.layers, str) or wishes.layers == "readout":
        return False
    return not _has_activated_pair(work, X, weights[0])


def _has_activated_pair(work: nn.Module, X: Any, like: Tensor) -> bool:
    """Whether Linear → ReLU → Linear ends in the readout, or nobody can tell."""
    few = tensor_of(X, "X")
    if few.ndim == 0:
        return True
    few = few[:_LOOKED_AT]
    try:
        structure = observe(work, few.to(like) if few.is_floating_point() else few.to(like.device))
    except (RuntimeError, IndexError, TypeError):
        return True
    except ValueError:  # outputs that are no tensor
        return False
    return any(block.second == structure.readout for block in structure.blocks)


def _in_single(work: nn.Module) -> nn.Module:
    """The copy with weights of half precision as float32."""
    half = any(own.dtype in (torch.float16, torch.bfloat16) for own in work.parameters())
    return work.float() if half else work


def _batch(
    wanted: int | None, names: tuple[str, ...], structure: Structure, model: nn.Module, data: Data
) -> tuple[int | None, Choice]:
    """Rows a step beyond the readout, None for all of them; and why."""
    inputs, rows = data.inputs, len(data.inputs)
    if wanted is not None:
        return _rows(wanted if wanted < rows else None, f"batch_size={wanted}")
    if names == (structure.readout,):
        return _rows(None, "the readout alone is trained")
    if rows > 2 * _BATCH:
        return _rows(_BATCH, f"there are more than {2 * _BATCH:,} rows")
    wide = sum(sum(_linear(model, name).weight.shape) for name in names)
    # Signals of every output and their gradient, and a few matrices of all pairs of rows.
    needed = inputs.element_size() * rows * (2 * data.outputs * wide + 4 * rows)
    if needed > available_memory() // 2:
        return _rows(_BATCH, f"all {rows:,} rows would need about {needed / 1e9:.2g} GB")
    return _rows(None, f"there are no more than {2 * _BATCH:,} rows", parts_of(rows))


def _rows(batch: int | None, reason: str, parts: int = 1) -> tuple[int | None, Choice]:
    chosen = "all rows in every step" if batch is None else f"{batch} rows a step beyond the readout"
    after = f", where one layer in front of the readout is trained in {parts} parts one after the other"
    return batch, Choice("rows", chosen + (after if parts > 1 else ""), reason)


def _sparse_layers(
    names: tuple[str, ...], structure: Structure, model: nn.Module, inputs: Tensor
) -> tuple[frozenset[str], tuple[Choice, ...]]:
    """Layers whose inputs are sparse enough for sparse products, and a choice for each layer."""
    sparse = []
    choices = []
    limit = f"sparse ones pay up to {DENSE:.1%} of {_SPARSE_WEIGHTS:,} weights or more"
    for name in names:
        layer = _linear(model, name)
        density = structure.densities[name]
        pays = density <= DENSE and layer.weight.numel() >= _SPARSE_WEIGHTS and inputs.device.type == "cpu"
        if pays:
            sparse.append(name)
        chosen = "sparse products" if pays else "dense products"
        choices.append(Choice(f"products of {name}", chosen, f"{density:.1%} of its inputs are not zero; {limit}"))
    return frozenset(sparse), tuple(choices)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
