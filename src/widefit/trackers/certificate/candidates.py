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
# Samples at least that a slot may begin to fire on for as long as a window lasts.
_MORE_SAMPLES = 8


@dataclass(frozen=True)
class Candidates:
    """Pairs of a chunk that could flip within a budget of movement, ordered.

    Attributes
    ----------
    slots, samples, fires
        The pairs, and whether they fire.
    left
        How far z is from the threshold at least; below 0 where nothing is known.
    spare
        Movement beyond the budget that every slot of the chunk can make.
    """

    slots: Int[np.ndarray, " c"]
    samples: Int[np.ndarray, " c"]
    fires: Bool[np.ndarray, " c"]
    left: Float[np.ndarray, " c"]
    spare: Float[np.ndarray, " slots"]

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
    room: Float[np.ndarray, " slots"],
    budget: Float[np.ndarray, " n"],
) -> Candidates:
    """Pairs that could flip within the budget.

    Samples on which a slot begins to fire move it, too: it has something to spare for them, as much as the budget moves
    it by and a few samples' worth, where the radius allows that.

    Parameters
    ----------
    drift
        Once the budget is used up, as long as fire rows stay as they are.
    room
        Drift at which pairs without a certificate could flip.
    """
    own = drift - chunk.drift if chunk.drift.size else drift
    few = np.abs(chunk.coefficients) * (geometry.steepest * _MORE_SAMPLES * float(budget.mean()))
    most = np.minimum(drift + own + few, room * (1 - 1e-6)).astype(np.float32)
    return _expiring(geometry, chunk, bounds, np.maximum(most, drift), np.maximum(most - drift * (1 + 1e-6), 0.0))


def _expiring(
    geometry: Geometry,
    chunk: CertifiedChunk,
    bounds: OutputBounds,
    drift: Float[np.ndarray, " slots"],
    spare: Float[np.ndarray, " slots"],
) -> Candidates:
    """Pairs whose certificates expire before the drift has come to what is given."""
    held = chunk.certificates
    slots, samples = np.empty(held.used, np.int32), np.empty(held.used, np.int32)
    fires, left = np.empty(held.used, np.bool_), np.empty(held.used)
    found = kernels.expiring_pairs(
        held.start, held.count, held.soonest, held.sample, held.due, chunk.counts, chunk.start, chunk.words,
        chunk.bucket, chunk.drift, drift, bounds.level, bounds.highest, geometry.samples, slots, samples, fires, left,
    )  # fmt: skip
    return Candidates(slots[:found].copy(), samples[:found].copy(), fires[:found].copy(), left[:found].copy(), spare)
