"""H of the network of infinite width at its initial weights: what the data alone decide is decided on it."""

import math
from functools import cache

import numpy as np
from jaxtyping import Float

# Points at which the integral is tabulated; the trapezoidal error is below 1e-9.
_POINTS = 1 << 14


def co_firing_probability(similarity: Float[np.ndarray, "n n"], threshold: float) -> Float[np.ndarray, "n n"]:
    """P(⟨w, x⟩ > b and ⟨w, x'⟩ > b) for w ~ N(0, I) and unit vectors with ⟨x, x'⟩ = ρ.

    Its derivative in ρ is the bivariate normal density at (b, b) (Plackett 1954), so with t = sin θ it equals
    p² + (1/2π) ∫₀^{asin ρ} exp(−b² / (1 + sin θ)) dθ, p = P(N(0, 1) > b).

    Parameters
    ----------
    similarity
        ρ, entries in [−1, 1] up to rounding.
    threshold
        b.
    """
    table = _primitive(threshold)
    silent = 0.5 * math.erfc(threshold / math.sqrt(2))
    # The grid of angles is uniform: the place in it is a product, not a search.
    place = (np.arcsin(np.clip(similarity, -1, 1)) + math.pi / 2) * ((_POINTS - 1) / math.pi)
    index = np.minimum(place.astype(np.int64), _POINTS - 2)
    left = table[index]
    return silent**2 + left + (place - index) * (table[index + 1] - left)


@cache
def _primitive(threshold: float) -> Float[np.ndarray, " points"]:
    """(1/2π) ∫₀^θ exp(−b² / (1 + sin t)) dt on a uniform grid of θ from −π/2 to π/2."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, _POINTS)
    density = np.exp(-(threshold**2) / np.maximum(1 + np.sin(angle), 1e-200)) / (2 * math.pi)
    table = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angle))])
    return table - np.interp(0.0, angle, table)


def co_firing_density(similarity: Float[np.ndarray, "n n"], threshold: float) -> Float[np.ndarray, "n n"]:
    """Derivative of `co_firing_probability` in ρ, with |ρ| kept away from 1, where it is not finite."""
    rho = np.clip(similarity, -1 + 1e-9, 1 - 1e-9)
    return np.exp(-(threshold**2) / (1 + rho)) / (2 * math.pi * np.sqrt(1 - rho**2))


def limit_gram(inputs: Float[np.ndarray, "n d"], threshold: float) -> Float[np.ndarray, "n n"]:
    """K ∘ P(both fire): the limit of K ∘ N / m for inputs on the unit sphere and readouts of ±1."""
    similarity = inputs @ inputs.T
    return similarity * co_firing_probability(similarity, threshold)
