"""Distributions of columns: their spread, indicators, heavy tails."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

# Ranges of quantiles that measure the spread of a column, with their width for a normal one; the first that is not 0.
_RANGES = ((0.25, 0.75, 1.349), (0.05, 0.95, 3.290), (0.0, 1.0, 6.0))
# Spreads from the median to the farthest value, from which on tails are heavy: those of normal columns reach 5.
_HEAVY = 8.0
# Part of a value that is rounding, as in float32 copies of float64 numbers.
ROUNDING = 2.0**-22
# Knots of a quantile map, evenly spaced in the scores.
_KNOTS = 129


def spreads(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """Return robust standard deviations of columns; 0 for a constant one."""
    spread = np.zeros(rows.shape[1])
    for low, high, width in _RANGES:
        quantiles = np.quantile(rows, (low, high), axis=0, method="nearest")
        # Divided first: the difference of huge numbers stays finite.
        wide = quantiles[1] / width - quantiles[0] / width
        spread = np.where(spread > 0, spread, wide)
    return spread


def indicators(rows: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " d"]:
    """Return which columns have two values, up to rounding."""
    low = rows.min(axis=0)
    high = rows.max(axis=0)
    is_low = rows <= low + ROUNDING * np.abs(low)
    is_high = rows >= high - ROUNDING * np.abs(high)
    return (low < high) & (is_low | is_high).all(axis=0)


def heavy_tailed(rows: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " d"]:
    """Return which columns have values many spreads from their median."""
    spread = spreads(rows)
    median = np.quantile(rows, 0.5, axis=0, method="nearest")
    farthest = np.maximum(rows.max(axis=0) / _HEAVY - median / _HEAVY, median / _HEAVY - rows.min(axis=0) / _HEAVY)
    return (farthest > spread) & ~indicators(rows)


@dataclass(frozen=True)
class QuantileMap:
    """Monotone maps of some columns to normal scores: piecewise linear between quantiles, constant beyond the last.

    Attributes
    ----------
    columns
        Indices of the columns, shape (q,).
    values
        Quantiles of each column, ascending, shape (q, knots).
    scores
        Their normal scores, equal for equal quantiles, shape (q, knots).
    """

    columns: np.ndarray
    values: Float[np.ndarray, "q knots"]
    scores: Float[np.ndarray, "q knots"]

    @classmethod
    def fit(
        cls, rows: Float[np.ndarray, "n d"], sample_weight: Float[np.ndarray, " n"], columns: Bool[np.ndarray, " d"]
    ) -> "QuantileMap":
        """Learn the quantiles of some columns from weighted rows."""
        indices = np.flatnonzero(columns)
        knots = [_knots(rows[:, column], sample_weight) for column in indices]
        values = np.array([knot[0] for knot in knots]).reshape(len(knots), -1)
        scores = np.array([knot[1] for knot in knots]).reshape(len(knots), -1)
        return cls(indices, values, scores)

    @classmethod
    def none(cls) -> "QuantileMap":
        """Return the map that leaves all columns alone."""
        return cls(np.empty(0, np.int64), np.empty((0, _KNOTS)), np.empty((0, _KNOTS)))

    @classmethod
    def of(cls, columns: np.ndarray, values: np.ndarray, scores: np.ndarray, features: int) -> "QuantileMap":
        """Build a map of some of d columns from arrays of unknown origin.

        Raises
        ------
        ValueError
            Arrays that do not belong together, indices out of range, or knots that are not finite or do not ascend.
        """
        if columns.ndim != 1 or columns.dtype.kind != "i" or np.any((columns < 0) | (columns >= features)):
            raise ValueError(f"quantile_columns must be indices of {features} columns")
        for name, knots in (("quantile_values", values), ("quantile_scores", scores)):
            if knots.ndim != 2 or len(knots) != columns.size or knots.shape[1] < 1 or not np.isfinite(knots).all():
                raise ValueError(f"{name} must be finite and have shape ({columns.size}, knots), got {knots.shape}")
            if np.any(knots[:, 1:] < knots[:, :-1]):
                raise ValueError(f"{name} must ascend")
        if values.shape != scores.shape:
            raise ValueError(f"quantile_values and quantile_scores differ: {values.shape} and {scores.shape}")
        return cls(columns, values, scores)

    def __call__(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Return rows with the columns mapped; a copy if there are any."""
        if self.columns.size == 0:
            return rows
        mapped = rows.copy()
        for column, values, scores in zip(self.columns, self.values, self.scores, strict=True):
            size = _size(values)
            with np.errstate(over="ignore"):
                mapped[:, column] = np.interp(rows[:, column] / size, _unit(values, size), scores)
        return mapped


def _knots(
    column: Float[np.ndarray, " n"], sample_weight: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " knots"], Float[np.ndarray, " knots"]]:
    """Return quantiles and normal scores; a value has the share of the weight below it plus half its own."""
    from scipy.special import ndtr, ndtri

    known, group = np.unique(column, return_inverse=True)
    weight = np.bincount(group.reshape(-1), sample_weight)
    shares = (np.cumsum(weight) - weight / 2) / weight.sum()
    wanted = np.linspace(ndtri(shares[0]), ndtri(shares[-1]), _KNOTS)
    size = _size(known)
    units = np.interp(ndtr(wanted), shares, _unit(known, size))
    _, place = np.unique(units, return_inverse=True)
    place = place.reshape(-1)
    return units * size, (np.bincount(place, wanted) / np.bincount(place))[place]


def _size(values: Float[np.ndarray, " n"]) -> float:
    """Return the largest size, 1 of zeros: divided by it, steps between huge values stay finite."""
    return float(np.abs(values).max()) or 1.0


def _unit(values: Float[np.ndarray, " n"], size: float) -> Float[np.ndarray, " n"]:
    """Return values over their size, and 0 where slopes between them would overflow."""
    units = values / size
    units[np.abs(units) < 1e-290] = 0.0
    return units
