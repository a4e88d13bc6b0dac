"""Schedule of looks ahead: whether to prepare for the next steps of a descent, and for how many."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from widefit.trackers.verlet.forecast import Forecast

# Looking ahead pays as long as no more than one in so many of the pairs that fire is near the threshold.
MANY = 8
# Steps of the first look ahead, and of any; half of them must come true.
_SHORT = 6.0
# Factor from one look to the next.
_CHANGE = 1.4
# Steps to wait at most where looking ahead does not pay.
_LONGEST = 32
# Cost of a look for a pair that fires and a feature, in additions.
_LOOK = 1.5
# Cost of a near pair beside its neuron's row, in additions.
_PAIR = 20


class LookaheadSchedule:
    """Schedule of looks ahead, and their length: learned from the steps so far, never from the clock.

    Attributes
    ----------
    density
        Pairs of a neuron for every unit of distance next to the threshold.
    """

    def __init__(self, outputs: int, density: float):
        self.density = density
        self._stretch = _SHORT
        self._waiting = 0
        self._pause = 1
        self._shapes: list[np.ndarray | None] = [None] * outputs
        self._before: np.ndarray | None = None

    def record_plain_step(self, g: Float[np.ndarray, "n k"]) -> None:
        """Record a step that was taken without looking ahead."""
        self._before = g

    def back_off(self) -> None:
        """Wait twice as long as before: looking ahead does not pay yet."""
        self._pause = min(_LONGEST, 2 * self._pause)
        self._waiting = self._pause
        self._stretch = _SHORT
        self._before = None

    def should_look(
        self, g: Float[np.ndarray, "n k"], norms: Float[np.ndarray, " n"], size: float, neurons: int, firing: int
    ) -> bool:
        """Return True where steps like this one and the last are likely to have few near pairs.

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
        """Return a forecast for each output, of steps of which this is the first."""
        return [
            Forecast.of(direction, self._stretch, shape, norms, least)
            for direction, shape in zip(np.ascontiguousarray(g.T), self._shapes, strict=True)
        ]

    def update(
        self,
        forecasts: Sequence[Forecast],
        totals: Float[np.ndarray, "n k"],
        steps: int,
        idle: int,
        look: int,
        row: float,
    ) -> bool:
        """Learn from steps that end; return True where to look ahead again.

        Parameters
        ----------
        totals
            Sums of g, that of the step which no longer fitted among them.
        steps
            Their number without that one.
        idle
            Near pairs that have not flipped.
        look
            Pairs that fire, times the features: the work of a look.
        row
            Samples that a neuron fires on.
        """
        self._shapes = [forecast.shape(total) for forecast, total in zip(forecasts, totals.T, strict=True)]
        further = _LOOK * look > 2 * steps * idle * (_PAIR + row)
        self._stretch = max(_SHORT, self._stretch * (_CHANGE if further else 1 / _CHANGE))
        if steps < _SHORT / 2:
            self.back_off()
            return False
        self._pause = 1
        return True

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays that `restore` needs."""
        held = {"outlook": np.array([self.density, self._stretch, self._waiting, self._pause])}
        held |= {f"shape.{c}": shape for c, shape in enumerate(self._shapes) if shape is not None}
        return held if self._before is None else held | {"before": self._before}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from an earlier state."""
        density, stretch, waiting, pause = state["outlook"]
        self.density = float(density)
        self._stretch = float(stretch)
        self._waiting = int(waiting)
        self._pause = int(pause)
        self._shapes = [state.get(f"shape.{c}") for c in range(len(self._shapes))]
        self._before = state.get("before")
