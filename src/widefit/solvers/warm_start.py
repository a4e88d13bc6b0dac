"""Solves that begin from what an earlier, similar system has left."""

from dataclasses import is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Operator
from widefit.solvers.base import Solution, Solver, solution


def solve_from(
    solver: Solver, operator: Operator, rhs: Float[Tensor, " n"], damping: float, guess: Float[Tensor, " n"] | None
) -> Solution:
    """Solve (H + damping I) g = rhs from a guess at g; a solver that knows no tolerance begins anew.

    The tolerance stays relative to `rhs`: a good guess takes few products, the best one takes the one that judges it.
    """
    told: Any = solver
    tolerance = getattr(solver, "tolerance", 0.0)
    if guess is None or not tolerance > 0 or not is_dataclass(solver):
        return solver.solve(operator, rhs, damping)
    image = operator.matvec(guess)
    left = rhs - image - damping * guess
    whole, rest = float(torch.linalg.vector_norm(rhs)), float(torch.linalg.vector_norm(left))
    if not rest < whole:
        return solver.solve(operator, rhs, damping)
    if rest <= tolerance * whole:
        return solution(guess, image, rhs, damping, 1, told.name)
    found = replace(told, tolerance=tolerance * whole / rest).solve(operator, left, damping)
    value, image = guess + found.value, image + found.image
    return solution(value, image, rhs, damping, found.iterations + 1, told.name, found.jitter)
