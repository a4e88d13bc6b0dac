"""Certificates of the pairs of a chunk that are near the threshold."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from widefit.kernels.certificate import rows as kernels
from widefit.kernels.certificate.look import CertificateRuns
from widefit.trackers.certificate.slot_layout import disperse, in_order, keeps_places
from widefit.trackers.fire_pattern import fitting, word_dtype


@dataclass
class Certificates:
    """Pairs near the threshold; those of a slot stand together.

    Attributes
    ----------
    count
        Number of pairs of each slot.
    soonest
        Level at which the first of them is due, or lower.
    sample, due
        The pairs: one cannot have flipped before the bound of its bucket and sample, and the slot's drift, reach `due`.
    places
        First pair of each slot; None where they stand slot after slot and nobody has asked.
    """

    count: Integer[np.ndarray, " slots"]
    soonest: Float[np.ndarray, " slots"]
    sample: Integer[np.ndarray, " pairs"]
    due: Float[np.ndarray, " pairs"]
    places: Int[np.ndarray, " slots"] | None = None

    @property
    def start(self) -> Int[np.ndarray, " slots"]:
        """First pair of each slot; summed up where that is not kept."""
        if self.places is not None:
            return self.places
        dtype = fitting(self.sample.size)
        start = np.cumsum(self.count, dtype=dtype) - self.count.astype(dtype)
        self.places = start if keeps_places(start.size) else None
        return start

    def runs(self) -> CertificateRuns:
        """Return the arrays, for the kernels."""
        return CertificateRuns(self.start, self.count, self.soonest, self.sample, self.due)

    @classmethod
    def none(cls, slots: int, samples: int) -> "Certificates":
        """Return those of slots that hold no certificate."""
        dtype = word_dtype(samples)
        never = np.full(slots, np.inf, np.float32)
        return cls(np.zeros(slots, dtype), never, np.empty(0, dtype), np.empty(0, np.float32))

    def of(self, slots: Int[np.ndarray, " s"]) -> "Certificates":
        """Return the certificates of `slots` (ascending), stored contiguously; all others must be empty."""
        return Certificates(self.count[slots], self.soonest[slots], self.sample, self.due)

    def renew(
        self,
        expired: Integer[np.ndarray, " e"],
        due: Float[np.ndarray, " e"],
        touched: Integer[np.ndarray, " t"],
    ) -> None:
        """Change the levels at which some certificates are due; `touched` are their slots."""
        self.due[expired] = due
        kernels.first_due(touched, self.runs())

    def exchange(self, slots: Int[np.ndarray, " a"], issued: "Certificates") -> None:
        """Replace the certificates of some slots by others."""
        start = self.start
        start[slots] = issued.start + np.asarray(self.due.size, start.dtype)
        self.count[slots] = issued.count
        self.soonest[slots] = issued.soonest
        self.sample = np.concatenate([self.sample, issued.sample])
        self.due = np.concatenate([self.due, issued.due])
        self.places = start.astype(fitting(self.due.size), copy=False)
        if not disperse(slots.size, self.count.size) or self.due.size > 2 * self.count.sum(dtype=np.int64):
            order = in_order(start, self.count)
            self.sample = self.sample[order]
            self.due = self.due[order]
            self.places = None

    @property
    def nbytes(self) -> int:
        held = (self.count, self.soonest, self.sample, self.due, self.places)
        return sum(array.nbytes for array in held if array is not None)
