"""Forecast for the neurons of a block: which listed pairs can come to the threshold, and how far each neuron can go."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from widefit.kernels.verlet import inner_steps as kernels
from widefit.kernels.verlet.near_lists import move
from widefit.trackers.verlet.forecast import Forecast
from widefit.trackers.verlet.lookahead import MANY
from widefit.trackers.verlet.near_lists import Lists


@dataclass(frozen=True)
class BlockForecast:
    """Forecast for the neurons of a block.

    Attributes
    ----------
    forecast
        Forecast of their output.
    direction
        v_r = Σ_{i: r fires on i} ĝ_i x_i.
    coefficients
        a_r / √m.
    inputs
        X.
    """

    forecast: Forecast
    direction: Float[np.ndarray, "rows d"]
    coefficients: Float[np.ndarray, " rows"]
    inputs: Float[np.ndarray, "n d"]

    @classmethod
    def of(
        cls,
        forecast: Forecast,
        weights: Float[np.ndarray, "rows d"],
        coefficients: Float[np.ndarray, " rows"],
        inputs: Float[np.ndarray, "n d"],
        lists: Lists,
    ) -> "BlockForecast":
        """Sum up the direction of every neuron."""
        direction = np.zeros_like(weights)
        move(
            direction, weights[:0], weights.dtype.type(0), np.full(len(weights), -1.0), forecast.direction, inputs,
            lists.entries, direction,
        )  # fmt: skip
        return cls(forecast, direction, coefficients, inputs)

    def reach(self, lists: Lists) -> Float[np.ndarray, " rows"]:
        """Return the distance that each neuron can go, apart from what its near pairs add."""
        out = np.empty(len(self.direction))
        kernels.reach(
            lists.entries, self.direction, self.coefficients, self.forecast.stretch, self.forecast.deviation, out
        )
        return out

    def near(
        self,
        lists: Lists,
        margins: Float[np.ndarray, " listed"],
        norms: Float[np.ndarray, " n"],
        rounding: Float[np.ndarray, " rows"],
    ) -> tuple[Bool[np.ndarray, " listed"] | None, Float[np.ndarray, " rows"]]:
        """Return the listed pairs that can come to the threshold, and the distance that each neuron can go.

        None in place of the pairs where there are many.
        """
        near = np.zeros(margins.size, np.bool_)
        reached = np.zeros(len(self.direction))
        most = 64 + int(np.count_nonzero(lists.fires)) // MANY
        forecast = self.forecast
        course = kernels.Course(self.direction, forecast.stretch, forecast.deviation, forecast.swing)
        found = kernels.choose(
            lists.entries, margins, course, self.coefficients, self.inputs, norms, rounding, most, near, reached
        )
        return (near if found <= most else None), reached
