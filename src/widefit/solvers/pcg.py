"""The loop that every conjugate-gradient solver shares: preconditioned, judged by true residuals."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Operator
from widefit.kernels.transfer import iterations_ahead, numbers
from widefit.solvers.base import Preconditioner, Prepared, Solution, solution

# Checks of the true residual without a gain of a tenth, after which rounding has won.
_PATIENCE = 10


@runtime_checkable
class Iterative(Protocol):
    """Settings of a solver that iterates: see `preconditioned_cg`."""

    @property
    def name(self) -> str: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def max_iterations(self) -> int | None: ...
    @property
    def recompute(self) -> int: ...


@dataclass(frozen=True)
class Preconditioned(Prepared):
    """(H + λI) g = e by conjugate gradients, column by column; the products reported are the sum over the columns.

    Attributes
    ----------
    solver
        Its tolerance, limit (None: 10 n products a column) and name.
    operator
        H.
    damping
        λ.
    """

    solver: Iterative
    operator: Operator
    damping: float

    @abstractmethod
    def precondition(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """v ↦ M⁻¹ v, M ≈ H + λI."""

    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        told = self.solver
        limit = told.max_iterations if told.max_iterations is not None else 10 * self.operator.size
        found = [
            preconditioned_cg(
                self.operator.matvec, self.damping, column, self.precondition, told.tolerance, limit, told.recompute
            )
            for column in rhs.reshape(len(rhs), -1).T
        ]
        values, images, products = zip(*found, strict=True)
        value = torch.stack(values, dim=1).reshape(rhs.shape)
        image = torch.stack(images, dim=1).reshape(rhs.shape)
        return solution(value, image, rhs, self.damping, sum(products), told.name)


@dataclass(frozen=True)
class FactorPreconditioned(Preconditioned):
    """Conjugate gradients behind a triangular factor that can outlive its H.

    Attributes
    ----------
    factor
        Triangle as in `Preconditioner`; None: no preconditioner.
    products
        With H that each solve took, the first of them with the factor fresh.
    """

    factor: Float[Tensor, "r r"] | None
    products: list[int] = field(default_factory=list)

    @property
    def preconditioner(self) -> Preconditioner | None:
        if self.factor is None or not self.products:
            return None
        return Preconditioner(self.factor, self.damping, (self.products[0], self.products[-1]))

    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        found = super().solve(rhs)
        self.products.append(found.iterations)
        return found


def preconditioned_cg(
    product: Callable[[Tensor], Tensor],
    damping: float,
    rhs: Float[Tensor, " n"],
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    limit: int,
    recompute: int,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], int]:
    """The best g found for A = H + λI, H g, and the products with H that it took (Hestenes and Stiefel 1952).

    Parameters
    ----------
    product
        v ↦ H v, H symmetric positive semi-definite.
    damping
        λ.
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
    value = best = best_image = torch.zeros_like(rhs)
    residual, products, stalled = rhs.clone(), 0, 0
    direction = preconditioned = precondition(residual)
    rho = previous = torch.dot(residual, preconditioned)
    best_norm = goal = math.inf
    told = [torch.stack([torch.ones_like(rho), torch.linalg.vector_norm(rhs), rho])]
    states = [(value, residual, direction, preconditioned, rho, previous)]
    # On the host the start is looked at by itself, on a device together with the first iterations.
    ahead = 0 if rhs.device.type == "cpu" else min(iterations_ahead(rhs.device), limit, recompute)
    while True:
        for number in range(ahead):
            if products + number > 0:
                direction = preconditioned + (rho / previous) * direction
            moved = product(direction) + damping * direction
            curvature = torch.dot(direction, moved)
            step = torch.where(curvature > 0, rho / curvature, 0.0)
            value = value + step * direction
            residual = residual - step * moved
            preconditioned = precondition(residual)
            rho, previous = torch.dot(residual, preconditioned), rho
            told.append(torch.stack([curvature, torch.linalg.vector_norm(residual), rho]))
            states.append((value, residual, direction, preconditioned, rho, previous))
        # One transfer from the device for all of them; those beyond the end are as if they had not been.
        for (bend, norm, following), state in zip(torch.stack(told).tolist(), states, strict=True):
            value, residual, direction, preconditioned, rho, previous = state
            if goal == math.inf:
                best_norm, goal = norm, tolerance * norm
            else:
                products += 1
            positive = following > 0
            if not bend > 0 or norm <= goal or not positive:
                break
        exhausted = not bend > 0  # by rounding, the range of A
        if products > 0 and (exhausted or norm <= goal or products % recompute == 0 or products >= limit):
            image = product(value)
            residual = rhs - (image + damping * value)
            preconditioned = precondition(residual)
            rho = torch.dot(residual, preconditioned)
            norm, following = numbers(torch.linalg.vector_norm(residual), rho)
            positive = following > 0
            stalled = 0 if norm < 0.9 * best_norm else stalled + 1
            if norm < best_norm:
                best = value
                best_image = image
                best_norm = norm
        if exhausted or not (norm > goal and positive and products < limit and stalled < _PATIENCE):
            return best, best_image, products
        ahead = min(iterations_ahead(rhs.device, products), limit - products, recompute - products % recompute)
        told, states = [], []
