"""Conjugate gradients behind one factored block that stands for every output."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import DenseGram, Operator
from widefit.solvers.base import Preconditioner, Prepared, Solver
from widefit.solvers.cholesky import damped_factor
from widefit.solvers.pcg import FactorPreconditioned


@dataclass(frozen=True)
class BlockCG(Solver):
    """Conjugate gradients on H + λI of n samples and k outputs, preconditioned by (H̄ + λI) ⊗ I (this project).

    H̄ is the mean over the outputs of their blocks of H. Outputs that read the same wide layers have all but equal
    blocks, and what couples them falls as 1/√m: as m → ∞, H = H̄ ⊗ I (Jacot, Gabriel and Hongler, arXiv 1806.07572).
    One Cholesky factorization of n × n numbers serves all outputs: n³/3 flops in place of (n k)³/3.

    Parameters
    ----------
    tolerance
        Stop at ‖(H + λI) g − e‖ ≤ tolerance ‖e‖.
    max_iterations
        Upper bound on the products with H; None: 10 n k.
    recompute
        Every so many iterations the residual is computed afresh.

    Raises
    ------
    ArithmeticError
        H is not finite, or H̄ + λI not positive definite.
    """

    tolerance: float = 1e-6
    max_iterations: int | None = None
    recompute: int = 50
    name: str = "block-cg"

    def _prepare(self, operator: Operator, damping: float) -> Prepared:
        found = damped_factor(DenseGram(operator.mean_block()), damping)
        return _Blocks(self, operator, damping, None if found is None else found[1])

    def prepare(self, operator: Operator, damping: float) -> Prepared:
        """Factor H̄ + λI; for identical blocks that is H itself, and one product with all of it is enough."""
        return self._prepare(operator, damping)

    def carry_over(self, kept: Preconditioner, operator: Operator, damping: float) -> Prepared | None:
        """Keep the factor while it works: H̄ of a network changes little from step to step."""
        if not kept.still_works(operator.size // operator.outputs, damping):
            return None
        return _Blocks(self, operator, damping, kept.factor, [*kept.products])


class _Blocks(FactorPreconditioned):
    def precondition(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        if self.factor is None:
            return vector
        columns = vector.to(self.factor.dtype).reshape(len(self.factor), -1)
        return torch.cholesky_solve(columns, self.factor).reshape(-1).to(vector.dtype)
