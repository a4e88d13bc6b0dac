"""Looking ahead: what the next steps of a descent will be like, and how many of them to prepare for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# What a bound leaves for surprises; how it grows with the number of steps; where it starts, in terms of the first one.
_ROOM, _GROWTH, _FIRST = 1.2, 1.5, 0.2
# Looking ahead is worth its while as long as no more than one in so many of the pairs that fire is near the threshold.
MANY = 8
# Steps of the first look ahead, and of any; half of them must come true.
_SHORT = 6.0
# Factor from one look to the next; steps to wait at most where it does not pay.
_CHANGE, _LONGEST = 1.4, 32
# What a look costs for a pair that fires and a feature, and a near pair beside its neuron's row, in additions.
_LOOK, _PAIR = 1.5, 20


@dataclass(frozen=True)
class Forecast:
    """Steps whose sum s stays near a line, s ≈ θ ĝ with 0 ≤ θ ≤ stretch.

    Attributes
    ----------
    direction
        ĝ, the first of them.
    stretch
        Θ.
    deviation
        For k = 0 … n, the k largest |s_i − θ ĝ_i| ‖x_i‖ together are no more than this.
    swing
        Σ_{t in T} g_i(t) is no further than this, over ‖x_i‖, from 0 and from θ ĝ_i, for any steps T.
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
        """For about `stretch` steps like this one, that leave the line as those before did, or by `least`."""
        size = np.abs(direction)
        if shape is None:
            shape = _FIRST * _largest(size * norms) / max(float(size.sum()), 1e-300)
        room = _ROOM * float(size.sum()) * stretch**_GROWTH * shape
        return cls(direction, stretch, room + least, stretch * (1.1 * size + 0.1 * size.mean()) * norms + least, norms)

    def along(self, total: Float[np.ndarray, " n"]) -> tuple[float, Float[np.ndarray, " n_plus_one"]]:
        """θ of a sum, and how far that is from the line."""
        square = float(self.direction @ self.direction)
        theta = max(float(total @ self.direction) / square, 0.0) if square > 0 else 0.0
        return theta, _largest(np.abs(total - theta * self.direction) * self.norms)

    def holds(self, total: Float[np.ndarray, " n"], path: Float[np.ndarray, " n"]) -> bool:
        """Whether it covers steps of this sum, and of this sum of their sizes."""
        theta, off = self.along(total)
        if not (theta <= self.stretch and np.all(off <= self.deviation)):
            return False
        back = 0.5 * (path - np.sign(self.direction) * total)
        swing = np.maximum(path, back + theta * np.abs(self.direction))
        return bool(np.all(swing * self.norms <= self.swing * (1 + 1e-12)))

    def shape(self, total: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n_plus_one"]:
        """How steps leave the line, whatever their size and number."""
        theta, off = self.along(total)
        return off / (max(theta, 1.0) ** _GROWTH * max(float(np.abs(self.direction).sum()), 1e-300))


def _largest(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n_plus_one"]:
    """Sums of the k largest, k = 0 … n."""
    return np.append(0.0, np.cumsum(np.sort(values)[::-1]))


class Outlook:
    """When to look ahead, and how far: learned from the steps so far, never from the clock.

    Attributes
    ----------
    density
        Pairs of a neuron for every unit of distance next to the threshold.
    """

    def __init__(self, outputs: int, density: float):
        self.density = density
        self._stretch, self._waiting, self._pause = _SHORT, 0, 1
        self._shapes: list[np.ndarray | None] = [None] * outputs
        self._before: np.ndarray | None = None

    def passed(self, g: Float[np.ndarray, "n k"]) -> None:
        """A step was taken without looking ahead."""
        self._before = g

    def wait(self) -> None:
        """Looking ahead does not pay yet."""
        self._pause, self._stretch = min(_LONGEST, 2 * self._pause), _SHORT
        self._waiting, self._before = self._pause, None

    def promising(
        self, g: Float[np.ndarray, "n k"], norms: Float[np.ndarray, " n"], size: float, neurons: int, firing: int
    ) -> bool:
        """Whether steps like this one and the last are likely to have few near pairs.

        Parameters
        ----------
        norms
            ‖x_i‖.
        size
            |a_r| / √m.
        neurons, firing
            Neurons, and pairs that fire.
        """
        if self._before is None:
            return False
        self._shapes = [
            Forecast.of(first, 1.0, None, norms, 0.0).shape(first + second)
            for first, second in zip(self._before.T, g.T, strict=True)
        ]
        for forecast in self.forecasts(g, norms, 0.0):
            # Pairs that a pair which flips can take along, and those that the rest of the way can.
            along = 2 * size * self.density * float(forecast.swing.mean())
            off = 2 * size * self.density * float(forecast.deviation[min(firing // neurons + 1, len(g))])
            if not (along < 0.5 and neurons * off < (1 - along) * firing / MANY):
                return False
        self._waiting -= 1
        return self._waiting < 0

    def forecasts(self, g: Float[np.ndarray, "n k"], norms: Float[np.ndarray, " n"], least: float) -> list[Forecast]:
        """One an output, of steps of which this is the first."""
        return [
            Forecast.of(direction, self._stretch, shape, norms, least)
            for direction, shape in zip(np.ascontiguousarray(g.T), self._shapes, strict=True)
        ]

    def learn(
        self,
        forecasts: Sequence[Forecast],
        totals: Float[np.ndarray, "n k"],
        steps: int,
        idle: int,
        look: int,
        row: float,
    ) -> bool:
        """From steps that end: whether to look ahead again.

        Parameters
        ----------
        totals
            Sums of g, that of the step which no longer fitted among them.
        steps
            Their number without that one.
        idle
            Near pairs that have not flipped.
        look
            Pairs that fire, times the features.
        row
            Samples that a neuron fires on.
        """
        self._shapes = [forecast.shape(total) for forecast, total in zip(forecasts, totals.T, strict=True)]
        further = _LOOK * look > 2 * steps * idle * (_PAIR + row)
        self._stretch = max(_SHORT, self._stretch * (_CHANGE if further else 1 / _CHANGE))
        if steps < _SHORT / 2:
            self.wait()
            return False
        self._pause = 1
        return True

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs."""
        held = {"outlook": np.array([self.density, self._stretch, self._waiting, self._pause])}
        held |= {f"shape.{c}": shape for c, shape in enumerate(self._shapes) if shape is not None}
        return held if self._before is None else held | {"before": self._before}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from an earlier state."""
        self.density, self._stretch = map(float, state["outlook"][:2])
        self._waiting, self._pause = map(int, state["outlook"][2:])
        self._shapes = [state.get(f"shape.{c}") for c in range(len(self._shapes))]
        self._before = state.get("before")
