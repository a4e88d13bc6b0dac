"""d = −(J̃ᵀJ̃ + λI)⁻¹ J̃ᵀ w for several λ and w, by one factorization or in sample space."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import DenseGram, Jacobian, Operator
from widefit.gram.jacobian import DenseJacobian, JacobianGram
from widefit.solvers import Preconditioner, Reusing, Solver
from widefit.solvers.primal import normal_matrix


@dataclass(frozen=True)
class Direction:
    """A direction in parameter space, what it does to the outputs, and how well its system was solved."""

    value: Float[Tensor, " P"]
    image: Float[Tensor, " M"]
    residual_norm: float
    iterations: int
    solver: str


class Curvature(ABC):
    """The Gauss-Newton matrix of one step.

    Attributes
    ----------
    scale
        ‖J̃‖²_F, the sum of its eigenvalues: what a relative λ is relative to.
    floor
        The smallest relative λ that its precision supports.
    """

    scale: float
    floor: float

    @property
    def preconditioner(self) -> Preconditioner | None:
        """What the next step's curvature may start from."""
        return None

    @abstractmethod
    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        """J̃ v."""

    @abstractmethod
    def direction(self, weights: Float[Tensor, " M"], damping: float) -> Direction:
        """d and J̃ d for the given right-hand side and λ."""


class Spectral(Curvature):
    """Singular values of a stored J̃, through the QR of its tall side: the most accurate, and any further λ for free.

    Costs about 2 M P min(M, P) + 20 min(M, P)³ flops in float64.
    """

    def __init__(self, jacobian: DenseJacobian, residual: Float[Tensor, " M"]):
        self.dtype = jacobian.dtype
        self.matrix = jacobian.matrix.to(torch.float64)
        self.residual = residual
        rows, columns = self.matrix.shape
        target = residual.to(torch.float64)
        if rows >= columns:
            # The residual rides along as one more column, so that Qᵀ r̃ comes out and Q need not be formed.
            factor = torch.linalg.qr(torch.cat([self.matrix, target[:, None]], dim=1), mode="r")[1]
            left, self.singular, right = torch.linalg.svd(factor[:columns, :columns])
            self.projected = left.T @ factor[:columns, columns]
        else:
            factor = torch.linalg.qr(self.matrix.T, mode="r")[1]
            _, self.singular, right = torch.linalg.svd(factor)
        self.right = right
        self.scale = float(self.singular.square().sum())
        self.floor = 10 * torch.finfo(torch.float64).eps ** 2 + 1e-17

    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return (self.matrix @ direction.to(torch.float64)).to(self.dtype)

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> Direction:
        known = weights is self.residual  # its projection came out of the QR, more accurate than the normal equations
        weights = weights.to(torch.float64)
        denominator = self.singular.square() + damping
        if self.matrix.shape[0] < self.matrix.shape[1]:
            value = -self.matrix.T @ (self.right.T @ ((self.right @ weights) / denominator))
        elif known:
            value = -self.right.T @ (self.singular * self.projected / denominator)
        else:
            value = -self.right.T @ ((self.right @ (self.matrix.T @ weights)) / denominator)
        image = self.matrix @ value
        # (J̃ᵀJ̃ + λI) d + J̃ᵀw in the basis of the singular vectors: what rounding left of the equations.
        return Direction(value.to(self.dtype), image.to(self.dtype), self._defect(weights, value, damping), 0, "svd")

    def _defect(self, weights: Float[Tensor, " M"], value: Float[Tensor, " P"], damping: float) -> float:
        gradient = self.matrix.T @ weights
        if self.matrix.shape[0] >= self.matrix.shape[1]:
            image = self.right.T @ (self.singular.square() * (self.right @ value))
        else:
            image = self.matrix.T @ (self.matrix @ value)
        size = torch.linalg.vector_norm(gradient)
        return float(torch.linalg.vector_norm(image + damping * value + gradient) / size) if size > 0 else 0.0


class Primal(Curvature):
    """J̃ᵀJ̃ summed from blocks of rows, factored by Cholesky in float64: for fewer parameters than rows.

    M P² + P³/3 flops; memory P² numbers whatever M is.
    """

    def __init__(self, jacobian: Jacobian, solver: Solver):
        self.jacobian = jacobian
        self.solver = Reusing(solver)
        total = normal_matrix(jacobian)
        self.normal = DenseGram(total)
        self.scale = float(total.diagonal().sum())
        self.floor = 10 * torch.finfo(torch.float64).eps

    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return self.jacobian.matvec(direction)

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> Direction:
        gradient = self.jacobian.rmatvec(weights).to(torch.float64)
        solution = self.solver.solve(self.normal, gradient, damping)
        value = -solution.value.to(self.jacobian.dtype)
        image = self.jacobian.matvec(value)
        return Direction(value, image, solution.residual_norm, solution.iterations, f"primal-{solution.solver}")


class SampleSpace(Curvature):
    """d = −J̃ᵀ (H + λI)⁻¹ w with H = J̃ J̃ᵀ: for more parameters than rows, by any solver.

    Parameters
    ----------
    jacobian
        J̃, stored or not.
    solver
        Solves in sample space.
    form
        Form H (the solver needs its entries) or leave it as products with J̃.
    dtype
        In which a formed H is summed.
    previous
        What the solver left from an earlier step.
    """

    def __init__(
        self, jacobian: Jacobian, solver: Solver, form: bool, dtype: torch.dtype, previous: Preconditioner | None = None
    ):
        self.jacobian = jacobian
        self.operator: Operator = DenseGram(jacobian.gram(dtype)) if form else JacobianGram(jacobian)
        self.scale = float(self.operator.diagonal().sum())
        # Rounding of the entries of H, at random, moves its eigenvalues by about ε ‖J̃‖²_F / √M.
        self.floor = 10 * torch.finfo(self.operator.dtype).eps / jacobian.shape[0] ** 0.5
        self.solver = Reusing(solver, previous)

    @property
    def preconditioner(self) -> Preconditioner | None:
        return self.solver.preconditioner

    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return self.jacobian.matvec(direction.to(self.jacobian.dtype)).to(direction.dtype)

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> Direction:
        solution = self.solver.solve(self.operator, weights.to(self.operator.dtype), damping)
        value = -self.jacobian.rmatvec(solution.value.to(self.jacobian.dtype)).to(weights.dtype)
        # J̃ d = −H g, which the solver has already found.
        image = -solution.image.to(weights.dtype)
        return Direction(value, image, solution.residual_norm, solution.iterations, solution.solver)
