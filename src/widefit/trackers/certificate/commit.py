"""Carrying out what a step of the certificate tracker comes to, chunk by chunk."""

import numpy as np
from jaxtyping import Bool, Float

from widefit.kernels.memory import giving_back
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.bounds import rebucket
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.standing import Standing
from widefit.trackers.certificate.trial import Bounds, Followed, Found, Sums


def carry_out(geometry: Geometry, standing: Standing, step: Followed) -> None:
    """Bring the chunks, G, P and the bounds to where a step has led."""
    reset: Bool[np.ndarray, " k"] = step.sums.scale == 0
    sums = Sums(step.sums.collected, np.where(reset, 1.0, step.sums.scale))

    def carry(item: tuple[CertifiedChunk, Found]) -> None:
        chunk, found = item
        output = chunk.chunk.output
        if reset[output]:
            # All the way back: what was collected before counts for nothing, and P begins anew.
            chunk.corrections.clear()
        if step.passed:
            _replace(geometry, chunk, found, *sums.of(output))
        else:
            _renew(geometry, step.bounds, chunk, found, *sums.of(output))

    with serial_blas():
        items = zip(standing.chunks, step.handed_over(), strict=True)
        for _ in giving_back(ordered_map(carry, items, geometry.threads)):
            pass
    standing.sums, standing.bounds = sums, step.bounds


def _replace(
    geometry: Geometry, chunk: CertifiedChunk, found: Found, collected: Float[np.ndarray, " n"], scale: float
) -> None:
    """All slots were looked at as a whole."""
    assert found.anew is not None
    pattern = found.anew.pattern
    bucket = geometry.bucket_of[pattern.counts]
    chunk.replace(pattern, found.anew.certificates, bucket, found.flips, collected, scale)


def _renew(
    geometry: Geometry,
    bounds: Bounds | None,
    chunk: CertifiedChunk,
    found: Found,
    collected: Float[np.ndarray, " n"],
    scale: float,
) -> None:
    """Some certificates have expired, and some slots were looked at as a whole."""
    chunk.drift = found.drift
    if found.renewal is not None:
        chunk.certificates.renew(found.renewal.expired, found.renewal.due, found.renewal.touched)
    chunk.apply(found.flips, collected, scale)
    if found.anew is not None:
        slots = found.anew.slots
        chunk.bucket[slots] = geometry.bucket_of[chunk.counts[slots]]
        chunk.certificates.exchange(slots, found.anew.certificates)
    if bounds is not None:
        rebucket(geometry, bounds, chunk, found.flips.touched())
