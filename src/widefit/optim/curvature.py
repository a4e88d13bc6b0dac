"""d = −S(S J̃ᵀJ̃ S + λI)⁻¹ S J̃ᵀ w for several λ and w, by one factorization or in sample space."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import DenseGram, Jacobian, Operator
from widefit.gram.jacobian import DenseJacobian, JacobianGram
from widefit.gram.sharded import ShardedJacobian
from widefit.kernels.transfer import numbers
from widefit.optim.scaling import Scaling
from widefit.processes import ALONE, Alone
from widefit.solvers import Preconditioner, Reusing, Solver
from widefit.solvers.primal import normal_matrix

# Smallest relative λ behind singular values, and behind JᵀJ summed in float64.
SPECTRAL_FLOOR = 1e-17
NORMAL_FLOOR = 10 * torch.finfo(torch.float64).eps


class NonFiniteDerivativeError(ArithmeticError):
    """J̃ is not finite, or its squares are not."""


@dataclass(frozen=True)
class ParameterStep:
    """A step in parameter space, what it does to the outputs, and how well its system was solved.

    The defect, a part of the right-hand side, is left on the device.
    """

    value: Float[Tensor, " P"]
    image: Float[Tensor, " M"]
    defect: Float[Tensor, ""]
    iterations: int
    solver: str


class Curvature(ABC):
    """The damped Gauss-Newton matrix of one step, in parameters that are measured in sizes S.

    Attributes
    ----------
    sizes
        Diagonal of S, shape (P,); None: the identity. λ multiplies S⁻², a step is long where ‖S⁻¹d‖ is large.
    trace
        ‖J̃S‖²_F, the sum of its eigenvalues; a relative λ is a part of it.
    floor
        The smallest relative λ that its precision supports.
    column_norms
        Norms of the columns of J̃, the largest so far, shape (P,); None where they are not known.
    sums_squares
        Whether that precision is lost because JᵀJ was formed.
    """

    trace: float
    floor: float
    sizes: Float[Tensor, " P"] | None = None
    column_norms: Float[Tensor, " P"] | None = None
    sums_squares = False

    @property
    def preconditioner(self) -> Preconditioner | None:
        """Preconditioner that the curvature of the next step may start from."""
        return None

    def norm(self, change: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """‖S⁻¹ change‖, left on the device."""
        return torch.linalg.vector_norm(change if self.sizes is None else change / self.sizes)

    @abstractmethod
    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        """J̃ v."""

    @abstractmethod
    def gradient(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        """J̃ᵀ w."""

    @abstractmethod
    def direction(self, weights: Float[Tensor, " M"], damping: float) -> ParameterStep:
        """d and J̃ d for the given right-hand side and λ."""


class Spectral(Curvature):
    """Singular values of a stored J̃S, through the QR of its tall side: the most accurate, and any further λ for free.

    Costs about 2 M P min(M, P) + 20 min(M, P)³ flops in float64.

    Raises
    ------
    NonFiniteDerivativeError
        The derivative overflows.
    """

    def __init__(self, jacobian: DenseJacobian, residual: Float[Tensor, " M"], scaling: Scaling):
        self.dtype = residual.dtype
        norms = torch.linalg.vector_norm(jacobian.matrix, dim=0, dtype=torch.float64)
        self.column_norms = scaling.norms(finite(norms))
        self.sizes: Float[Tensor, " P"] = scaling.sizes(self.column_norms)
        self.residual = residual
        rows, columns = jacobian.shape
        # The residual rides along as one more column, so that Qᵀ r̃ comes out and Q need not be formed.
        augmented = torch.empty(rows, columns + 1, dtype=torch.float64, device=jacobian.device)
        self.matrix = torch.mul(jacobian.matrix, self.sizes, out=augmented[:, :columns])
        augmented[:, columns] = residual
        if rows >= columns:
            factor = torch.linalg.qr(augmented, mode="r")[1]
            left, self.singular, right = torch.linalg.svd(factor[:columns, :columns])
            self.projected = left.T @ factor[:columns, columns]
        else:
            factor = torch.linalg.qr(self.matrix.T, mode="r")[1]
            _, self.singular, right = torch.linalg.svd(factor)
        self.right = right
        self.trace = float(self.singular.square().sum())
        self.floor = SPECTRAL_FLOOR

    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return self._push(direction.to(torch.float64) / self.sizes).to(self.dtype)

    def gradient(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        return (self._pull(weights.to(torch.float64)) / self.sizes).to(self.dtype)

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> ParameterStep:
        known = weights is self.residual  # its projection came out of the QR, more accurate than the normal equations
        weights = weights.to(torch.float64)
        denominator = self.singular.square() + damping
        gradient = self._pull(weights)
        if self._wide:
            value = -self._pull(self.right.T @ ((self.right @ weights) / denominator))
        elif known:
            value = -self.right.T @ (self.singular * self.projected / denominator)
        else:
            value = -self.right.T @ ((self.right @ gradient) / denominator)
        image = self._push(value)
        defect = self._defect(gradient, value, image, damping)
        return ParameterStep((self.sizes * value).to(self.dtype), image.to(self.dtype), defect, 0, "svd")

    @property
    def _wide(self) -> bool:
        return self.matrix.shape[0] < self.matrix.shape[1]

    def _push(self, value: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        """J̃S v."""
        return self.matrix @ value

    def _pull(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        """S J̃ᵀ w."""
        return self.matrix.T @ weights

    def _defect(
        self, gradient: Float[Tensor, " P"], value: Float[Tensor, " P"], image: Float[Tensor, " M"], damping: float
    ) -> Float[Tensor, ""]:
        """(SJ̃ᵀJ̃S + λI) q + SJ̃ᵀw in the basis of the singular vectors: what rounding left of the equations."""
        curved = self._pull(image) if self._wide else self.right.T @ (self.singular.square() * (self.right @ value))
        scale = torch.linalg.vector_norm(gradient)
        defect = torch.linalg.vector_norm(curved + damping * value + gradient)
        return torch.where(scale > 0, defect / scale, 0.0)


class Primal(Curvature):
    """SJ̃ᵀJ̃S summed from blocks of rows, factored by Cholesky in float64: for fewer parameters than rows.

    M P² + P³/3 flops; memory P² numbers whatever M is.

    Raises
    ------
    NonFiniteDerivativeError
        The derivative overflows.
    """

    sums_squares = True

    def __init__(self, jacobian: Jacobian, solver: Solver, scaling: Scaling, processes: Alone = ALONE):
        self.jacobian = jacobian
        self.processes = processes
        self.solver = Reusing(solver)
        total = processes.sum(processes.attempt(lambda: normal_matrix(jacobian)))
        norms = total.diagonal().sqrt()
        self.column_norms = scaling.norms(norms)
        self.sizes: Float[Tensor, " P"] = scaling.sizes(self.column_norms)
        total.mul_(self.sizes).mul_(self.sizes[:, None])
        self.normal = DenseGram(total)
        self.trace = finite_trace(norms, total)
        self.floor = NORMAL_FLOOR

    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return self.jacobian.matvec(direction.to(self.jacobian.dtype)).to(direction.dtype)

    def gradient(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        pulled = self.jacobian.rmatvec(weights.to(self.jacobian.dtype))
        return self.processes.sum(pulled).to(weights.dtype)

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> ParameterStep:
        pulled = self.jacobian.rmatvec(weights.to(self.jacobian.dtype)).to(torch.float64)
        solution = self.solver.solve(self.normal, self.sizes * self.processes.sum(pulled), damping)
        value = self.processes.same(-(self.sizes * solution.value).to(weights.dtype))
        name = f"primal-{solution.solver}"
        return ParameterStep(value, self.image(value), solution.defect, solution.iterations, name)


class SampleSpace(Curvature):
    """d = −S(SJ̃ᵀ)(H + λI)⁻¹ w with H = J̃S SJ̃ᵀ: for more parameters than rows, by any solver.

    Parameters
    ----------
    jacobian
        J̃S, stored or not.
    solver
        Solves in sample space.
    form
        Form H (the solver needs its entries) or leave it as products with J̃.
    dtype
        Precision in which a formed H is summed.
    sizes
        S.
    previous
        Preconditioner of an earlier step.
    shards
        The rows of all processes, where several share them out: H is of all rows, and solved alike everywhere.

    Raises
    ------
    NonFiniteDerivativeError
        The derivative overflows.
    """

    def __init__(
        self,
        jacobian: Jacobian,
        solver: Solver,
        form: bool,
        dtype: torch.dtype,
        sizes: Float[Tensor, " P"] | None = None,
        previous: Preconditioner | None = None,
        shards: ShardedJacobian | None = None,
    ):
        self.own = jacobian
        self.shards = shards
        self.jacobian = jacobian = shards or jacobian
        self.solver = Reusing(solver, previous)
        self.sizes = sizes
        self.operator: Operator = DenseGram(jacobian.gram(dtype)) if form else JacobianGram(jacobian)
        self.trace = finite_sum(self.operator.diagonal())
        self.floor = rounding_floor(self.operator.dtype, jacobian.shape[0])

    @property
    def preconditioner(self) -> Preconditioner | None:
        return self.solver.preconditioner

    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        measured = direction if self.sizes is None else direction / self.sizes
        return self.own.matvec(measured.to(self.own.dtype)).to(direction.dtype)

    def gradient(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        everywhere = self._whole(weights.to(self.own.dtype))
        measured = self.jacobian.rmatvec(everywhere).to(weights.dtype)
        return measured if self.sizes is None else measured / self.sizes

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> ParameterStep:
        solution = self.solver.solve(self.operator, self._whole(weights.to(self.operator.dtype)), damping)
        value = -self.jacobian.rmatvec(solution.value.to(self.jacobian.dtype)).to(weights.dtype)
        # J̃ d = −H g, which the solver has already found.
        image = -(solution.image if self.shards is None else self.shards.part(solution.image)).to(weights.dtype)
        moved = value if self.sizes is None else self.sizes * value
        return ParameterStep(moved, image, solution.defect, solution.iterations, solution.solver)

    def _whole(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " N"]:
        """A vector of all rows, from that of the rows here."""
        return weights if self.shards is None else self.shards.whole(weights)


def rounding_floor(dtype: torch.dtype, rows: int) -> float:
    """The relative λ below which rounding decides: that of the entries of H, at random, moves its eigenvalues by about
    ε ‖J̃‖²_F / √M.
    """
    return 10 * torch.finfo(dtype).eps / rows**0.5


def finite(norms: Float[Tensor, " _"]) -> Float[Tensor, " _"]:
    """Norms or their squares, refused where their sum is not finite."""
    finite_sum(norms)
    return norms


def finite_trace(norms: Float[Tensor, " P"], scaled: Float[Tensor, "P P"]) -> float:
    """Trace of a matrix, refused where the norms that it was scaled by are not finite."""
    total, trace = numbers(norms.sum(), scaled.diagonal().sum())
    _refuse_infinite(total)
    return trace


def finite_sum(norms: Float[Tensor, " _"]) -> float:
    """Sum of norms or of their squares, refused where it is not finite."""
    total = float(norms.sum())
    _refuse_infinite(total)
    return total


def _refuse_infinite(total: float) -> None:
    if not math.isfinite(total):
        raise NonFiniteDerivativeError("the derivative of the outputs by the parameters is not finite")
