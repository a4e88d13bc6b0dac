"""Certificates of the few neurons that have drifted far, issued where they stand now."""

import numpy as np

from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import look_at_slots
from widefit.trackers.certificate.trial import Bounds, Sums

# Part of the slots that may be looked at as a whole so that a step is safe for all.
REISSUED = 0.02


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
