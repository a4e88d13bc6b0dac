"""Conjugate gradients on (H + λI) g = e, preconditioned by the diagonal."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Operator
from widefit.solvers.base import Solution, Solver
from widefit.solvers.pcg import solve_damped


@dataclass(frozen=True)
class CG(Solver):
    """Conjugate gradients (Hestenes and Stiefel 1952) with a Jacobi preconditioner: one product with H per iteration.

    Parameters
    ----------
    tolerance
        Stop at ‖(H + λI) g − e‖ ≤ tolerance ‖e‖.
    max_iterations
        Upper bound on the products with H; None: 10 n.
    recompute
        Every so many iterations the residual is computed afresh, because the recurrence drifts away from it.
    """

    tolerance: float = 1e-6
    max_iterations: int | None = None
    recompute: int = 50
    name: str = "cg"

    def solve(self, operator: Operator, rhs: Float[Tensor, "n *c"], damping: float) -> Solution:
        diagonal = operator.diagonal() + damping
        inverse = torch.where(diagonal > 0, 1 / diagonal.clamp_min(torch.finfo(rhs.dtype).tiny), 0.0)
        return solve_damped(self, operator, damping, lambda v: inverse * v, rhs)
