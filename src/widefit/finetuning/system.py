"""(H + λI) g = r̃ for the layers of a stage: one n × n matrix for a read-out, the factored H otherwise."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.finetuning.direct import Direct
from widefit.gram import CoupledGram, DenseGram
from widefit.gram.jacobian import JacobianGram
from widefit.solvers import Cholesky, NystromCG, Prepared, Solution
from widefit.solvers.base import solution
from widefit.solvers.pcg import preconditioned_cg

# Largest system that is factored: beyond it iterations, which need no more than the right direction, are sooner done.
FACTORED = 1000
# A step is one of several: a loose solution takes a third of the products of a tight one and generalizes as well.
_TOLERANCE = 0.4
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

    @property
    def average(self) -> Float[Tensor, "n n"]:
        """H of one output."""
        return self.weight**2 * self.layer.gram.double()

    def solve(self, residual: Float[Tensor, "n k"], damping: float) -> Solution:
        if len(self.layer.inputs) > self.layer.inputs.shape[1]:
            return self._solve_inputs(residual, damping)
        if damping not in self._factors:
            gram = DenseGram(self.average)
            self._factors = {damping: Cholesky().prepare(gram, damping)}
        prepared = self._factors[damping]
        assert isinstance(prepared, Prepared)
        found = prepared.solve(residual.double())
        return replace(found, value=found.value.to(residual.dtype))

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
        return solution(value, self.image(value), residual, damping, 0, "primal-cholesky")


@dataclass
class Factored(System):
    """H from factors: formed and factored where it is small, else behind a Nyström approximation.

    Attributes
    ----------
    gram
        H.
    """

    gram: CoupledGram | JacobianGram

    def __post_init__(self) -> None:
        self.scale = float(self.gram.diagonal().double().mean())
        self._made: dict[float, Prepared] = {}
        self._small = DenseGram(self.gram.dense()) if self.gram.size <= FACTORED else None

    def solve(self, residual: Float[Tensor, "n k"], damping: float) -> Solution:
        if damping not in self._made:
            solver = Cholesky() if self._small is not None else NystromCG(_TOLERANCE, max_iterations=_PRODUCTS)
            self._made = {damping: solver.prepare(self._small or self.gram, damping)}
        found = self._made[damping].solve(residual.reshape(-1))
        return replace(found, value=found.value.reshape(residual.shape), image=found.image.reshape(residual.shape))

    def image(self, step: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return (self._small or self.gram).matvec(step.reshape(-1)).reshape(step.shape)


class Averaged(System):
    """H by its products alone: conjugate gradients behind the mean of its blocks over the outputs.

    Parameters
    ----------
    product
        v ↦ H v, shapes (n, k).
    average
        That mean, or an estimate of it; shape (n, n).
    """

    def __init__(self, product: Callable[[Tensor], Tensor], average: Float[Tensor, "n n"]):
        self.average, self._product = average.double(), product
        self.scale = float(self.average.diagonal().mean())
        self._factors: dict[float, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def again(self, product: Callable[[Tensor], Tensor]) -> "Averaged":
        """Another product behind the same average and its factor."""
        other = Averaged(product, self.average)
        other._factors = self._factors
        return other

    def solve(self, residual: Float[Tensor, "n k"], damping: float) -> Solution:
        if damping not in self._factors:
            matrix = self.average.clone()
            matrix.diagonal().add_(damping)
            self._factors = {damping: torch.linalg.cholesky(matrix)}
        factor, flat = self._factors[damping], residual.reshape(-1)

        def product(vector: Float[Tensor, " nk"]) -> Float[Tensor, " nk"]:
            return self.image(vector.reshape(residual.shape)).reshape(-1)

        def precondition(vector: Float[Tensor, " nk"]) -> Float[Tensor, " nk"]:
            columns = vector.reshape(residual.shape).double()
            return torch.cholesky_solve(columns, factor).reshape(-1).to(vector.dtype)

        value, image, products = preconditioned_cg(
            product, damping, flat, precondition, _TOLERANCE, _PRODUCTS, _PRODUCTS
        )
        value, image = value.reshape(residual.shape), image.reshape(residual.shape)
        return solution(value, image, residual, damping, products, "average-cg")

    def image(self, step: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        # The last one is asked for again: for its true residual, and for the decrease that it predicts.
        if self._last is None or self._last[0].data_ptr() != step.data_ptr():
            self._last = step, self._product(step)
        return self._last[1]
