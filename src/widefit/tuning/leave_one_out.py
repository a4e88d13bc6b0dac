"""Leave-one-out residuals of kernel ridge regression in closed form."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_solve, get_lapack_funcs

# Ridges relative to the mean of diag H that are tried; the smallest stands for none.
RIDGES = 10.0 ** np.arange(-8.0, 2.0)
# Rows of a matrix that are mirrored at a time.
_TILE = 64


@dataclass(frozen=True)
class LeaveOneOut:
    """Ridge regression min Σ_i ω_i (f_i − y_i)² + α ‖u‖², f = J u, J Jᵀ = H, that leaves every sample out in turn.

    Attributes
    ----------
    coefficients
        v with u = Jᵀ v for the fit to all samples, shape (n, k).
    residuals
        y_i − f_i of the fit that has not seen sample i, shape (n, k).
    leverage
        ∂f_i/∂y_i of the fit to all samples, shape (n,).
    error
        Weighted mean over samples of the squared residuals, summed over outputs.
    """

    coefficients: Float[np.ndarray, "n k"]
    residuals: Float[np.ndarray, "n k"]
    leverage: Float[np.ndarray, " n"]
    error: float


def leave_one_out(
    gram: Float[np.ndarray, "n n"],
    targets: Float[np.ndarray, "n k"],
    sample_weight: Float[np.ndarray, " n"],
    alpha: float,
) -> LeaveOneOut:
    """Leave out every sample in turn by one factorization: about 2 n³ / 3 flops.

    The residual without sample i is ṽ_i / (√ω_i G_ii), ṽ = G √ω y, G = (√ω H √ω + α I)⁻¹: the identity behind PRESS
    (Allen 1974) and generalized cross-validation (Golub, Heath and Wahba 1979).

    Parameters
    ----------
    gram, targets, sample_weight
        H, y, and ω > 0.
    alpha
        α > 0.
    """
    root = np.sqrt(sample_weight)
    matrix = root[:, None] * gram * root
    matrix.flat[:: root.size + 1] += alpha
    scaled, diagonal = _solved_with_diagonal(matrix, root[:, None] * targets, alpha)
    residuals = scaled / (root * diagonal)[:, None]
    error = float(sample_weight @ (residuals**2).sum(1) / sample_weight.sum())
    leverage = np.clip(1 - alpha * diagonal, 0.0, 1.0)
    return LeaveOneOut(root[:, None] * scaled, residuals, leverage, error)


def _solved_with_diagonal(
    matrix: Float[np.ndarray, "n n"], targets: Float[np.ndarray, "n k"], least: float
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, " n"]]:
    """Return G y and diag G for G the inverse of a matrix, with the arguments of `symmetric_inverse`.

    The columns of L⁻¹, L Lᵀ the matrix, have the squared norms diag G.
    """
    potrf, trtri = get_lapack_funcs(("potrf", "trtri"), (matrix,))
    factor, failed = potrf(matrix.T, lower=1)
    if failed:
        inverse = symmetric_inverse(matrix, least)
        return inverse @ targets, inverse.diagonal()
    solved = cho_solve((factor, True), targets)
    rows = trtri(factor, lower=1, overwrite_c=1)[0].T
    return solved, np.einsum("ij,ij->i", rows, rows)


def solve_shifted(
    gram: Float[np.ndarray, "n n"],
    targets: Float[np.ndarray, "n k"],
    sample_weight: Float[np.ndarray, " n"],
    alpha: float,
) -> Float[np.ndarray, "n k"]:
    """Return v of the ridge regression of `LeaveOneOut`; n³ / 3 flops where rounding leaves H positive definite."""
    root = np.sqrt(sample_weight)[:, None]
    matrix = root * gram * root.T
    matrix.flat[:: len(matrix) + 1] += alpha
    (potrf,) = get_lapack_funcs(("potrf",), (matrix,))
    factor, failed = potrf(matrix.T, lower=1)
    if failed:
        return root * (symmetric_inverse(matrix, alpha) @ (root * targets))
    return root * cho_solve((factor, True), root * targets)


def symmetric_inverse(matrix: Float[np.ndarray, "n n"], least: float) -> Float[np.ndarray, "n n"]:
    """Return the inverse of H + α I, for H positive semidefinite up to rounding; n³ flops.

    Parameters
    ----------
    matrix
        H + α I, symmetric; may be overwritten.
    least
        α > 0. Where rounding has put an eigenvalue below zero, the smaller ones are lifted to α, which takes an
        eigendecomposition in place of a Cholesky factorization.
    """
    # Symmetric, so that the transpose that LAPACK wants costs nothing.
    potrf, potri = get_lapack_funcs(("potrf", "potri"), (matrix,))
    factor, failed = potrf(matrix.T, lower=1)
    if failed:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors / np.maximum(values, least)) @ vectors.T
    inverse, _ = potri(factor, lower=1, overwrite_c=1)
    for first in range(0, len(inverse), _TILE):
        last = min(first + _TILE, len(inverse))
        inverse[:first, first:last] = inverse[first:last, :first].T
        corner = inverse[first:last, first:last]
        corner[...] = np.tril(corner) + np.tril(corner, -1).T
    return inverse
