"""Forecast of the next steps of a descent: a line that their sum stays near."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# Margin of a bound for surprises.
_ROOM = 1.2
# Exponent of the growth of a deviation with the number of steps.
_GROWTH = 1.5
# Deviation before any is known, in terms of the first step.
_FIRST = 0.2


@dataclass(frozen=True)
class Forecast:
    """Expectation that the sum s of steps stays near a line, s ≈ θ ĝ with 0 ≤ θ ≤ stretch.

    Attributes
    ----------
    direction
        ĝ, the first step.
    stretch
        Θ.
    deviation
        Bound of the k largest |s_i − θ ĝ_i| ‖x_i‖ together, for k = 0 … n.
    swing
        Bound of the distance of Σ_{t in T} g_i(t) from 0 and from θ ĝ_i, times ‖x_i‖, for any steps T.
    norms
        ‖x_i‖.
    """

    direction: Float[np.ndarray, " n"]
    stretch: float
    deviation: Float[np.ndarray, " n_plus_one"]
    swing: Float[np.ndarray, " n"]
    norms: Float[np.ndarray, " n"]

    @classmethod
    def of(
        cls,
        direction: Float[np.ndarray, " n"],
        stretch: float,
        shape: Float[np.ndarray, " n_plus_one"] | None,
        norms: Float[np.ndarray, " n"],
        least: float,
    ) -> "Forecast":
        """Expect about `stretch` steps like this one, which leave the line as those before did, or by `least`."""
        size = np.abs(direction)
        if shape is None:
            shape = _FIRST * _largest(size * norms) / max(float(size.sum()), 1e-300)
        room = _ROOM * float(size.sum()) * stretch**_GROWTH * shape
        swing = stretch * (1.1 * size + 0.1 * size.mean()) * norms + least
        return cls(direction, stretch, room + least, swing, norms)

    def along(self, total: Float[np.ndarray, " n"]) -> tuple[float, Float[np.ndarray, " n_plus_one"]]:
        """Return θ of a sum, and the distance of the sum from the line."""
        square = float(self.direction @ self.direction)
        theta = max(float(total @ self.direction) / square, 0.0) if square > 0 else 0.0
        return theta, _largest(np.abs(total - theta * self.direction) * self.norms)

    def holds(self, total: Float[np.ndarray, " n"], path: Float[np.ndarray, " n"]) -> bool:
        """Return True where it covers steps with these sums of g and of |g|."""
        theta, off = self.along(total)
        if not (theta <= self.stretch and np.all(off <= self.deviation)):
            return False
        back = 0.5 * (path - np.sign(self.direction) * total)
        swing = np.maximum(path, back + theta * np.abs(self.direction))
        return bool(np.all(swing * self.norms <= self.swing * (1 + 1e-12)))

    def shape(self, total: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n_plus_one"]:
        """Return the distance from the line without the size and number of the steps."""
        theta, off = self.along(total)
        return off / (max(theta, 1.0) ** _GROWTH * max(float(np.abs(self.direction).sum()), 1e-300))


def _largest(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n_plus_one"]:
    """Return the sums of the k largest, k = 0 … n."""
    return np.append(0.0, np.cumsum(np.sort(values)[::-1]))
