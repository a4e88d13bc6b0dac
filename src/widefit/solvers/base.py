"""Solvers of (H + λI) g = e in sample space, and what they report about the answer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Jacobian, Operator
from widefit.gram.identical_blocks import IdenticalBlocks

# A preconditioner made for an earlier H is kept while it costs at most so many times the products of a fresh one.
_WORN = 2.0


@dataclass(frozen=True)
class Solution:
    """The answer of a solver.

    Attributes
    ----------
    value
        g, shape (n,) or (n, c) as the right-hand side.
    image
        H g, from the operator.
    defect
        ‖(H + λI) g − e‖ / ‖e‖, from `image`, left on the device; 0 for e = 0.
    iterations
        Matrix-vector products spent; 0 for a direct solver.
    solver
        Name of the solver that produced the value.
    jitter
        Number that a factorization had to add to the diagonal beyond λ; 0 when nothing was needed.
    """

    value: Float[Tensor, "n *c"]
    image: Float[Tensor, "n *c"]
    defect: Float[Tensor, ""]
    iterations: int
    solver: str
    jitter: float = 0.0

    @cached_property
    def residual_norm(self) -> float:
        """`defect` as a number of the host."""
        return float(self.defect)


@dataclass(frozen=True)
class Preconditioner:
    """A factorization that can outlive the H it was made for.

    Attributes
    ----------
    factor
        Triangular: upper R with RᵀR ≈ H + λI, or lower L with L Lᵀ ≈ H̄ + λI, as its solver makes it.
    damping
        That λ.
    products
        Products with H that a solve took when the factor was fresh, and in the latest solve.
    """

    factor: Float[Tensor, "r r"]
    damping: float
    products: tuple[int, int]

    def still_works(self, size: int, damping: float) -> bool:
        """Whether it pays for another H: same size, a similar λ, and products that have not grown much."""
        fresh, latest = self.products
        similar = self.damping / 10 <= damping <= self.damping * 10
        return len(self.factor) == size and similar and latest <= _WORN * max(fresh, 5)


class Prepared(ABC):
    """H + λI made ready (factored, preconditioned) for several right-hand sides."""

    @property
    def preconditioner(self) -> Preconditioner | None:
        """Start for a later, similar H; None where there is nothing to hand on."""
        return None

    @abstractmethod
    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        """Solve (H + λI) g = rhs, for one or several right-hand sides in the dtype of the operator."""


class Solver(ABC):
    """A small immutable object with its tolerances as fields; holds no state between calls."""

    name: str

    @abstractmethod
    def _prepare(self, operator: Operator, damping: float) -> Prepared:
        """Do once what several right-hand sides share."""

    def prepare(self, operator: Operator, damping: float) -> Prepared:
        """Do once what several right-hand sides share; once for all outputs where these have the same block of H.

        Parameters
        ----------
        operator
            H, symmetric positive semi-definite, n × n.
        damping
            λ ≥ 0.
        """
        if isinstance(operator, IdenticalBlocks):
            return _EachOutput(self._prepare(operator.kernel, damping), operator.kernel.size)
        return self._prepare(operator, damping)

    def carry_over(self, kept: Preconditioner, operator: Operator, damping: float) -> Prepared | None:
        """Prepare from what an earlier, similar H has left; None where that is of no use."""
        return None

    def solve(self, operator: Operator, rhs: Float[Tensor, "n *c"], damping: float) -> Solution:
        """Solve (H + damping I) g = rhs, for one or several right-hand sides in the dtype of the operator."""
        return self.prepare(operator, damping).solve(rhs)


class Reusing:
    """A solver that prepares a system once, and starts the next one from what the last has left.

    For the time in which one operator is solved with several times: an operator that changes in place must not be
    handed in again.

    Parameters
    ----------
    solver
        Does the work.
    preconditioner
        From an earlier run of the same solver.
    """

    def __init__(self, solver: Solver, preconditioner: Preconditioner | None = None):
        self.solver = solver
        self._kept = preconditioner
        self._operator: Operator | None = None
        self._damping = 0.0
        self._prepared: Prepared | None = None

    @property
    def preconditioner(self) -> Preconditioner | None:
        """Start for the next system."""
        latest = None if self._prepared is None else self._prepared.preconditioner
        return self._kept if latest is None else latest

    def prepare(self, operator: Operator, damping: float) -> Prepared:
        """H + λI made ready, the same object as last time for the same operator and λ."""
        if self._prepared is None or self._operator is not operator or self._damping != damping:
            kept = self.preconditioner
            carried = None if kept is None else self.solver.carry_over(kept, operator, damping)
            self._kept = kept
            self._prepared = self.solver.prepare(operator, damping) if carried is None else carried
            self._operator = operator
            self._damping = damping
        return self._prepared

    def solve(self, operator: Operator, rhs: Float[Tensor, "n *c"], damping: float) -> Solution:
        """Solve (H + damping I) g = rhs."""
        return self.prepare(operator, damping).solve(rhs)


@dataclass(frozen=True)
class _EachOutput(Prepared):
    """K ⊗ I solved with K alone, the outputs being more right-hand sides."""

    prepared: Prepared
    samples: int

    @property
    def preconditioner(self) -> Preconditioner | None:
        return self.prepared.preconditioner

    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        found = self.prepared.solve(rhs.reshape(self.samples, -1))
        return replace(found, value=found.value.reshape(rhs.shape), image=found.image.reshape(rhs.shape))


def solution(
    value: Float[Tensor, "n *c"],
    image: Float[Tensor, "n *c"],
    rhs: Float[Tensor, "n *c"],
    damping: float,
    iterations: int,
    solver: str,
    jitter: float = 0.0,
) -> Solution:
    """A solution with its defect, from g and H g."""
    scale = torch.linalg.vector_norm(rhs)
    left = torch.linalg.vector_norm(image + damping * value - rhs)
    defect = torch.where(scale > 0, left / scale, value.any().to(scale.dtype))
    return Solution(value, image, defect, iterations, solver, jitter)


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
