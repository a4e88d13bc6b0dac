"""Conjugate gradients behind a low-rank preconditioner from randomly chosen columns of H."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Operator
from widefit.solvers.base import Prepared, Solver
from widefit.solvers.pcg import Preconditioned


@dataclass(frozen=True)
class NystromCG(Solver):
    """Conjugate gradients preconditioned by F Fᵀ ≈ H of rank r from r columns of H picked by randomly pivoted Cholesky.

    (Díaz et al., arXiv 2304.12465; the blocks of columns as in Epperly et al., arXiv 2410.03969.) Needs r columns of
    H and O(n r²) work; strong where the spectrum of H falls quickly, whatever P.

    Parameters
    ----------
    tolerance
        Stop at ‖(H + λI) g − e‖ ≤ tolerance ‖e‖.
    rank
        r; None: √n times four, at most n.
    max_iterations
        Upper bound on the products with H; None: 10 n.
    recompute
        Every so many iterations the residual is computed afresh.
    seed
        Picks the columns.
    """

    tolerance: float = 1e-6
    rank: int | None = None
    max_iterations: int | None = None
    recompute: int = 50
    seed: int = 0
    name: str = "nystrom-cg"

    def __post_init__(self):
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")

    def _prepare(self, operator: Operator, damping: float) -> Prepared:
        rank = min(operator.size, self.rank if self.rank is not None else max(1, int(4 * operator.size**0.5)))
        factor, rest = pivoted_cholesky(operator, rank, torch.Generator().manual_seed(self.seed))
        basis, singular, _ = torch.linalg.svd(factor, full_matrices=False)
        # Outside the basis H is about its left-over diagonal; scaling the basis to that level keeps the two parts
        # in balance.
        level = float(rest.mean()) + damping
        smallest = torch.finfo(factor.dtype).eps * (float(singular.max()) ** 2 if len(singular) else 1.0)
        weights = max(level, smallest) / (singular.square() + max(damping, level, smallest))
        # Without λ, and with nothing but rounding outside the basis, only what lies inside can be answered.
        rounding = 2 * torch.finfo(factor.dtype).eps * float(singular.square().sum())
        outside = float(damping > 0 or level > rounding)
        return _Nystrom(self, operator, damping, basis, weights, outside)


@dataclass(frozen=True)
class _Nystrom(Preconditioned):
    basis: Float[Tensor, "n r"]
    weights: Float[Tensor, " r"]
    outside: float

    def precondition(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.outside * vector + self.basis @ ((self.weights - self.outside) * (self.basis.T @ vector))


def pivoted_cholesky(
    operator: Operator, rank: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n r"], Float[Tensor, " n"]]:
    """F with F Fᵀ ≈ H, and what is left of the diagonal; stops early when nothing is left.

    Blocks of pivots are drawn in proportion to the left-over diagonal; within a block, columns that the others
    already explain are dropped.
    """
    whole = operator.diagonal()
    left = whole.clamp_min(0)
    total = float(left.sum())
    factor = torch.zeros(operator.size, 0, dtype=operator.dtype, device=operator.device)
    block = max(1, rank // 8)
    floor = torch.finfo(operator.dtype).eps * operator.size
    while factor.shape[1] < rank and float(left.sum()) > floor * total:
        live = int((left > 0).sum())
        count = min(block, rank - factor.shape[1], live)
        pivots = torch.multinomial(left.cpu(), count, generator=generator).to(operator.device)
        columns = operator.columns(pivots) - factor @ factor[pivots].T
        core = columns[pivots]
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        keep = values > floor * values.max().clamp_min(0)
        if not bool(keep.any()):
            left[pivots] = 0
            continue
        factor = torch.cat([factor, columns @ (vectors[:, keep] / values[keep].sqrt())], dim=1)
        left = (whole - factor.square().sum(dim=1)).clamp_min(0)
        left[pivots] = 0
    return factor, left
