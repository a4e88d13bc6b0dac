"""The map of tables to the unit sphere, on which the networks live."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class SphereMap:
    """x ↦ (s ∘ (x − center), c √d) / ‖·‖: the constant coordinate keeps what the norm of a row says.

    Attributes
    ----------
    center
        Weighted mean of the training rows, shape (d,).
    scale
        s, shape (d,); 0 for a column that is constant.
    constant
        c > 0.
    """

    center: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    constant: float

    @classmethod
    def fit(
        cls,
        rows: Float[np.ndarray, "n d"],
        sample_weight: Float[np.ndarray, " n"],
        *,
        scaling: str,
        constant: float,
    ) -> "SphereMap":
        """Learn center and scale from weighted rows.

        Parameters
        ----------
        rows
            Finite numbers.
        sample_weight
            Shape (n,), positive.
        scaling
            "columns": every column gets variance 1. "common": all columns share one factor, so that small ones stay
            small.
        constant
            c.
        """
        share = sample_weight / sample_weight.sum()
        # The largest entry of each column is divided out first: squares of huge or tiny numbers stay finite.
        size = np.abs(rows).max(axis=0)
        size[size == 0] = 1.0
        unit = rows / size
        center = share @ unit
        spread = np.sqrt(share @ (unit - center) ** 2)
        varies = spread > 1e-10 * np.abs(unit).max(axis=0)
        spread, center = spread * size, center * size
        if scaling == "common" and varies.any():
            largest = spread[varies].max()
            spread = np.full_like(spread, largest * np.sqrt(np.mean((spread[varies] / largest) ** 2)))
        scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=varies)
        return cls(center, scale, constant)

    @property
    def out_features(self) -> int:
        """d + 1."""
        return self.center.size + 1

    def with_every_column(self) -> "SphereMap":
        """The same map with a column that was constant scaled by its size: it may vary in rows to come."""
        size = np.abs(self.center)
        size[size == 0] = 1.0
        return SphereMap(self.center, np.where(self.scale == 0, 1 / size, self.scale), self.constant)

    def scaled(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Centred and scaled rows, before the constant is appended; what would overflow stays at the largest number."""
        largest = np.finfo(np.float64).max / 4
        with np.errstate(over="ignore"):
            return np.clip((rows - self.center) * self.scale, -largest, largest)

    def __call__(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d_plus_one"]:
        """Rows of norm 1, float64."""
        out = np.empty((rows.shape[0], self.out_features))
        out[:, :-1] = self.scaled(rows)
        out[:, -1] = self.constant * np.sqrt(self.center.size)
        # The largest entry is divided out first: squares of a far outlier stay finite.
        out /= np.abs(out).max(axis=1, keepdims=True)
        return out / np.linalg.norm(out, axis=1, keepdims=True)
