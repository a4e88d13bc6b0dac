"""Conjugate gradients behind a low-rank preconditioner from randomly chosen columns of H."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import Operator
from widefit.processes import Alone
from widefit.solvers.base import Prepared, Solver
from widefit.solvers.pcg import Preconditioned

# Numbers of a factor beyond which it is kept in float32.
_WIDE = 1 << 24
# Rows of a factor that are at work at a time.
_ROWS = 4096
# Part of the trace of H below which what float32 leaves of it is rounding.
_NARROW_FLOOR = 1e-6


@dataclass(frozen=True)
class NystromCG(Solver):
    """Conjugate gradients preconditioned by F Fᵀ ≈ H of rank r from r columns of H picked by randomly pivoted Cholesky.

    (Díaz et al., arXiv 2304.12465; the blocks of columns as in Epperly et al., arXiv 2410.03969.) Needs r columns of
    H and O(n r²) work; strong where the spectrum of H falls quickly, whatever P. A factor of many numbers is kept in
    float32: it need only be near H.

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

    def columns_of(self, size: int) -> int:
        """Return r for H of so many rows."""
        return min(size, self.rank if self.rank is not None else max(1, int(4 * size**0.5)))

    def bytes_needed(self, size: int) -> int:
        """Return the memory of the preconditioner of H of so many rows, and of making it."""
        rank = self.columns_of(size)
        itemsize = 8 if size * rank <= _WIDE else 4
        # Columns that are being added, in float64 and in the dtype of F; FᵀF, its eigenvectors and what they give.
        return size * (itemsize * rank + (16 + 4 * itemsize) * max(1, rank // 8)) + 48 * rank**2

    def _prepare(self, operator: Operator, damping: float) -> Prepared:
        return self.prepared(operator, damping, self.factored(operator))

    def prepared(self, operator: Operator, damping: float, low: "LowRank") -> Preconditioned:
        """Return H + λI behind what `factored` gave for H, for whatever λ."""
        return _prepared(self, operator, damping, low)

    def factored(self, operator: Operator) -> "LowRank":
        """Return F Fᵀ ≈ H."""
        generator = torch.Generator().manual_seed(self.seed)
        factor, rest = pivoted_cholesky(operator, self.columns_of(operator.size), generator)
        return LowRank(factor, operator.processes.sum(_inner_products(factor)), float(rest.mean()))


@dataclass(frozen=True)
class LowRank:
    """F Fᵀ ≈ H.

    Attributes
    ----------
    factor, gram
        The rows of F that this process has, and FᵀF in float64.
    rest
        Mean of what is left of the diagonal of H.
    """

    factor: Float[Tensor, "n r"]
    gram: Float[Tensor, "r r"]
    rest: float

    @cached_property
    def spectrum(self) -> tuple[Float[Tensor, " r"], Float[Tensor, "r r"]]:
        """Eigenvalues and eigenvectors of FᵀF, which every λ shares."""
        values, vectors = torch.linalg.eigh(self.gram)
        return values, vectors


def _inner_products(factor: Float[Tensor, "n r"]) -> Float[Tensor, "r r"]:
    """FᵀF, summed in float64 whatever F is kept in."""
    total = torch.zeros(factor.shape[1], factor.shape[1], dtype=torch.float64, device=factor.device)
    for rows in factor.split(_ROWS):
        wide = rows.double()
        total.addmm_(wide.T, wide)
    return total


def _sums(factor: Float[Tensor, "n r"], vector: Float[Tensor, " n"]) -> Float[Tensor, " r"]:
    """Fᵀv, summed in float64 beyond a few thousand rows, whatever F is kept in."""
    narrow = vector.to(factor.dtype)
    if factor.dtype == torch.float64:
        return factor.T @ narrow
    # A sum of very many rows in float32 would leave more of the largest eigenvectors than M is to leave of them.
    total = torch.zeros(factor.shape[1], dtype=torch.float64, device=factor.device)
    for rows, part in zip(factor.split(_ROWS), narrow.split(_ROWS), strict=True):
        total += rows.T @ part
    return total


def _least_share(dtype: torch.dtype, rank: int) -> float:
    """Part of the largest eigenvalue of FᵀF up to which the others are rounding, of FᵀF or of F."""
    rounding = torch.finfo(dtype).eps
    return rounding * rank if dtype == torch.float64 else max(10 * rounding, torch.finfo(torch.float64).eps * rank)


def _prepared(solver: NystromCG, operator: Operator, damping: float, low: LowRank) -> "_Nystrom":
    values, vectors = low.spectrum
    # What is decided of eigenvalues is decided on the host, in one transfer.
    shares = values.cpu()
    largest = float(shares.max()) if len(shares) else 1.0
    # Below, products with F have more rounding than what they are to tell, and would make M indefinite.
    smallest = _least_share(low.factor.dtype, len(values)) * largest
    inside = (shares > smallest).nonzero()[:, 0]
    kept = inside.to(values.device)
    values = values[kept]
    # Outside the basis H is about its left-over diagonal; scaling the basis to that level keeps the two parts in
    # balance.
    level = low.rest + damping
    weights = max(level, smallest) / (values + max(damping, level, smallest))
    # Without λ, and with nothing but rounding outside the basis, only what lies inside can be answered.
    rounding = 2 * torch.finfo(operator.dtype).eps * float(shares[inside].sum())
    outside = float(damping > 0 or level > rounding)
    # U (w − o) Uᵀ with U = F V σ⁻¹, whose n × r numbers are never formed.
    core = (vectors[:, kept] * ((weights - outside) / values)) @ vectors[:, kept].T
    return _Nystrom(solver, operator, damping, low, core, outside)


@dataclass(frozen=True)
class _Nystrom(Preconditioned):
    low: LowRank
    core: Float[Tensor, "r r"]
    outside: float

    def precondition(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        factor, processes = self.low.factor, self.operator.processes
        own = vector[_share(len(vector), processes)]
        inner = self.core @ processes.sum(_sums(factor, own))
        return processes.joined(self.outside * own + (factor @ inner.to(factor.dtype)).to(vector.dtype))


def _share(rows: int, processes: Alone) -> slice:
    """The rows that this process has of as many."""
    return slice(rows * processes.rank // processes.size, rows * (processes.rank + 1) // processes.size)


def pivoted_cholesky(
    operator: Operator, rank: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n r"], Float[Tensor, " n"]]:
    """F with F Fᵀ ≈ H, and what is left of the diagonal; stops early when nothing is left.

    Blocks of pivots are drawn in proportion to the left-over diagonal; within a block, columns that the others
    already explain are dropped. Several processes share the rows of F out.
    """
    processes = operator.processes
    own = _share(operator.size, processes)
    whole = operator.diagonal()
    left = whole.clamp_min(0)
    dtype = operator.dtype if operator.size * rank <= _WIDE else torch.float32
    factor = torch.zeros(own.stop - own.start, rank, dtype=dtype, device=operator.device)
    explained = torch.zeros_like(whole[own])
    used = 0
    block = max(1, rank // 8)
    floor = torch.finfo(operator.dtype).eps * operator.size
    if dtype != operator.dtype:
        floor = max(floor, _NARROW_FLOOR)
    # Pivots are drawn, and what they explain is judged, on the host: two transfers a block.
    chances = left.cpu()
    total = float(chances.sum())
    while used < rank and float(chances.sum()) > floor * total:
        live = int((chances > 0).sum())
        count = min(block, rank - used, live)
        pivots = torch.multinomial(chances, count, generator=generator).to(operator.device)
        columns = operator.columns(pivots)
        known = factor[:, :used]
        of_pivots = _rows_of(known, pivots, own, processes)
        core = torch.addmm(columns[pivots].to(dtype), of_pivots, of_pivots.T, alpha=-1).double().cpu()
        columns = columns[own].to(dtype)
        columns.addmm_(known, of_pivots.T, alpha=-1)
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        keep = values > floor * values.max().clamp_min(0)
        found = int(keep.sum())
        if found == 0:
            left[pivots] = 0
            chances = left.cpu()
            continue
        factor[:, used : used + found] = columns @ (vectors[:, keep] / values[keep].sqrt()).to(dtype).to(
            operator.device
        )
        used += found
        explained += factor[:, used - found : used].square().sum(dim=1)
        left = (whole - processes.joined(explained)).clamp_min(0)
        left[pivots] = 0
        chances = left.cpu()
    return factor[:, :used], left


def _rows_of(
    factor: Float[Tensor, "own r"], rows: Int[Tensor, " b"], own: slice, processes: Alone
) -> Float[Tensor, "b r"]:
    """Some rows of F on every process."""
    if processes.size == 1:  # and nothing waits for a device
        return factor[rows]
    here = (rows >= own.start) & (rows < own.stop)
    found = torch.zeros(len(rows), factor.shape[1], dtype=factor.dtype, device=factor.device)
    found[here] = factor[rows[here] - own.start]
    return processes.sum(found)
