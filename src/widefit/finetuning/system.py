"""(H + λI) g = r̃ for the layers of a stage: one n × n matrix for a read-out, the factored H otherwise."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.finetuning.direct import Direct
from widefit.gram import DenseGram, OuterGram, OuterLayer, shared_weight
from widefit.gram.jacobian import JacobianGram
from widefit.gram.khatri_rao import FactoredJacobian, OuterPart
from widefit.solvers import Cholesky, NystromCG, Prepared, Solution
from widefit.solvers.base import relative_residual
from widefit.solvers.pcg import preconditioned_cg

# Largest system that is factored: beyond it iterations, which need no more than the right direction, are sooner done.
FACTORED = 3000
_TOLERANCE = 0.05
_PRODUCTS = 60


class System(ABC):
    """H of one linearization.

    Attributes
    ----------
    scale
        Mean of the diagonal of H: what a relative λ is relative to.
    """

    scale: float

    @abstractmethod
    def solve(self, residual: Float[Tensor, "n k"], damping: float) -> Solution:
        """g, shape (n, k), with (H + λI) g = r̃."""

    @abstractmethod
    def image(self, step: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """H g."""


@dataclass
class Readout(System):
    """A read-out with equal weights: H = w² (A Aᵀ + 1) for every output, factored once for all steps and outputs.

    With more rows than inputs the system of the inputs, (Aᵀ A + λ/w²), takes its place.

    Attributes
    ----------
    layer
        The read-out.
    weight
        w.
    """

    layer: Direct
    weight: float
    _factors: dict[float, Prepared | Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inputs = self.layer.inputs.double().square().sum() / len(self.layer.inputs)
        self.scale = self.weight**2 * (float(inputs) + (self.layer.module.bias is not None))

    def solve(self, residual: Float[Tensor, "n k"], damping: float) -> Solution:
        if self.layer.overlap is None:
            return self._solve_inputs(residual, damping)
        if damping not in self._factors:
            gram = DenseGram(self.layer.overlap.double() * self.weight**2)
            self._factors = {damping: Cholesky().prepare(gram, damping)}
        prepared = self._factors[damping]
        assert isinstance(prepared, Prepared)
        found = prepared.solve(residual.double())
        return Solution(found.value.to(residual.dtype), found.residual_norm, 0, "cholesky", found.jitter)

    def image(self, step: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return self.weight**2 * self.layer.overlapped(step)

    def _solve_inputs(self, residual: Float[Tensor, "n k"], damping: float) -> Solution:
        """(r − F (FᵀF + λ)⁻¹ Fᵀ r) / λ with F = w [A, 1]."""
        ridge = damping / self.weight**2
        inputs = self.layer.inputs
        if self.layer.module.bias is not None:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        if ridge not in self._factors:
            normal = (inputs.T @ inputs).double()
            normal.diagonal().add_(ridge)
            self._factors = {ridge: torch.linalg.cholesky(normal)}
        factor = self._factors[ridge]
        assert isinstance(factor, Tensor)
        inner = torch.cholesky_solve(inputs.double().T @ residual.double(), factor)
        value = ((residual.double() - inputs.double() @ inner) / damping).to(residual.dtype)
        defect = torch.linalg.vector_norm(self.image(value) + damping * value - residual)
        size = torch.linalg.vector_norm(residual)
        return Solution(value, float(defect / size) if size > 0 else 0.0, 0, "primal-cholesky")


@dataclass
class Factored(System):
    """H from factors: formed and factored where it is small, else iterated behind the average over outputs.

    Attributes
    ----------
    gram
        H.
    """

    gram: OuterGram | JacobianGram

    def __post_init__(self) -> None:
        self.scale = float(self.gram.diagonal().double().mean())
        self._made: dict[float, Prepared | Tensor] = {}
        self._small: DenseGram | None = None
        if self.gram.size <= FACTORED:
            self._small = DenseGram(self.gram.dense())

    def solve(self, residual: Float[Tensor, "n k"], damping: float) -> Solution:
        flat = residual.reshape(-1)
        if self._small is None and isinstance(self.gram, OuterGram):
            found = self._iterate(self.gram, flat, damping)
        else:
            if damping not in self._made:
                solver = Cholesky() if self._small is not None else NystromCG(_TOLERANCE, max_iterations=_PRODUCTS)
                self._made = {damping: solver.prepare(self._small or self.gram, damping)}
            prepared = self._made[damping]
            assert isinstance(prepared, Prepared)
            found = prepared.solve(flat)
        return Solution(
            found.value.reshape(residual.shape), found.residual_norm, found.iterations, found.solver, found.jitter
        )

    def image(self, step: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return (self._small or self.gram).matmul(step.reshape(-1)).reshape(step.shape)

    def _iterate(self, gram: OuterGram, residual: Float[Tensor, " nk"], damping: float) -> Solution:
        if damping not in self._made:
            average = gram.average().double()
            average.diagonal().add_(damping)
            self._made = {damping: torch.linalg.cholesky(average)}
        factor = self._made[damping]
        assert isinstance(factor, Tensor)

        def precondition(vector: Float[Tensor, " nk"]) -> Float[Tensor, " nk"]:
            columns = vector.reshape(gram.samples, gram.outputs).double()
            return torch.cholesky_solve(columns, factor).reshape(-1).to(vector.dtype)

        value, products = preconditioned_cg(
            lambda v: gram.matmul(v) + damping * v, residual, precondition, _TOLERANCE, _PRODUCTS, _PRODUCTS
        )
        return Solution(value, relative_residual(gram, value, residual, damping), products, "average-cg")


def system_of(direct: Sequence[Direct], parts: list[OuterPart], previous: System | None = None) -> System:
    """H of the layers of a stage at one point.

    Parameters
    ----------
    direct
        Its direct layers, whose overlaps are known.
    parts
        Inputs and weighted signals of all layers, these first.
    previous
        The system of the step before; where H is still the same, so is its factor.
    """
    if len(parts) == 1 and direct:
        weight = shared_weight(parts[0].signals[:, :, 0])
        if weight is not None and weight > 0:
            if isinstance(previous, Readout) and previous.layer is direct[0] and previous.weight == weight:
                return previous
            return Readout(direct[0], weight)
    n, k = parts[0].signals.shape[:2]
    widest = max(max(part.signals.shape[3], part.inputs.shape[2]) for part in parts)
    if any(part.inputs.shape[1] > 1 for part in parts) or n > 2 * widest:
        columns = {
            name: torch.empty(shape, dtype=part.inputs.dtype)
            for part in parts
            for name, shape in zip(part.names, (_weight_shape(part), _weight_shape(part)[:1]), strict=False)
        }
        return Factored(JacobianGram(FactoredJacobian(list(parts), columns, n * k)))
    overlaps = [layer.overlap for layer in direct] + [None] * (len(parts) - len(direct))
    layers = [
        OuterLayer(part.signals[:, :, 0], _overlap(part) if overlap is None else overlap)
        for part, overlap in zip(parts, overlaps, strict=True)
    ]
    return Factored(OuterGram(layers))


def _weight_shape(part: OuterPart) -> tuple[int, int]:
    return part.signals.shape[3], part.inputs.shape[2]


def _overlap(part: OuterPart) -> Float[Tensor, "n n"]:
    inputs = part.inputs[:, 0]
    return inputs @ inputs.T + float(len(part.names) > 1)
