"""What a solver is: (H + λI) g = e in sample space, and what it reports about the answer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Jacobian, Operator


@dataclass(frozen=True)
class Solution:
    """The answer of a solver.

    Attributes
    ----------
    value
        g, shape (n,) or (n, c) as the right-hand side.
    residual_norm
        ‖(H + λI) g − e‖ / ‖e‖, recomputed from the operator; 0 for e = 0.
    iterations
        Matrix-vector products spent; 0 for a direct solver.
    jitter
        What a factorization had to add to the diagonal beyond λ; 0 when nothing was needed.
    solver
        Name of the solver that produced the value (another one than asked for after a fallback).
    """

    value: Float[Tensor, "n *c"]
    residual_norm: float
    iterations: int
    solver: str
    jitter: float = 0.0


@dataclass(frozen=True)
class Preconditioner:
    """What can outlive the H it was made for.

    Attributes
    ----------
    factor
        R, upper triangular with RᵀR ≈ H + λI.
    damping
        That λ.
    products
        Products with H that a solve took when the factor was fresh, and in the latest solve.
    """

    factor: Float[Tensor, "n n"]
    damping: float
    products: tuple[int, int]


class Prepared(ABC):
    """H + λI made ready (factored, preconditioned) for several right-hand sides."""

    @property
    def preconditioner(self) -> Preconditioner | None:
        """What a later, similar H may start from; None where there is nothing to hand on."""
        return None

    @abstractmethod
    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        """Solve (H + λI) g = rhs."""


class Solver(ABC):
    """A small immutable object with its tolerances as fields; holds no state between calls."""

    name: str

    def prepare(self, operator: Operator, damping: float, previous: Preconditioner | None = None) -> Prepared:
        """Do once what several right-hand sides share.

        Parameters
        ----------
        operator
            H.
        damping
            λ ≥ 0.
        previous
            From this solver and an earlier, similar H; used while it still works.
        """
        return Unprepared(self, operator, damping)

    @abstractmethod
    def solve(self, operator: Operator, rhs: Float[Tensor, "n *c"], damping: float) -> Solution:
        """Solve (H + damping I) g = rhs.

        Parameters
        ----------
        operator
            H, symmetric positive semi-definite, n × n.
        rhs
            Shape (n,) or (n, c), in the dtype of the operator.
        damping
            λ ≥ 0.
        """


@dataclass(frozen=True)
class Unprepared(Prepared):
    """Nothing to share: every right-hand side is solved from the start."""

    solver: Solver
    operator: Operator
    damping: float

    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        return self.solver.solve(self.operator, rhs, self.damping)


def relative_residual(
    operator: Operator, value: Float[Tensor, "n *c"], rhs: Float[Tensor, "n *c"], damping: float
) -> float:
    """‖(H + λI) g − e‖ / ‖e‖ from one product with the operator."""
    scale = torch.linalg.vector_norm(rhs)
    if scale == 0:
        return float(torch.linalg.vector_norm(value) > 0)
    return float(torch.linalg.vector_norm(operator.matvec(value) + damping * value - rhs) / scale)


def factor_of(operator: Operator) -> Jacobian:
    """J of H = J Jᵀ.

    Raises
    ------
    ValueError
        The operator knows no factor.
    """
    if operator.factor is None:
        raise ValueError(f"{type(operator).__name__} holds H without a factor J; use Cholesky, CG or NystromCG")
    return operator.factor
