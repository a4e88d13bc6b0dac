"""The block from which on a model is adapted: where a step would leave least on rows not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from widefit.finetuning.aim import Aim
from widefit.finetuning.batches import Batch
from widefit.finetuning.linear_calls import LinearCalls
from widefit.finetuning.projected_layers import LayerCall, ProjectedLayer, differentiated, projected, whole
from widefit.tuning.leave_one_out import leave_one_out

# Batches that are looked at, and rows of each.
_BATCHES = 4
_ROWS = 16
# λ of the step that is judged, as a part of the mean of diag H.
_DAMPING = 1.0


@dataclass(frozen=True)
class Probe:
    """A step tried on a few rows.

    Attributes
    ----------
    layers
        Layers that may be adapted, with bases and scales from those rows.
    grams
        J Jᵀ of the layers of each place, by its number.
    residual
        Right-hand side of the step.
    """

    layers: dict[str, ProjectedLayer]
    grams: dict[int, Tensor]
    residual: Tensor


def probed(
    model: nn.Module, found: LinearCalls, names: Sequence[str], batches: Sequence[Batch], aim: Aim, rank: int
) -> Probe:
    """Return layers with their bases, and what each place does to a few evenly spaced rows."""
    few = spread(batches)
    modules = {name: model.get_submodule(name) for name in names}
    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    calls: dict[str, list[LayerCall]] = {name: [] for name in names}
    residuals = []
    for batch in few:
        _, directions, own = differentiated(model, linear, batch, aim)
        residuals.append(directions.residual.reshape(-1))
        for name, call in own.items():
            calls[name].append(call)
    layers: dict[str, ProjectedLayer] = {}
    grams: dict[int, Tensor] = {}
    for number, (name, module) in enumerate(linear.items()):
        is_readout = name == found.readout
        layer = whole(name, module) if is_readout else projected(name, module, calls[name], rank, seed=number)
        rows = torch.cat([layer.rows(call) for call in calls[name]])
        layer = layer.balanced(rows)
        place = found.places[name]
        gram = layer.scale**2 * (rows @ rows.T).double()
        grams[place] = grams[place] + gram if place in grams else gram
        layers[name] = layer
    return Probe(layers, grams, torch.cat(residuals).double())


def spread(batches: Sequence[Batch]) -> list[Batch]:
    """Return a few evenly spaced rows of a few evenly spaced batches."""
    chosen = batches[:: -(-len(batches) // _BATCHES)]
    return [batch.take(torch.linspace(0, batch.rows - 1, min(_ROWS, batch.rows)).long()) for batch in chosen]


def first_block(probe: Probe, found: LinearCalls, blocks: int, layers: str | Sequence[str]) -> tuple[int, str]:
    """Return the number of the first block to adapt, and why.

    With "auto" the kernel of the last blocks is grown from the readout backwards; the error of rows left out of one
    damped step, in closed form, tells how far to go.
    """
    if layers != "auto":
        return min(found.places[name] for name in probe.layers), "asked for"
    places = sorted(probe.grams, reverse=True)
    total = torch.zeros_like(next(iter(probe.grams.values())))
    errors: dict[int, float] = {}
    for place in places:
        total = total + probe.grams[place]
        errors[place] = _left_out(total, probe.residual)
    chosen = min(places, key=lambda place: errors[place])
    told = ", ".join(f"{blocks - place} of {blocks}: {errors[place]:.1%}" for place in places)
    return chosen, f"residual that one step would leave on rows left out, by blocks: {told}"


def _left_out(gram: Tensor, residual: Tensor) -> float:
    """Part of the residual that a damped step leaves on rows that it has not seen."""
    size = float(residual.square().mean())
    scale = float(gram.diagonal().mean())
    if not (size > 0 and scale > 0):
        return 1.0
    fit = leave_one_out(gram.cpu().numpy(), residual.cpu().numpy()[:, None], np.ones(len(residual)), _DAMPING * scale)
    return fit.error / size
