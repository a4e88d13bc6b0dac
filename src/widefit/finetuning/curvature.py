"""H of the layers of a stage as an operator, and the solver for it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.finetuning.jacobian import PassJacobian, SignalJacobian, StageJacobian
from widefit.finetuning.stage import Point, Stage
from widefit.gram import CoupledGram, DenseGram, IdenticalBlocks, ImplicitGram, Operator
from widefit.gram.factored import FactoredJacobian, RowBlock
from widefit.gram.jacobian import DenseJacobian, JacobianGram
from widefit.solvers import BlockCG, Cholesky, NystromCG, Prepared, Primal, Solver

# Largest system that is factored: beyond it iterations, which need no more than the right direction, are done sooner.
FACTORED = 1000
# A step is one of several: a loose solution takes a third of the products of a tight one and generalizes as well.
_TOLERANCE = 0.4
_PRODUCTS = 60
# Random signs of the outputs that the mean over them is estimated from.
_DRAWS = 2


def operator_of(
    stage: Stage, point: Point, at: StageJacobian, root: Float[Tensor, "..."], previous: Operator | None = None
) -> Operator:
    """H of the layers of a stage at a point, in the form that is solved soonest.

    Parameters
    ----------
    stage, point
        Which layers, and where.
    at, root
        J there, and what its rows are weighted with.
    previous
        H of the step before on the same rows. Where all rows weigh the same a readout keeps its H, and iterations keep
        the mean block that they are behind, since few neurons change sides in a step.
    """
    assert point.outputs is not None
    alike = root.ndim == 0
    if stage.is_readout(point) and alike:
        known = isinstance(previous, IdenticalBlocks)
        return previous if known else readout_gram(stage, float(root), point.outputs.shape[1])
    if isinstance(at, PassJacobian):
        average = previous.average if isinstance(previous, ImplicitGram) and alike else None
        return _by_passes(stage, at, point.outputs, average)
    assert isinstance(at, SignalJacobian)
    parts = at.parts
    samples, outputs = parts[0].samples, parts[0].outputs
    widest = max(max(part.out_features, part.in_features) for part in parts)
    if any(part.positions > 1 for part in parts) or samples > 2 * widest:
        columns = {
            name: torch.empty(size, dtype=part.dtype)
            for part in parts
            for name, size in zip(part.names, (part.out_features * part.in_features, part.out_features), strict=False)
        }
        made = JacobianGram(FactoredJacobian([RowBlock(parts, samples, outputs)], columns))
        return DenseGram(made.dense(), outputs) if made.size <= FACTORED else made
    front = [replace(part, overlap=layer.gram) for part, layer in zip(parts, stage.direct, strict=False)]
    layers = [*front, *(part.with_overlap() for part in at.behind)]
    gram = CoupledGram(layers)
    if gram.size <= FACTORED:
        return DenseGram(gram.dense(), outputs)
    overlaps = [layer.overlap for layer in layers if layer.overlap is not None]
    return ImplicitGram(gram.matvec, mean_over_outputs(at, overlaps, point.outputs), outputs)


def readout_gram(stage: Stage, weight: float, outputs: int) -> IdenticalBlocks:
    """H of a readout with equal weights w: K = w² (A Aᵀ + 1) for every output; by its factor, if that is narrower."""
    layer = stage.direct[0]
    if len(layer.inputs) <= layer.inputs.shape[1]:
        return IdenticalBlocks(DenseGram(weight**2 * layer.gram), outputs)
    inputs = layer.inputs
    if layer.module.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    return IdenticalBlocks(JacobianGram(DenseJacobian(weight * inputs)), outputs)


class StageSolver(Solver):
    """The solver that is done soonest with the H of a stage; factorizations are kept for the steps that follow."""

    name = "auto"

    def __init__(self) -> None:
        self._prepared: Prepared | None = None
        self._operator: Operator | None = None
        self._damping = 0.0

    def _prepare(self, operator: Operator, damping: float) -> Prepared:
        return _solver_for(operator).prepare(operator, damping)

    def prepare(self, operator: Operator, damping: float) -> Prepared:
        """H + λI made ready, from what was made for the same H, or for one with the same mean block."""
        before = self._operator if damping == self._damping else None
        if self._prepared is None or before is None or operator is not before:
            self._prepared = self._carried(before, operator, damping) or self._prepare(operator, damping)
        self._operator = operator
        self._damping = damping
        return self._prepared

    def _carried(self, before: Operator | None, operator: Operator, damping: float) -> Prepared | None:
        if not isinstance(before, ImplicitGram) or not isinstance(operator, ImplicitGram) or self._prepared is None:
            return None
        if before.average is not operator.average:
            return None
        kept = self._prepared.preconditioner
        # It is kept whatever it takes, so that a run that is resumed has the same.
        return kept and _solver_for(operator).carry_over(replace(kept, products=(0, 0)), operator, damping)


def _solver_for(operator: Operator) -> Solver:
    block = operator.kernel if isinstance(operator, IdenticalBlocks) else operator
    if block.factor is not None and block.factor.shape[1] < block.size:
        return Primal()
    if isinstance(block, DenseGram):
        return Cholesky()
    if isinstance(operator, ImplicitGram):
        return BlockCG(_TOLERANCE, _PRODUCTS, _PRODUCTS)
    return NystromCG(_TOLERANCE, max_iterations=_PRODUCTS)


def mean_over_outputs(
    at: StageJacobian, overlaps: Sequence[Float[Tensor, "n n"]], like: Float[Tensor, "n k"]
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
        for overlap, mixed in zip(overlaps, at.vjp(signs.expand(n, k)), strict=True):
            total += (mixed[:, 0] @ mixed[:, 0].T).mul_(overlap)
    return total / k


def _by_passes(
    stage: Stage, at: PassJacobian, like: Float[Tensor, "n k"], average: Float[Tensor, "n n"] | None
) -> ImplicitGram:
    """H of layers whose inputs are frozen: no δ is stored."""

    def product(vectors: Float[Tensor, "nk c"]) -> Float[Tensor, "nk c"]:
        found = []
        for column in vectors.T:
            pulled = zip(stage.direct, at.vjp(column.reshape(like.shape)), strict=True)
            found.append(at.jvp([layer.overlapped(change[:, 0]) for layer, change in pulled]).reshape(-1))
        return torch.stack(found, dim=1)

    if average is None:
        average = mean_over_outputs(at, [layer.gram for layer in stage.direct], like)
    return ImplicitGram(product, average, like.shape[1])
