"""State of a run: chunks, running sums and bounds; and the pace of its steps."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.trackers.certificate.bounds import Bounds
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.running_update import RunningUpdate


@dataclass
class RunState:
    """Chunks, running sums and bounds of a run; changed in place.

    Attributes
    ----------
    chunks
        The neurons that can move.
    update
        G and P.
    bounds
        Bounds that certificates are measured against; None: the next step is a pass.
    """

    chunks: list[CertifiedChunk]
    update: RunningUpdate
    bounds: Bounds | None


class Pace:
    """Resemblance of a step to the one before.

    Attributes
    ----------
    alike
        True when the last step was like the one before: as long to a factor of 2, and over the same samples.
    """

    def __init__(self) -> None:
        self.alike = False
        self._last = np.zeros((1, 1))

    def record(self, change: Float[np.ndarray, "k n"]) -> None:
        """Compare a step with the last."""
        size = np.abs(change)
        last = float(self._last.sum())
        self.alike = bool(0.5 * last < size.sum() < 2 * last and np.abs(size - self._last).sum() < 1.2 * last)
        self._last = size
