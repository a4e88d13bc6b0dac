"""Which pairs of the certificate tracker could flip within a budget of movement."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.kernels import certificate_front as kernels
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.bounds import drift_of_budget
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import look_at_slots
from widefit.trackers.certificate.trial import Bounds, OutputBounds, Sums

# Part of the slots that may be looked at as a whole so that a step or a window is safe for all.
REISSUED = 0.02


@dataclass(frozen=True)
class Candidates:
    """Pairs of a chunk that could flip within a budget of movement, ordered.

    Attributes
    ----------
    slots, samples, fires
        The pairs, and whether they fire.
    left
        How far z is from the threshold at least; below 0 where nothing is known.
    """

    slots: Int[np.ndarray, " c"]
    samples: Int[np.ndarray, " c"]
    fires: Bool[np.ndarray, " c"]
    left: Float[np.ndarray, " c"]

    def __len__(self) -> int:
        return self.slots.size


def drift_within(
    geometry: Geometry, chunks: list[CertifiedChunk], budget: Float[np.ndarray, "k n"]
) -> list[np.ndarray]:
    """Drift once a window has used up its budget."""

    def walk(chunk: CertifiedChunk) -> np.ndarray:
        moved = drift_of_budget(geometry, chunk, budget[chunk.chunk.output])
        return moved + chunk.drift * np.float32(1 + 2e-7) if chunk.drift.size else moved

    return list(ordered_map(walk, chunks, geometry.threads))


def issue_anew(
    geometry: Geometry,
    chunks: list[CertifiedChunk],
    sums: Sums,
    bounds: Bounds,
    beyond: list[np.ndarray],
    drift: list[np.ndarray],
) -> list[np.ndarray]:
    """Give slots certificates from where they stand now, and take the drift so far off what is to come."""
    by_output = bounds.by_output()

    def issue(item: tuple[CertifiedChunk, np.ndarray, np.ndarray]) -> np.ndarray:
        chunk, slots, own = item
        if slots.size:
            if chunk.drift.size:
                own[slots] -= chunk.drift[slots] * np.float32(1 - 2e-7)
                chunk.drift[slots] = 0
            anew = look_at_slots(geometry, chunk, slots, sums, by_output[chunk.chunk.output])
            # Certificates are issued for the bucket of the present fire row.
            chunk.bucket[slots] = geometry.bucket_of[chunk.counts[slots]]
            chunk.certificates.exchange(slots, anew.certificates)
        return own

    with serial_blas():
        return list(ordered_map(issue, zip(chunks, beyond, drift, strict=True), geometry.threads))


def candidates(
    geometry: Geometry,
    chunk: CertifiedChunk,
    bounds: OutputBounds,
    drift: Float[np.ndarray, " slots"],
    budget: Float[np.ndarray, " n"],
) -> tuple[Candidates, Float[np.ndarray, " slots"]]:
    """Pairs that could flip within the budget, and the drift that it comes to when all of them do.

    Parameters
    ----------
    drift
        Once the budget is used up, as long as fire rows stay as they are.
    """
    share = np.abs(chunk.coefficients) * (geometry.steepest * (1 + 1e-6))
    found = _expiring(geometry, chunk, bounds, drift)
    before, most = -1, drift
    while len(found) > max(before, 0):
        # A candidate that begins to fire lets its sample move the neuron, which may bring more candidates.
        silent = ~found.fires
        added = np.bincount(found.slots[silent], weights=budget[found.samples[silent]], minlength=drift.size)
        most = np.nextafter((drift + share * added).astype(np.float32), np.float32(np.inf))
        before, found = len(found), _expiring(geometry, chunk, bounds, most)
    return found, most


def _expiring(
    geometry: Geometry, chunk: CertifiedChunk, bounds: OutputBounds, drift: Float[np.ndarray, " slots"]
) -> Candidates:
    """Pairs whose certificates expire before the drift has come to what is given."""
    held = chunk.certificates
    slots, samples = np.empty(held.used, np.int32), np.empty(held.used, np.int32)
    fires, left = np.empty(held.used, np.bool_), np.empty(held.used)
    found = kernels.expiring_pairs(
        held.start, held.count, held.soonest, held.sample, held.due, chunk.counts, chunk.start, chunk.words,
        chunk.bucket, chunk.drift, drift, bounds.level, bounds.highest, geometry.samples, slots, samples, fires, left,
    )  # fmt: skip
    return Candidates(*(array[:found].copy() for array in (slots, samples, fires, left)))
