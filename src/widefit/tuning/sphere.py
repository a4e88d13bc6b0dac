"""The map of tables to the unit sphere, on which the networks live."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from widefit.tuning.columns import QuantileMap, indicators
from widefit.tuning.steps import Steps

_FLOAT = np.finfo(np.float64)
# Beyond this, sums of two numbers overflow.
_LARGEST = _FLOAT.max / 4


@dataclass(frozen=True)
class SphereMap:
    """x ↦ (Aᵀ (s ∘ (q(x) − center)), c √e) / ‖·‖: the constant coordinate keeps the information in the norm of a row.

    Attributes
    ----------
    center
        Weighted mean of the training rows after q, shape (e,): e is d and the number of steps.
    scale
        s, shape (e,); 0 for a column that is constant.
    constant
        c > 0.
    quantiles
        The first part of q, which maps columns with heavy tails to normal scores and leaves the others alone.
    mixing
        A, shape (e, p), p ≤ e; None for the identity.
    steps
        The second part of q, which appends codes of columns to them.
    """

    center: Float[np.ndarray, " e"]
    scale: Float[np.ndarray, " e"]
    constant: float
    quantiles: QuantileMap = field(default_factory=QuantileMap.none)
    mixing: Float[np.ndarray, "e p"] | None = None
    steps: Steps = field(default_factory=Steps.none)

    @classmethod
    def fit(
        cls,
        rows: Float[np.ndarray, "n d"],
        sample_weight: Float[np.ndarray, " n"],
        *,
        scaling: str,
        constant: float,
        quantiles: QuantileMap | None = None,
    ) -> "SphereMap":
        """Learn center and scale from weighted rows.

        Parameters
        ----------
        rows
            Finite numbers.
        sample_weight
            Shape (n,), positive.
        scaling
            "columns": every column gets variance 1. "indicators": columns of two values keep distance 1 between them
            instead. "common": all columns share one factor, so that small ones stay small.
        constant
            c.
        quantiles
            q; None leaves all columns alone.
        """
        quantiles = QuantileMap.none() if quantiles is None else quantiles
        rows = quantiles(rows)
        share = sample_weight / sample_weight.sum()
        # The largest entry of each column is divided out first: squares of huge or tiny numbers stay finite.
        size = np.abs(rows).max(axis=0)
        size[size == 0] = 1.0
        unit = rows / size
        center = share @ unit
        spread = np.sqrt(share @ (unit - center) ** 2)
        varies = spread > 1e-10 * np.abs(unit).max(axis=0)
        if scaling == "indicators":
            spread = np.where(indicators(rows), unit.max(axis=0) - unit.min(axis=0), spread)
        spread = spread * size
        if scaling == "common" and varies.any():
            largest = spread[varies].max()
            spread = np.full_like(spread, largest * np.sqrt(np.mean((spread[varies] / largest) ** 2)))
        # The scale of a column of subnormal numbers is the largest there is.
        scale = np.where(varies, 1 / np.maximum(spread, 4 / _FLOAT.max), 0.0)
        return cls(center * size, scale, constant, quantiles)

    @property
    def out_features(self) -> int:
        """Entries after the mixing, and the constant."""
        return (self.center.size if self.mixing is None else self.mixing.shape[1]) + 1

    @property
    def sources(self) -> Int[np.ndarray, " e"]:
        """The column that each entry comes from."""
        return np.append(np.arange(self.center.size - self.steps.columns.size), self.steps.columns)

    @property
    def groups(self) -> Int[np.ndarray, " e"]:
        """Entries that share units, numbered from 0: a column is one, its steps are another."""
        return np.append(
            np.arange(self.center.size - self.steps.columns.size),
            self.center.size - self.steps.columns.size + np.unique(self.steps.columns, return_inverse=True)[1],
        )

    @property
    def last(self) -> float:
        """c √e, the last entry before a row is put on the sphere."""
        return self.constant * float(np.sqrt(self.center.size))

    def with_steps(
        self, rows: Float[np.ndarray, "n d"], sample_weight: Float[np.ndarray, " n"], steps: Steps, share: float
    ) -> "SphereMap":
        """Return a map that has steps beside the columns; the mean variance of its entries is that of the columns.

        Parameters
        ----------
        rows, sample_weight
            Those from which center and scale were learnt.
        steps
            Of their columns.
        share
            Of the variance of a column with steps, what these have, each of them in the same units.
        """
        codes = steps(rows)
        weight = sample_weight / sample_weight.sum()
        center = weight @ codes
        variance = np.bincount(steps.columns, weight @ (codes - center) ** 2, self.center.size)
        spread = np.sqrt(weight @ self.scaled(rows) ** 2)
        size = (self.center.size + steps.columns.size) / self.center.size
        own = self.scale * np.sqrt(size * np.where(variance > 0, 1 - share, 1.0))
        added = np.sqrt(size * share / np.where(variance > 0, variance, 1.0)) * spread
        return replace(
            self,
            center=np.append(self.center, center),
            scale=np.append(own, added[steps.columns]),
            steps=steps,
        )

    def with_every_column(self) -> "SphereMap":
        """Return the same map with a column that was constant scaled by its size: it may vary in rows to come."""
        size = np.abs(self.center)
        size[size == 0] = 1.0
        return replace(self, scale=np.where(self.scale == 0, 1 / np.maximum(size, 4 / _FLOAT.max), self.scale))

    def scaled(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
        """Return rows before the constant is appended; what would overflow stays at the largest number."""
        rows = self._entries(rows)
        with np.errstate(over="ignore"):
            # Scaled first: the difference of huge numbers stays finite.
            scaled = np.clip(rows * self.scale - self.center * self.scale, -_LARGEST, _LARGEST)
            return scaled if self.mixing is None else np.clip(scaled @ self.mixing, -_LARGEST, _LARGEST)

    def __call__(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e_plus_one"]:
        """Return rows of norm 1, float64."""
        out = np.empty((rows.shape[0], self.out_features))
        out[:, :-1] = self.scaled(rows)
        out[:, -1] = self.last
        # The largest entry is divided out first: squares of a far outlier stay finite.
        out /= np.abs(out).max(axis=1, keepdims=True)
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def _entries(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
        rows = self.quantiles(rows)
        return rows if self.steps.columns.size == 0 else np.hstack([rows, self.steps(rows)])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the map by name; `from_arrays` is the inverse."""
        return {
            "center": self.center,
            "scale": self.scale,
            "quantile_columns": self.quantiles.columns,
            "quantile_values": self.quantiles.values,
            "quantile_scores": self.quantiles.scores,
            **({} if self.mixing is None else {"mixing": self.mixing}),
            **({f"step_{name}": value for name, value in vars(self.steps).items()} if self.steps.columns.size else {}),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], constant: float) -> "SphereMap":
        """Build the map from its arrays and its constant; files without quantiles or steps have none.

        Raises
        ------
        ValueError
            Arrays that do not belong together, or numbers that are not finite.
        """
        center = arrays["center"]
        scale = arrays["scale"]
        if center.ndim != 1 or scale.shape != center.shape:
            raise ValueError(f"center and scale must have one shape (e,), got {center.shape} and {scale.shape}")
        if not (np.isfinite(center).all() and np.isfinite(scale).all() and 0 < constant < np.inf):
            raise ValueError("center, scale and constant of the input map must be finite, and the constant positive")
        mixing = arrays.get("mixing")
        if mixing is not None:
            fits = mixing.ndim == 2 and 1 <= mixing.shape[1] <= mixing.shape[0] == center.size
            if not fits or not np.isfinite(mixing).all():
                raise ValueError(f"mixing must be finite and have shape (e, p) with p ≤ e, got {mixing.shape}")
        if "quantile_columns" not in arrays:
            return cls(center, scale, constant)
        columns, values, scores = (arrays[f"quantile_{name}"] for name in ("columns", "values", "scores"))
        steps = Steps.none()
        if "step_columns" in arrays:
            of_steps = (arrays[f"step_{name}"] for name in ("columns", "low", "high"))
            steps = Steps.of(*of_steps, features=center.size - arrays["step_columns"].size)
        features = center.size - steps.columns.size
        return cls(center, scale, constant, QuantileMap.of(columns, values, scores, features), mixing, steps)
