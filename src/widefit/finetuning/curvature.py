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
from widefit.gram.layer_rows import LayerRows
from widefit.solvers import BlockCG, Cholesky, NystromCG, Prepared, Primal, Solver

# Largest system that is factored: beyond it iterations, which need no more than the right direction, are done sooner.
FACTORED = 1000
# A step is one of several: a loose solution takes a third of the products of a tight one and generalizes as well.
_TOLERANCE = 0.4
_PRODUCTS = 60
# Residual up to which a solution in the space of the weights is refined.
_REFINED = 1e-3
# Random signs of the outputs that the mean over them is estimated from.
_DRAWS = 2


def operator_of(
    stage: Stage, point: Point, jacobian: StageJacobian, root: Float[Tensor, "..."], previous: Operator | None = None
) -> Operator:
    """Return H of the layers of a stage at a point, in the form that is solved soonest.

    Parameters
    ----------
    stage, point
        Which layers, and where.
    jacobian, root
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
    if isinstance(jacobian, PassJacobian):
        average = previous.average if isinstance(previous, ImplicitGram) and alike else None
        return _pass_gram(stage, jacobian, point.outputs, average)
    assert isinstance(jacobian, SignalJacobian)
    layers = jacobian.layers
    widest = max(max(layer.out_features, layer.in_features) for layer in layers)
    if any(layer.positions > 1 for layer in layers) or layers[0].samples > 2 * widest:
        return _factored_gram(layers)
    return _coupled_gram(stage, jacobian, point.outputs)


def readout_gram(stage: Stage, weight: float, outputs: int) -> IdenticalBlocks:
    """Return H of a readout with equal weights w: K = w² (A Aᵀ + 1) for every output.

    With many more rows than inputs K is known by its factor alone: below that A Aᵀ is at hand, and factored sooner.
    """
    layer = stage.boundary[0]
    if layer.overlap is not None:
        return IdenticalBlocks(DenseGram(weight**2 * layer.overlap), outputs)
    inputs = layer.inputs
    if layer.module.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    return IdenticalBlocks(JacobianGram(DenseJacobian(weight * inputs)), outputs)


def mean_over_outputs(
    jacobian: StageJacobian, overlaps: Sequence[Float[Tensor, "n n"]], like: Float[Tensor, "n k"]
) -> Float[Tensor, "n n"]:
    """Return the mean over the outputs of the blocks of H: E[(Δ s)(Δ s)ᵀ] ∘ A Aᵀ / k over random signs s.

    A few draws do, for neurons by the hundred average over them; few outputs are taken one by one.

    Parameters
    ----------
    jacobian
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
        for overlap, mixed in zip(overlaps, jacobian.vjp(signs.expand(n, k)), strict=True):
            total += (mixed[:, 0] @ mixed[:, 0].T).mul_(overlap)
    return total / k


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
        """Return H + λI made ready, from what was made for the same H, or for one with the same mean block."""
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
        return Primal(tolerance=_REFINED)
    if isinstance(block, DenseGram):
        return Cholesky()
    if isinstance(operator, ImplicitGram):
        return BlockCG(_TOLERANCE, _PRODUCTS, _PRODUCTS)
    return NystromCG(_TOLERANCE, max_iterations=_PRODUCTS)


def _pass_gram(
    stage: Stage, jacobian: PassJacobian, like: Float[Tensor, "n k"], average: Float[Tensor, "n n"] | None
) -> ImplicitGram:
    """H of boundary layers alone: no δ is stored."""

    def product(vectors: Float[Tensor, "nk c"]) -> Float[Tensor, "nk c"]:
        found = []
        for column in vectors.T:
            moves = zip(stage.boundary, jacobian.vjp(column.reshape(like.shape)), strict=True)
            found.append(jacobian.jvp([layer.response(move[:, 0]) for layer, move in moves]).reshape(-1))
        return torch.stack(found, dim=1)

    if average is None:
        average = mean_over_outputs(jacobian, [layer.gram for layer in stage.boundary], like)
    return ImplicitGram(product, average, like.shape[1])


def _factored_gram(layers: tuple[LayerRows, ...]) -> Operator:
    """H by rows of J, for several positions a sample or many more samples than neurons."""
    columns = {
        name: torch.empty(size, dtype=layer.dtype, device=layer.device)
        for layer in layers
        for name, size in zip(layer.names, (layer.out_features * layer.in_features, layer.out_features), strict=False)
    }
    block = RowBlock(layers, layers[0].samples, layers[0].outputs)
    gram = JacobianGram(FactoredJacobian([block], columns))
    return DenseGram(gram.dense(), layers[0].outputs) if gram.size <= FACTORED else gram


def _coupled_gram(stage: Stage, jacobian: SignalJacobian, outputs: Float[Tensor, "n k"]) -> Operator:
    """H by the overlaps of every layer."""
    boundary = [replace(rows, overlap=layer.gram) for rows, layer in zip(jacobian.layers, stage.boundary, strict=False)]
    layers = [*boundary, *(rows.with_overlap() for rows in jacobian.suffix_layers)]
    gram = CoupledGram(layers)
    if gram.size <= FACTORED:
        return DenseGram(gram.dense(), gram.outputs)
    overlaps = [rows.overlap for rows in layers if rows.overlap is not None]
    return ImplicitGram(gram.matvec, mean_over_outputs(jacobian, overlaps, outputs), gram.outputs)
