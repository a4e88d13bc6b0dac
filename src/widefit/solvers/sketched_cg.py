"""Sketch, QR, preconditioned conjugate gradients: the solver of BPSW (arXiv 2006.11648)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Operator
from widefit.sketches import SRHT, CountSketch, Gaussian, Sketch
from widefit.solvers.base import Preconditioner, Prepared, Solver, factor_of
from widefit.solvers.pcg import FactorPreconditioned

_SKETCHES: dict[str, Callable[[int, int, int], Sketch]] = {
    "srht": lambda rows, size, seed: SRHT(rows, size, seed=seed),
    "count": lambda rows, size, seed: CountSketch(rows, size, seed=seed),
    "gaussian": lambda rows, size, seed: Gaussian(rows, size, seed=seed),
}


@dataclass(frozen=True)
class SketchedCG(Solver):
    """Conjugate gradients preconditioned by R from Q R = [S Jᵀ; √λ I], S a sketch of parameter space (BPSW, Section 4).

    With s = c · n rows the preconditioned system has a condition number of O(1), whatever that of H, so O(log 1/ε₀)
    products suffice. Costs a sketch of J, one QR of an (s + n) × n matrix, and J v and Jᵀ u per iteration; H is never
    formed. Where s would reach P there is nothing to gain from sketching and the factor itself is used (an exact
    preconditioner).

    Parameters
    ----------
    tolerance
        ε₀: stop at ‖(H + λI) g − e‖ ≤ ε₀ ‖e‖.
    oversampling
        c.
    sketch
        "srht", "count" or "gaussian".
    max_iterations
        Upper bound on the products with H; None: 10 n.
    recompute
        Every so many iterations the residual is computed afresh.
    seed
        Draws the sketch.

    Raises
    ------
    ValueError
        The operator knows no factor J to sketch.
    """

    tolerance: float = 1e-6
    oversampling: float = 4.0
    sketch: str = "srht"
    max_iterations: int | None = None
    recompute: int = 50
    seed: int = 0
    name: str = "sketched-cg"

    def __post_init__(self):
        if self.sketch not in _SKETCHES:
            raise ValueError(f"sketch must be one of {', '.join(map(repr, _SKETCHES))}, got {self.sketch!r}")
        if not self.oversampling >= 1:
            raise ValueError(f"oversampling must be at least 1, got {self.oversampling}")

    def _prepare(self, operator: Operator, damping: float) -> Prepared:
        jacobian = factor_of(operator)
        size = jacobian.shape[1]
        rows = math.ceil(self.oversampling * operator.size)
        sketched = jacobian.sketched(_SKETCHES[self.sketch](rows, size, self.seed) if rows < size else _Identity(size))
        ridge = math.sqrt(damping) * torch.eye(operator.size, dtype=sketched.dtype, device=sketched.device)
        # Row after row, as a file keeps it: a solve with other strides would round otherwise.
        factor = torch.linalg.qr(torch.cat([sketched, ridge]), mode="r")[1].contiguous()
        diagonal = factor.diagonal().abs()
        # Rows of R vanish for a rank-deficient J with λ = 0.
        singular = bool((diagonal <= torch.finfo(factor.dtype).eps * diagonal.max()).any())
        return _Sketched(self, operator, damping, None if singular else factor)

    def carry_over(self, kept: Preconditioner, operator: Operator, damping: float) -> Prepared | None:
        """Keep the factor while it works, which saves the sketch and its QR."""
        if not kept.still_works(operator.size, damping):
            return None
        return _Sketched(self, operator, damping, kept.factor, [*kept.products])


class _Identity(Sketch):
    """No sketch at all: S = I."""

    def __init__(self, size: int):
        self.rows = self.size = size

    def apply(self, matrix: Float[Tensor, "P *c"]) -> Float[Tensor, "P *c"]:
        return matrix


class _Sketched(FactorPreconditioned):
    def precondition(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """R⁻¹ R⁻ᵀ v."""
        if self.factor is None:
            return vector
        inner = torch.linalg.solve_triangular(self.factor.T, vector[:, None], upper=False)
        return torch.linalg.solve_triangular(self.factor, inner, upper=True)[:, 0]
