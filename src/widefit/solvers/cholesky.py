"""The direct solver: factor H + λI in float64, adding jitter only when the factorization fails without it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import GramOperator
from widefit.solvers.base import Solution, Solver, relative_residual


@dataclass(frozen=True)
class Cholesky(Solver):
    """Dense Cholesky factorization: n³/3 flops and 2 n² float64 numbers.

    Parameters
    ----------
    max_jitter
        Largest multiple of the mean of diag H that may be added to make the factorization succeed.

    Raises
    ------
    ArithmeticError
        H is not finite, or stays indefinite with the largest jitter.
    """

    max_jitter: float = 1e-3
    name: str = "cholesky"

    def solve(self, operator: GramOperator, rhs: Float[Tensor, "n *c"], damping: float) -> Solution:
        matrix = operator.dense().to(torch.float64)
        diagonal = matrix.diagonal()
        scale = float(diagonal.mean())
        target = rhs.to(torch.float64)
        if not torch.isfinite(diagonal).all():
            raise ArithmeticError("the Gram matrix is not finite; check the inputs and the weights for overflow")
        if scale == 0 and damping == 0:
            # No parameter moves any output: every g gives the same (empty) step.
            return Solution(torch.zeros_like(rhs), float(bool(rhs.any())), 0, self.name)

        diagonal += damping
        jitter = 0.0
        # Entries of H carry rounding of order eps · scale · n; start there and grow until the factor exists.
        attempt = torch.finfo(torch.float64).eps * operator.size * scale
        while True:
            factor, info = torch.linalg.cholesky_ex(matrix)
            if int(info) == 0:
                break
            if attempt > self.max_jitter * scale:
                raise ArithmeticError(
                    f"H + damping is not positive definite even with {jitter:.1e} added to its diagonal "
                    f"(mean {scale:.1e}); increase the damping"
                )
            diagonal += attempt - jitter
            jitter, attempt = attempt, attempt * 100
        columns = target.reshape(operator.size, -1)
        value = torch.cholesky_solve(columns, factor).reshape(target.shape).to(rhs.dtype)
        return Solution(value, relative_residual(operator, value, rhs, damping), 0, self.name, jitter)
