"""Conjugate gradients on (H + λI) g = e, preconditioned by the diagonal."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import GramOperator
from widefit.solvers.base import Solution, Solver, relative_residual


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

    def solve(self, operator: GramOperator, rhs: Float[Tensor, "n *c"], damping: float) -> Solution:
        if rhs.ndim == 1:
            value, iterations = self._column(operator, rhs, damping)
        else:
            pairs = [self._column(operator, column, damping) for column in rhs.T]
            value = torch.stack([pair[0] for pair in pairs], dim=1)
            iterations = max(pair[1] for pair in pairs)
        return Solution(value, relative_residual(operator, value, rhs, damping), iterations, self.name)

    def _column(self, operator: GramOperator, rhs: Float[Tensor, " n"], damping: float) -> tuple[Tensor, int]:
        def apply(v: Tensor) -> Tensor:
            return operator.matmul(v) + damping * v

        diagonal = operator.diagonal() + damping
        inverse = torch.where(diagonal > 0, 1 / diagonal.clamp_min(torch.finfo(rhs.dtype).tiny), 0.0)
        limit = self.max_iterations if self.max_iterations is not None else 10 * operator.size
        goal = self.tolerance * float(torch.linalg.vector_norm(rhs))

        value = torch.zeros_like(rhs)
        residual = rhs.clone()
        best, best_norm = value, math.inf
        direction = preconditioned = inverse * residual
        rho = torch.dot(residual, preconditioned)
        for iteration in range(limit):
            norm = float(torch.linalg.vector_norm(residual))
            if norm < best_norm:
                best, best_norm = value, norm
            if norm <= goal or rho <= 0:
                return best, iteration
            image = apply(direction)
            curvature = torch.dot(direction, image)
            if curvature <= 0:  # rounding has exhausted the range of H
                return best, iteration + 1
            step = rho / curvature
            value = value + step * direction
            residual = rhs - apply(value) if (iteration + 1) % self.recompute == 0 else residual - step * image
            preconditioned = inverse * residual
            rho, previous = torch.dot(residual, preconditioned), rho
            direction = preconditioned + (rho / previous) * direction
        return (value if float(torch.linalg.vector_norm(residual)) < best_norm else best), limit
