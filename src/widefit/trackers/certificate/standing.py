"""Where a run of the certificate tracker stands."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.trial import Bounds, Sums


@dataclass
class Standing:
    """Where a run stands.

    Attributes
    ----------
    chunks
        The neurons that can move.
    sums
        G and P.
    bounds
        What certificates are measured against; None: the next step is a pass.
    """

    chunks: list[CertifiedChunk]
    sums: Sums
    bounds: Bounds | None


class Pace:
    """Whether steps have become alike.

    Attributes
    ----------
    alike
        True when the last step was like the one before: as long to a factor of 2, and over the same samples.
    """

    def __init__(self) -> None:
        self.alike, self._last = False, np.zeros((1, 1))

    def record(self, change: Float[np.ndarray, "k n"]) -> None:
        size, last = np.abs(change), float(self._last.sum())
        self.alike = bool(0.5 * last < size.sum() < 2 * last and np.abs(size - self._last).sum() < 1.2 * last)
        self._last = size
