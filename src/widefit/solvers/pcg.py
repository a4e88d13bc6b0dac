"""The loop that every conjugate-gradient solver shares: preconditioned, with true residuals and a stop when rounding has won."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

# A stretch between two true residuals that gains less than this is stagnation, unless the recurrence still agrees with them.
_STALLED = 0.9
_DRIFT = 2.0


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
        Every so many iterations the residual is computed afresh, because the recurrence drifts away from it. When the true
        residual has stopped falling while the recurrence pretends that it falls, rounding has won and the loop ends.
    """
    goal = tolerance * float(torch.linalg.vector_norm(rhs))
    value = torch.zeros_like(rhs)
    residual = rhs.clone()
    best, best_norm = value, math.inf
    checked = math.inf
    direction = preconditioned = precondition(residual)
    rho = torch.dot(residual, preconditioned)
    products = 0
    while True:
        norm = float(torch.linalg.vector_norm(residual))
        if norm < best_norm:
            best, best_norm = value, norm
        if norm <= goal or not rho > 0 or products >= limit:
            return best, products
        image = apply(direction)
        products += 1
        curvature = torch.dot(direction, image)
        if not curvature > 0:  # rounding has exhausted the range of A
            return best, products
        step = rho / curvature
        value = value + step * direction
        residual = residual - step * image
        if products % recompute == 0 and products < limit:
            claimed = float(torch.linalg.vector_norm(residual))
            residual = rhs - apply(value)
            products += 1
            true = float(torch.linalg.vector_norm(residual))
            if true > _STALLED * checked and true > _DRIFT * claimed:
                return (value if true < best_norm else best), products
            best_norm, checked = max(best_norm, min(true, checked)), true
        preconditioned = precondition(residual)
        rho, previous = torch.dot(residual, preconditioned), rho
        direction = preconditioned + (rho / previous) * direction


def solve_columns(
    solve_one: Callable[[Float[Tensor, " n"]], tuple[Tensor, int]], rhs: Float[Tensor, "n *c"]
) -> tuple[Float[Tensor, "n *c"], int]:
    """Column by column; the products reported are the sum over the columns."""
    if rhs.ndim == 1:
        return solve_one(rhs)
    pairs = [solve_one(column) for column in rhs.T]
    return torch.stack([value for value, _ in pairs], dim=1), sum(products for _, products in pairs)
