"""Conjugate gradients on (H + λI) g = e, preconditioned by the diagonal."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Operator
from widefit.solvers.base import Prepared, Solver
from widefit.solvers.pcg import Preconditioned


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

    def _prepare(self, operator: Operator, damping: float) -> Prepared:
        diagonal = operator.diagonal() + damping
        inverse = torch.where(diagonal > 0, 1 / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny), 0.0)
        return _Scaled(self, operator, damping, inverse)


@dataclass(frozen=True)
class _Scaled(Preconditioned):
    inverse: Float[Tensor, " n"]

    def precondition(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.inverse * vector
