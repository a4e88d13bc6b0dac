"""Steps of columns: piecewise linear codes beside the columns themselves, for what changes at thresholds."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

# Steps of a column, and numbers that a table becomes, at most.
_STEPS = 8
_MOST_ENTRIES = 200


def most_entries(features: int) -> int:
    """Return how many numbers a row of d columns becomes at most, steps included."""
    return features * (1 + _steps_of(features))


def _steps_of(features: int) -> int:
    """Return how many steps a column has; none where one alone would be of no use."""
    size = min(_STEPS, _MOST_ENTRIES // max(features, 1) - 1)
    return size if size > 1 else 0


@dataclass(frozen=True)
class Steps:
    """x ↦ min(max((x − low) / (high − low), 0), 1): piecewise linear encoding (Gorishniy, Rubachev and Babenko 2022).

    Between quantiles of a column these codes of two values are as far apart as the share of the table between them:
    a distance that does not care for units or outliers, and adds up over columns as the tests of trees do.

    Attributes
    ----------
    columns
        The column of each step, shape (e,).
    low, high
        Where it begins and ends, shapes (e,); low < high.
    """

    columns: Int[np.ndarray, " e"]
    low: Float[np.ndarray, " e"]
    high: Float[np.ndarray, " e"]

    @classmethod
    def fit(cls, rows: Float[np.ndarray, "n d"], left_alone: Bool[np.ndarray, " d"]) -> "Steps":
        """Put steps between quantiles of the columns, of all but some; those of two values or one have none."""
        size = _steps_of(rows.shape[1])
        found: list[tuple[int, float, float]] = []
        for column in np.flatnonzero(~left_alone) if size else ():
            knots = np.unique(np.quantile(rows[:, column], np.linspace(0, 1, size + 1), method="nearest"))
            pairs = pairwise(knots) if knots.size > 2 else ()
            found += [(int(column), low, high) for low, high in pairs if 0 < high - low < np.inf]
        columns, low, high = zip(*found, strict=True) if found else ((), (), ())
        return cls(np.array(columns, np.int64), np.array(low, np.float64), np.array(high, np.float64))

    @classmethod
    def none(cls) -> "Steps":
        """Return no steps."""
        return cls(np.empty(0, np.int64), np.empty(0), np.empty(0))

    @classmethod
    def of(cls, columns: np.ndarray, low: np.ndarray, high: np.ndarray, features: int) -> "Steps":
        """Build steps of some of d columns from arrays of unknown origin.

        Raises
        ------
        ValueError
            Arrays that do not belong together, indices out of range, or steps that are not finite or do not ascend.
        """
        if columns.ndim != 1 or columns.dtype.kind != "i" or np.any((columns < 0) | (columns >= features)):
            raise ValueError(f"step_columns must be indices of {features} columns")
        for name, edge in (("step_low", low), ("step_high", high)):
            if edge.shape != columns.shape or not np.isfinite(edge).all():
                raise ValueError(f"{name} must be finite and have shape {columns.shape}, got {edge.shape}")
        with np.errstate(over="ignore"):
            width = high - low
        if np.any(~((width > 0) & np.isfinite(width))):
            raise ValueError("step_high must be above step_low")
        return cls(columns, low, high)

    def __call__(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
        """Return the codes, in [0, 1]."""
        values = np.clip(rows[:, self.columns], self.low, self.high)
        return (values - self.low) / (self.high - self.low)
