"""The loop that every conjugate-gradient solver shares: preconditioned, judged by true residuals."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Operator
from widefit.solvers.base import Solution, relative_residual

# Checks of the true residual without a gain of a tenth, after which rounding has won.
_PATIENCE = 10


@runtime_checkable
class Iterative(Protocol):
    """What a solver that iterates is told: see `preconditioned_cg`."""

    @property
    def name(self) -> str: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def max_iterations(self) -> int | None: ...
    @property
    def recompute(self) -> int: ...


def solve_damped(
    solver: Iterative,
    operator: Operator,
    damping: float,
    precondition: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]],
    rhs: Float[Tensor, "n *c"],
) -> Solution:
    """(H + λI) g = e, column by column; the products reported are the sum over the columns.

    Parameters
    ----------
    solver
        Its tolerance, limit (None: 10 n products a column) and name.
    operator
        H.
    damping
        λ.
    precondition
        v ↦ M⁻¹ v, M ≈ H + λI.
    rhs
        e, one or several columns.
    """
    limit = solver.max_iterations if solver.max_iterations is not None else 10 * operator.size

    def apply(vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return operator.matvec(vector) + damping * vector

    columns = rhs[:, None] if rhs.ndim == 1 else rhs
    found = [
        preconditioned_cg(apply, column, precondition, solver.tolerance, limit, solver.recompute)
        for column in columns.T
    ]
    value = torch.stack([column for column, _ in found], dim=1).reshape(rhs.shape)
    return Solution(
        value, relative_residual(operator, value, rhs, damping), sum(products for _, products in found), solver.name
    )


def preconditioned_cg(
    apply: Callable[[Tensor], Tensor],
    rhs: Float[Tensor, " n"],
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    limit: int,
    recompute: int,
) -> tuple[Float[Tensor, " n"], int]:
    """The best iterate found, and the products with A that it took (Hestenes and Stiefel 1952).

    Parameters
    ----------
    apply
        v ↦ A v, A symmetric positive semi-definite.
    precondition
        v ↦ M⁻¹ v.
    tolerance
        Stop at ‖A g − e‖ ≤ tolerance ‖e‖.
    limit
        Upper bound on the products.
    recompute
        Every so many iterations, and before any answer, the residual is computed afresh, because the recurrence
        drifts away from it. The loop ends when the true one has stopped falling, whatever the recurrence pretends.
    """
    best_norm = norm = float(torch.linalg.vector_norm(rhs))
    goal = tolerance * norm
    value = best = torch.zeros_like(rhs)
    residual, products, stalled = rhs.clone(), 0, 0
    direction = preconditioned = precondition(residual)
    rho = torch.dot(residual, preconditioned)
    positive = norm > goal and bool(rho > 0)
    while norm > goal and positive and products < limit and stalled < _PATIENCE:
        image = apply(direction)
        products += 1
        curvature = torch.dot(direction, image)
        step = torch.where(curvature > 0, rho / curvature, 0.0)
        value = value + step * direction
        residual = residual - step * image
        preconditioned = precondition(residual)
        rho, previous = torch.dot(residual, preconditioned), rho
        # One transfer from the device an iteration.
        bend, norm, following = torch.stack([curvature, torch.linalg.vector_norm(residual), rho]).tolist()
        positive = following > 0
        if not bend > 0 or norm <= goal or products % recompute == 0 or products >= limit:
            residual = rhs - apply(value)
            norm = float(torch.linalg.vector_norm(residual))
            stalled = 0 if norm < 0.9 * best_norm else stalled + 1
            if norm < best_norm:
                best, best_norm = value, norm
            if not bend > 0:  # rounding has exhausted the range of A
                break
            preconditioned = precondition(residual)
            rho = torch.dot(residual, preconditioned)
            positive = bool(rho > 0)
        direction = preconditioned + (rho / previous) * direction
    return best, products
