"""H of networks of infinite width at their initial weights, which depends on the data alone."""

import math
from functools import cache

import numpy as np
from jaxtyping import Float

from widefit.nn.shifted_relu import firing_probability

# Points at which the integral is tabulated; the trapezoidal error is below 1e-9.
_POINTS = 1 << 14


def co_firing_probability(similarity: Float[np.ndarray, "n q"], threshold: float) -> Float[np.ndarray, "n q"]:
    """Return P(⟨w, x⟩ > b and ⟨w, x'⟩ > b) for w ~ N(0, I) and unit vectors with ⟨x, x'⟩ = ρ.

    Its derivative in ρ is the bivariate normal density at (b, b) (Plackett 1954), so with t = sin θ it equals
    p² + (1/2π) ∫₀^{asin ρ} exp(−b² / (1 + sin θ)) dθ, p = P(N(0, 1) > b).

    Parameters
    ----------
    similarity
        ρ, entries in [−1, 1] up to rounding.
    threshold
        b.
    """
    return _interpolated(similarity, _both_fire(threshold))


def _interpolated(
    similarity: Float[np.ndarray, "n q"], table: Float[np.ndarray, " points"]
) -> Float[np.ndarray, "n q"]:
    """Return a function of ρ from its values at sin θ on the uniform grid of θ."""
    # The grid of angles is uniform: the place in it is a product, not a search.
    place = (np.arcsin(np.clip(similarity, -1, 1)) + math.pi / 2) * ((_POINTS - 1) / math.pi)
    index = np.minimum(place.astype(np.int64), _POINTS - 2)
    left = table[index]
    return left + (place - index) * (table[index + 1] - left)


@cache
def _both_fire(threshold: float) -> Float[np.ndarray, " points"]:
    """Return p² + (1/2π) ∫₀^θ exp(−b² / (1 + sin t)) dt on a uniform grid of θ from −π/2 to π/2."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, _POINTS)
    density = np.exp(-(threshold**2) / np.maximum(1 + np.sin(angle), 1e-200)) / (2 * math.pi)
    fires = firing_probability(threshold)
    return fires**2 + _integral(density, angle)


@cache
def _both_activations(threshold: float) -> Float[np.ndarray, " points"]:
    """Return E[φ(u) φ(v)] on the same grid: its derivative in ρ is the probability that both fire (Price 1958)."""
    angle = np.linspace(-math.pi / 2, math.pi / 2, _POINTS)
    fires = firing_probability(threshold)
    mean = math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi) - threshold * fires
    return mean**2 + _integral(_both_fire(threshold) * np.cos(angle), angle)


def _integral(slope: Float[np.ndarray, " points"], angle: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Return ∫₀^θ by the trapezoidal rule."""
    table = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(angle))])
    return table - np.interp(0.0, angle, table)


def co_firing_density(similarity: Float[np.ndarray, "n n"], threshold: float) -> Float[np.ndarray, "n n"]:
    """Return the derivative of `co_firing_probability` in ρ, with |ρ| kept away from 1, where it is not finite."""
    rho = np.clip(similarity, -1 + 1e-9, 1 - 1e-9)
    return np.exp(-(threshold**2) / (1 + rho)) / (2 * math.pi * np.sqrt(1 - rho**2))


def limit_gram(inputs: Float[np.ndarray, "n d"], threshold: float) -> Float[np.ndarray, "n n"]:
    """Return K ∘ P(both fire), the limit of K ∘ N / m for inputs on the unit sphere and readouts of ±1."""
    similarity = inputs @ inputs.T
    return similarity * co_firing_probability(similarity, threshold)


def deep_limit_gram(
    inputs: Float[np.ndarray, "n d"], thresholds: tuple[float, ...], input_share: float
) -> Float[np.ndarray, "n n"]:
    """Return H of one output of `widefit.nn.Deep` for inputs on the unit sphere; see `deep_limit_kernel`."""
    return deep_limit_kernel(inputs @ inputs.T, thresholds, input_share)


def deep_limit_kernel(
    similarity: Float[np.ndarray, "n q"], thresholds: tuple[float, ...], input_share: float
) -> Float[np.ndarray, "n q"]:
    """Return H of one output of `widefit.nn.Deep`, paired and read from all layers, as a function of K = XᵀX'.

    For one layer this is K ∘ P(both fire). Layer l sees inputs with the inner products
    q_l = (1 − γ) E[φ φ'](q_{l−1}) / E[φ²] + γ K, q_1 = K; upper layers send no signal down, as their pairs cancel, so
    H = Σ_l q_l ∘ P(both fire | q_l) / (L E_l[φ²]), times E_1[φ²].
    """
    seen, total, first = similarity, 0.0, 0.0
    for layer, threshold in enumerate(thresholds):
        squared = float(_both_activations(threshold)[-1])
        first = squared if layer == 0 else first
        total = total + seen * co_firing_probability(seen, threshold) * (first / (squared * len(thresholds)))
        active = _interpolated(seen, _both_activations(threshold)) / squared
        seen = (1 - input_share) * active + input_share * similarity
    return np.asarray(total)
