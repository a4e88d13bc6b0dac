"""Mixing of columns by the average gradient outer product of the kernel regression."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from widefit.tuning.leave_one_out import leave_one_out
from widefit.tuning.limit_kernel import co_firing_density, co_firing_probability
from widefit.tuning.sphere import SphereMap

# Columns beyond which a matrix of them is too large for what it brings.
_MOST_MIXED = 200
# Ridges that are tried, relative to the mean of diag H.
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Part of the mean eigenvalue that is added to all: no direction is lost, and the matrix can be inverted.
_FLOOR = 1e-3
_TINY = np.finfo(np.float64).tiny


def can_mix(sphere: SphereMap) -> bool:
    """Return True where there are columns to mix, and not too many; components are mixtures already."""
    if sphere.mixing is not None and sphere.mixing.shape[1] < sphere.mixing.shape[0]:
        return False
    return 2 <= int(np.count_nonzero(sphere.scale)) <= sphere.scale.size <= _MOST_MIXED


def mix_columns(
    rows: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    sample_weight: Float[np.ndarray, " n"],
    start: SphereMap,
    threshold: float,
) -> SphereMap:
    """Replace the mixing A of a map by M^½, M = mean ∇f ∇fᵀ of the regression with the limit kernel.

    This is a round of recursive feature machines (Radhakrishnan et al. 2024) with the network's kernel; the mean
    squared norm of rows stays as it is.

    Parameters
    ----------
    rows, targets, sample_weight
        A few hundred distinct rows, centred targets, and ω > 0.
    start
        The map to begin with; only its mixing changes.
    threshold
        b.
    """
    plain = replace(start, mixing=None).scaled(rows)
    gradients = _gradients(start, rows, targets, sample_weight, threshold)
    share = sample_weight / sample_weight.sum()
    outer = np.einsum("n,nkd,nke->de", share, gradients, gradients, optimize=True)
    outer.flat[:: len(outer) + 1] += max(_FLOOR * float(np.trace(outer)) / len(outer), _TINY)
    values, vectors = np.linalg.eigh(outer)
    mixing = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    before = float(share @ (start.scaled(rows) ** 2).sum(1))
    after = float(share @ ((plain @ mixing) ** 2).sum(1))
    # Rounded, so that the last bits of the data do not reach the model.
    return replace(start, mixing=np.round(mixing * np.sqrt(before / max(after, _TINY)), 6))


def _gradients(
    sphere: SphereMap,
    rows: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    sample_weight: Float[np.ndarray, " n"],
    threshold: float,
) -> Float[np.ndarray, "n k e"]:
    """Return the gradients of the regression at its rows in scaled columns, before they are mixed."""
    inputs = sphere(rows)
    similarity = inputs @ inputs.T
    both_fire = co_firing_probability(similarity, threshold)
    gram = similarity * both_fire
    mean = max(float(sample_weight @ gram.diagonal()) / len(rows), _TINY)
    fits = [leave_one_out(gram, targets, sample_weight, ridge * mean) for ridge in _RIDGES]
    coefficients = min(fits, key=lambda fit: fit.error).coefficients
    # f(x) = Σ_j v_j ρ_j P(ρ_j), ρ_j = ⟨x, x_j⟩. What a row contributes at itself is along x, and drops out below.
    slope = both_fire + similarity * co_firing_density(similarity, threshold)
    np.fill_diagonal(slope, 0.0)
    found = np.einsum("ij,jk,jd->ikd", slope, coefficients, inputs, optimize=True)
    across = found - np.einsum("ikd,id,ie->ike", found, inputs, inputs, optimize=True)
    # x = a / ‖a‖ with the constant as last entry of a.
    norm = sphere.last / inputs[:, -1]
    along = across[:, :, :-1] / norm[:, None, None]
    return along if sphere.mixing is None else along @ sphere.mixing.T
