"""Running sums of the updates of a run."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.trackers.base import Update


@dataclass(frozen=True)
class RunningUpdate:
    """Sums G and P: slot r has collected C_r = s_r ∘ G + P ê_r (see `widefit.kernels.certificate.slots`).

    Attributes
    ----------
    collected
        G of every output.
    scale
        P of every output.
    """

    collected: Float[np.ndarray, "k n"]
    scale: Float[np.ndarray, " k"]

    @classmethod
    def none(cls, outputs: int, samples: int) -> "RunningUpdate":
        """Return the sums before the first update."""
        return cls(np.zeros((outputs, samples)), np.ones(outputs))

    def of(self, output: int) -> tuple[Float[np.ndarray, " n"], float]:
        """Return G and P of an output."""
        return self.collected[output], float(self.scale[output])

    def after(self, update: Update) -> "RunningUpdate":
        """Return the sums after an update."""
        keep = 1 - update.shrink
        return RunningUpdate(keep[:, None] * self.collected + update.g.T, self.scale * keep)

    def since(self, before: "RunningUpdate") -> "RunningUpdate":
        """Return the change from earlier sums."""
        return RunningUpdate(self.collected - before.collected, self.scale - before.scale)
