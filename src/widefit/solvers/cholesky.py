"""The direct solver: factor H + λI in float64, adding jitter only when the factorization fails without it."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import Operator
from widefit.kernels.transfer import numbers
from widefit.solvers.base import Prepared, Solution, Solver, solution
from widefit.solvers.pcg import Preconditioned


@dataclass(frozen=True)
class Cholesky(Solver):
    """Dense Cholesky factorization: n³/3 flops and 2 n² float64 numbers.

    Parameters
    ----------
    max_jitter
        Largest multiple of the mean of diag H that may be added to make the factorization succeed.
    narrow
        Factor in float32, with as much more on the diagonal as that takes, and refine by conjugate gradients on H as it
        is (Carson and Higham, SIAM J. Sci. Comput. 40, 2018, with CG in place of GMRES): for devices whose float64 is
        slow. Where H is so badly conditioned that some dozens of products do not reach 1e-8, it is factored in float64
        after all.

    Raises
    ------
    ArithmeticError
        H is not finite, or stays indefinite with the largest jitter.
    """

    max_jitter: float = 1e-3
    narrow: bool = False
    name: str = "cholesky"

    def _prepare(self, operator: Operator, damping: float) -> Prepared:
        if self.narrow:
            found = damped_factor(operator, damping, self.max_jitter, torch.float32)
            return (
                Empty(self.name)
                if found is None
                else _Refined(_REFINEMENT, operator, damping, found[1], replace(self, narrow=False))
            )
        found = damped_factor(operator, damping, self.max_jitter)
        return Empty(self.name) if found is None else _Factored(operator, damping, *found, self.name)


def damped_factor(
    operator: Operator,
    damping: float,
    max_jitter: float = Cholesky.max_jitter,
    dtype: torch.dtype = torch.float64,
) -> tuple[float, Float[Tensor, "n n"]] | None:
    """Jitter and the lower factor of H + (λ + jitter) I; None for H = 0 and λ = 0.

    Raises
    ------
    ArithmeticError
        Those of `Cholesky`.
    """
    diagonal = operator.diagonal().to(torch.float64)
    factor, info = _factor(operator, damping, dtype)
    finite, scale, failed = numbers(torch.isfinite(diagonal).all(), diagonal.mean(), info)
    if not finite:
        raise ArithmeticError("the Gram matrix is not finite; check the inputs and the weights for overflow")
    if scale == 0 and damping == 0:
        return None

    jitter = 0.0
    # Entries of H carry rounding of order eps · scale · n; start there and grow until the factor exists.
    attempt = torch.finfo(dtype).eps * operator.size * scale
    while failed:
        if attempt > max_jitter * scale:
            raise ArithmeticError(
                f"H + damping is not positive definite even with {jitter:.1e} added to its diagonal "
                f"(mean {scale:.1e}); increase the damping"
            )
        jitter, attempt = attempt, attempt * 100
        factor, info = _factor(operator, damping + jitter, dtype)
        failed = int(info)
    return jitter, factor


def _factor(operator: Operator, shift: float, dtype: torch.dtype) -> tuple[Float[Tensor, "n n"], Int[Tensor, ""]]:
    """The lower factor, and what is not 0 where there is none."""
    matrix = operator.dense().to(dtype)
    matrix.diagonal().add_(shift)
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor, info


@dataclass(frozen=True)
class _Factored(Prepared):
    operator: Operator
    damping: float
    jitter: float
    factor: Float[Tensor, "n n"]
    name: str

    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        columns = rhs.to(torch.float64).reshape(self.operator.size, -1)
        value = torch.cholesky_solve(columns, self.factor).reshape(rhs.shape).to(rhs.dtype)
        return solution(value, self.operator.matvec(value), rhs, self.damping, 0, self.name, self.jitter)


@dataclass(frozen=True)
class _Refinement:
    """Settings of the iteration behind a factor in float32."""

    tolerance: float = 1e-8
    max_iterations: int | None = 48
    recompute: int = 24
    name: str = Cholesky.name


_REFINEMENT = _Refinement()


@dataclass(frozen=True)
class _Refined(Preconditioned):
    factor: Float[Tensor, "n n"]
    exact: Cholesky

    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        if "_wide" not in self.__dict__:
            found = super().solve(rhs)
            if found.residual_norm <= self.solver.tolerance:
                return found
        return self._wide.solve(rhs)

    @cached_property
    def _wide(self) -> Prepared:
        return self.exact.prepare(self.operator, self.damping)

    def precondition(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.cholesky_solve(vector[:, None].to(self.factor.dtype), self.factor)[:, 0].to(vector.dtype)


@dataclass(frozen=True)
class Empty(Prepared):
    """No parameter moves any output: every g gives the same (empty) step."""

    name: str

    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        zero = torch.zeros_like(rhs)
        return solution(zero, zero, rhs, 0.0, 0, self.name)
