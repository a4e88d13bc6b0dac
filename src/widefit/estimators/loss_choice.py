"""Losses of the regressor beside the squared one, in the units of the noise that leave-one-out residuals show."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from widefit.losses.family import rule_loss

LOSSES = ("squared", "absolute", "huber", "quantile", "poisson")
# Losses whose gradient is bounded: far targets pull no more than others.
ROBUST = ("absolute", "huber", "quantile")
# Spreads at which targets are cut off for bounded losses, when parameters are chosen and in training. The minimizer is
# the same as long as predictions stay within; an outlier of any size hides no decrease of the loss.
FARTHEST_IN_TUNING = 5.0
FARTHEST = 10.0
# Of the normal distribution 95 percent of the efficiency of the mean (Huber 1964).
_HUBER = 1.345
# Part of the noise within which kinks are smoothed, and within which the density at a quantile is measured.
_SMOOTHING = 0.05
_WINDOW = 0.25
_TINY = 1e-6


@dataclass(frozen=True)
class LossChoice:
    """A loss in the units of encoded targets.

    Attributes
    ----------
    name
        As `rule_loss` takes it.
    ridge
        Factor between its ridge and that of the squared loss, α E[ψ²] / (E[ψ'] σ²): both then weigh the same prior
        against the noise that their gradient ψ sees (this project; Huber 1964 has E[ψ²] / E[ψ']² for its variance).
    center
        What outputs are counted from, shape (k,).
    """

    name: str
    ridge: float
    center: Float[np.ndarray, " k"]


def check_loss(loss: Any, quantile: Any, rule: Any) -> None:
    """Raise a ValueError for an unknown loss, a quantile out of range, or a rule that does not take the loss."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}, got {loss!r}")
    if not isinstance(quantile, Real) or isinstance(quantile, bool) or not 0 < float(quantile) < 1:
        raise ValueError(f"quantile must be a number between 0 and 1, got {quantile!r}")
    name = rule if isinstance(rule, str) else rule.name
    if loss != "squared" and name != "gauss-newton":
        raise ValueError(f'loss={loss!r} takes rule="gauss-newton", got {name!r}')


def choose_loss(
    loss: str,
    quantile: float,
    residuals: Float[np.ndarray, "r k"],
    sample_weight: Float[np.ndarray, " r"],
) -> LossChoice:
    """Choose the numbers of a loss from the leave-one-out residuals y − f of the squared one."""
    outputs = residuals.shape[1]
    if loss in ("squared", "poisson"):
        return LossChoice(loss, 1.0, np.zeros(outputs))
    level = quantile if loss == "quantile" else 0.5
    center = np.array([_quantile(column, sample_weight, level) for column in residuals.T])
    errors = residuals - center
    # The median size of a normal deviation is 0.6745 standard deviations.
    middle = np.array([_quantile(np.abs(column), sample_weight, 0.5) for column in (errors - _medians(errors)).T])
    spread = max(float(middle.mean()) / 0.6745, _TINY)
    if loss == "huber":
        name = f"huber({_HUBER * spread:.3g})"
        slopes = rule_loss(name).gradients(errors, np.zeros_like(errors))
        bends = np.abs(errors) < _HUBER * spread
        center = np.zeros(outputs)
    else:
        name = f"quantile({level:.6g}, {_SMOOTHING * spread:.3g})"
        slopes = np.where(errors > 0, level, level - 1)
        bends = (np.abs(errors) < _WINDOW * spread) / (2 * _WINDOW * spread)
    share = sample_weight / sample_weight.sum()
    noise = float(np.mean(share @ residuals**2))
    ratio = float(np.mean(share @ slopes**2)) / max(float(np.mean(share @ bends)), _TINY)
    return LossChoice(name, min(max(ratio / max(noise, _TINY**2), 1e-3), 1e3), center)


def _medians(errors: Float[np.ndarray, "r k"]) -> Float[np.ndarray, " k"]:
    return np.median(errors, axis=0)


def _quantile(values: Float[np.ndarray, " r"], sample_weight: Float[np.ndarray, " r"], level: float) -> float:
    """Return the smallest value at or below which a share of the weight lies."""
    order = np.argsort(values)
    reached = np.cumsum(sample_weight[order])
    return float(values[order[min(int(np.searchsorted(reached, level * reached[-1])), values.size - 1)]])
