"""H of the layers of a stage at one point, in the form that solves it soonest."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.finetuning.linearization import Linearization, Passes, Signals
from widefit.finetuning.stage import Point, Stage
from widefit.finetuning.system import FACTORED, Averaged, Factored, Readout, System
from widefit.gram import CoupledGram
from widefit.gram.factored import FactoredJacobian, RowBlock
from widefit.gram.jacobian import JacobianGram
from widefit.gram.layer_rows import LayerRows

# Random signs of the outputs that the mean over them is estimated from.
_DRAWS = 2


def system_of(
    stage: Stage, point: Point, at: Linearization, root: Float[Tensor, "..."], previous: System | None = None
) -> System:
    """H of the layers of a stage at one point.

    Parameters
    ----------
    stage, point
        Which layers, and where.
    at, root
        J there, and what its rows are weighted with.
    previous
        The system of the step before in the same stage: a read-out has the same one, and iterations keep what they are
        behind where rows weigh the same, since few neurons change sides in a step.
    """
    assert point.outputs is not None
    if stage.is_readout(point) and root.ndim == 0:
        weight = float(root)
        if isinstance(previous, Readout) and previous.weight == weight:
            return previous
        return Readout(stage.direct[0], weight)
    if isinstance(at, Passes):

        def product(step: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
            pulled = zip(stage.direct, at.pulled(step), strict=True)
            return at.pushed([layer.overlapped(change[:, 0]) for layer, change in pulled])

        if isinstance(previous, Averaged) and root.ndim == 0:
            return previous.again(product)
        return Averaged(product, mean_over_outputs(at, [layer.gram for layer in stage.direct], point.outputs))
    assert isinstance(at, Signals)
    parts = at.parts
    n, k = parts[0].signals.shape[:2]
    widest = max(max(part.signals.shape[3], part.inputs.shape[2]) for part in parts)
    if any(part.inputs.shape[1] > 1 for part in parts) or n > 2 * widest:
        columns = {
            name: torch.empty(size, dtype=part.dtype)
            for part in parts
            for name, size in zip(part.names, (part.out_features * part.in_features, part.out_features), strict=False)
        }
        return Factored(JacobianGram(FactoredJacobian([RowBlock(parts, n, k)], columns)))
    overlaps = [layer.gram for layer in stage.direct] + [_overlap(part) for part in at.behind]
    gram = CoupledGram([replace(part, overlap=overlap) for part, overlap in zip(parts, overlaps, strict=True)])
    if gram.size <= FACTORED:
        return Factored(gram)
    average = mean_over_outputs(at, overlaps, point.outputs)
    return Averaged(lambda step: gram.matvec(step.reshape(-1)).reshape(step.shape), average)


def mean_over_outputs(
    at: Linearization, overlaps: Sequence[Float[Tensor, "n n"]], like: Float[Tensor, "n k"]
) -> Float[Tensor, "n n"]:
    """Mean over the outputs of the blocks of H: E[(Δ s)(Δ s)ᵀ] ∘ A Aᵀ / k over random signs s of the outputs.

    A few draws do, for neurons by the hundred average over them; few outputs are taken one by one.

    Parameters
    ----------
    at
        Δ of every layer.
    overlaps
        A Aᵀ of every layer, plus one where there is a bias.
    like
        The outputs.
    """
    n, k = like.shape
    if k <= 2 * _DRAWS:
        draws = torch.eye(k)
    else:
        draws = torch.randint(0, 2, (_DRAWS, k), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        draws /= _DRAWS**0.5
    total = like.new_zeros(n, n)
    for signs in draws.to(like):
        for overlap, mixed in zip(overlaps, at.pulled(signs.expand(n, k)), strict=True):
            total += (mixed[:, 0] @ mixed[:, 0].T).mul_(overlap)
    return total / k


def _overlap(part: LayerRows) -> Float[Tensor, "n n"]:
    overlap = part.with_overlap().overlap
    assert overlap is not None
    return overlap
