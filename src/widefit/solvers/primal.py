"""The solver through parameter space: H = J Jᵀ of fewer parameters than rows is never formed."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import DenseGram, Jacobian, Operator
from widefit.gram.jacobian import add_lower_gram, mirror_lower
from widefit.solvers.base import Prepared, Solution, Solver, factor_of, solution
from widefit.solvers.cholesky import Cholesky, Empty, damped_factor

# Rows that are widened to float64 at a time.
PIECE = 1 << 12
# Most refinements of an answer; each takes what cancels in e − J y down by a factor of ε ‖H‖ / λ.
_REFINEMENTS = 3


@dataclass(frozen=True)
class Primal(Solver):
    """(J Jᵀ + λ)⁻¹ e = (e − J (JᵀJ + λ)⁻¹ Jᵀ e) / λ, JᵀJ + λI factored in float64 (Woodbury).

    For P parameters n P² + P³/3 flops and P² numbers, whatever n is. The difference cancels where λ is small against H;
    refinement by the true residual makes up for it. With λ = 0 the answer is the pseudo-inverse of H times e.

    Parameters
    ----------
    max_jitter
        Largest multiple of the mean of diag JᵀJ that may be added to make the factorization succeed.
    tolerance
        ‖(H + λI) g − e‖ / ‖e‖ at which refinement ends; 0: when it no longer helps.

    Raises
    ------
    ValueError
        The operator knows no factor J.
    ArithmeticError
        H is not finite, or JᵀJ stays indefinite with the largest jitter.
    """

    max_jitter: float = Cholesky.max_jitter
    tolerance: float = 0.0
    name: str = "primal"

    def _prepare(self, operator: Operator, damping: float) -> Prepared:
        jacobian = factor_of(operator)
        normal = normal_matrix(jacobian)
        found = damped_factor(DenseGram(normal), damping, self.max_jitter)
        return Empty(self.name) if found is None else _Primal(operator, jacobian, damping, *found, self)


def normal_matrix(jacobian: Jacobian) -> Float[Tensor, "P P"]:
    """JᵀJ in float64, from blocks of rows."""
    size = jacobian.shape[1]
    total = torch.zeros(size, size, dtype=torch.float64, device=jacobian.device)
    for _, block in jacobian.row_blocks():
        for piece in block.split(PIECE):
            add_lower_gram(total, piece.to(torch.float64).T)
    return mirror_lower(total)


@dataclass(frozen=True)
class _Primal(Prepared):
    operator: Operator
    jacobian: Jacobian
    damping: float
    jitter: float
    factor: Float[Tensor, "P P"]
    solver: Primal

    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        columns = rhs.reshape(len(rhs), -1)
        value, image = torch.zeros_like(columns), torch.zeros_like(columns)
        found = solution(value, image, columns, self.damping, 0, self.solver.name, self.jitter)
        for _ in range(1 + _REFINEMENTS):
            value = found.value + self._once(columns - found.image - self.damping * found.value)
            better = solution(
                value, self.operator.matvec(value), columns, self.damping, 0, self.solver.name, self.jitter
            )
            if not better.residual_norm < 0.5 * found.residual_norm:
                break
            found = better
            if found.residual_norm <= self.solver.tolerance:
                break
        value, image = found.value.reshape(rhs.shape), found.image.reshape(rhs.shape)
        return solution(value, image, rhs, self.damping, 0, self.solver.name, self.jitter)

    def _once(self, columns: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        inner = torch.cholesky_solve(self.jacobian.rmatvec(columns).to(torch.float64), self.factor)
        if self.damping == 0:
            return self.jacobian.matvec(torch.cholesky_solve(inner, self.factor).to(columns.dtype))
        return (columns - self.jacobian.matvec(inner.to(columns.dtype))) / self.damping
