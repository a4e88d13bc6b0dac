"""Certificates of the few neurons that have drifted far, issued where they stand now."""

import numpy as np

from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.bounds import Bounds
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import evaluate_slots
from widefit.trackers.certificate.running_update import RunningUpdate

# Part of the slots that may be evaluated as a whole so that a step is safe for all.
REISSUED = 0.02


def reissue(
    geometry: Geometry,
    chunks: list[CertifiedChunk],
    update: RunningUpdate,
    bounds: Bounds,
    beyond: list[np.ndarray],
    drift: list[np.ndarray],
) -> list[np.ndarray]:
    """Issue certificates of some slots where they stand now, and return the drift without the way there.

    Parameters
    ----------
    beyond
        Slots of every chunk.
    drift
        Drift of every chunk after the step to come.
    """
    by_output = bounds.by_output()

    def reissue_chunk(item: tuple[CertifiedChunk, np.ndarray, np.ndarray]) -> np.ndarray:
        chunk, slots, own = item
        if slots.size:
            if chunk.drift.size:
                own[slots] -= chunk.drift[slots] * np.float32(1 - 2e-7)
                chunk.drift[slots] = 0
            rescanned = evaluate_slots(geometry, chunk, slots, update, by_output[chunk.chunk.output])
            # Certificates are issued for the bucket of the present fire row.
            chunk.bucket[slots] = geometry.bucket_of[chunk.counts[slots]]
            chunk.certificates.exchange(slots, rescanned.certificates)
        return own

    with serial_blas():
        return list(ordered_map(reissue_chunk, zip(chunks, beyond, drift, strict=True), geometry.threads))
