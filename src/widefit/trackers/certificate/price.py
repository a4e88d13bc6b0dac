"""What the steps of a window take, beside those outside windows, in gathers (measured)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.kernels.threads import ordered_map
from widefit.trackers.certificate.candidates import Candidates
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.front import CLOSE
from widefit.trackers.certificate.geometry import Geometry

# Of making a pair hot, of going from a hot pair of a neuron to the next, and of putting a candidate in its place.
_HOT, _HOP, _CANDIDATE = 4000, 100, 200
# For every sample that a hot pair's neuron fires on: in evaluating it, and in pushing.
_FIRED = 3


@dataclass(frozen=True)
class Price:
    """Gathers.

    Attributes
    ----------
    hot
        Pairs that are hot from the first step on.
    opening
        To find the candidates and to make pairs hot.
    firing, hops
        A step's: over the samples that the neurons of hot pairs fire on, and from hot pair to hot pair.
    outside
        A step's outside windows.
    """

    hot: int
    opening: float
    firing: float
    hops: float
    outside: float

    def step(self, hot: int) -> float:
        """A step with so many hot pairs."""
        growth = hot / max(1, self.hot)
        return self.firing * growth + self.hops * growth**2

    def gain(self, steps: int) -> float:
        """How many times as long so many steps take outside."""
        return steps * self.outside / max(1.0, self.opening + steps * self.step(self.hot))


def price(
    geometry: Geometry,
    chunks: list[CertifiedChunk],
    chosen: list[Candidates],
    visit: Float[np.ndarray, "k n"],
    visited: float,
) -> Price:
    """Of a window with such candidates.

    Parameters
    ----------
    visit
        Σ |g| of every sample from one look at it to the next.
    visited
        Part of the samples that are looked at in a step.
    """
    path = np.sort(visit, axis=1)[:, ::-1].cumsum(axis=1)[:, geometry.caps - 1] * (1 + CLOSE)

    def count(item: tuple[CertifiedChunk, Candidates]) -> np.ndarray:
        chunk, held = item
        silent = np.bincount(held.slots[~held.fires], minlength=chunk.neurons.size)
        bucket = np.searchsorted(geometry.caps, np.minimum(chunk.counts + silent, geometry.samples))
        rate = np.abs(chunk.coefficients) * path[chunk.chunk.output][bucket]
        hot = held.left <= rate[held.slots] * geometry.peak[held.samples]
        own = np.bincount(held.slots[hot], minlength=chunk.neurons.size).astype(np.float64)
        return np.array([own.sum(), own @ chunk.counts, own @ own])

    hot, fired, hops = np.sum(list(ordered_map(count, zip(chunks, chosen, strict=True), geometry.threads)), axis=0)
    size = sum(len(held) for held in chosen)
    firing = sum(float(chunk.counts.sum(dtype=np.int64)) for chunk in chunks)
    return Price(
        hot=int(hot),
        opening=_CANDIDATE * size + _HOT * hot,
        firing=visited * _FIRED * fired,
        hops=visited * _HOP * hops,
        outside=firing * geometry.inputs.shape[1],
    )
