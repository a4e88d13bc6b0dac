"""Looking at the pairs of the certificate tracker whose certificates a step lets expire."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from widefit.kernels import certificate_look as kernels
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.chunk import CertifiedChunk, ChunkFlips
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import flips_of, look_at_slots
from widefit.trackers.certificate.trial import Bounds, Found, OutputBounds, Renewal, Sums


def look(
    geometry: Geometry,
    chunks: list[CertifiedChunk],
    after: Sums,
    change: Sums,
    bounds: Bounds,
    step: Float[np.ndarray, "k q n"],
    drift: list[np.ndarray],
    whole: Sequence[np.ndarray | None],
) -> list[Found]:
    """Evaluate the pairs whose certificates expire, and slots as a whole.

    Parameters
    ----------
    after, change
        G and P after the step, and what it changes them by.
    bounds, step
        After the step, and what it has raised them by.
    drift
        Of every chunk after the step.
    whole
        Slots of every chunk to look at as a whole.
    """
    by_output = bounds.by_output()

    def look_at(item: tuple[CertifiedChunk, np.ndarray, np.ndarray | None]) -> Found:
        chunk, own, slots = item
        output = chunk.chunk.output
        if slots is None or slots.size == 0:
            return _look_at_expired(geometry, chunk, after, change, by_output[output], step[output], own)
        anew = look_at_slots(geometry, chunk, slots, after, by_output[output])
        flips = flips_of(geometry, chunk, anew, after)
        own[slots] = -np.inf  # keeps their certificates from being looked at
        found = _look_at_expired(geometry, chunk, after, change, by_output[output], step[output], own)
        own[slots] = 0
        evaluated = found.evaluated + slots.size * geometry.samples
        return replace(found, flips=found.flips.merged(flips), evaluated=evaluated, anew=anew)

    with serial_blas():
        return list(ordered_map(look_at, zip(chunks, drift, whole, strict=True), geometry.threads))


def _look_at_expired(
    geometry: Geometry,
    chunk: CertifiedChunk,
    after: Sums,
    change: Sums,
    bounds: OutputBounds,
    step: Float[np.ndarray, "q n"],
    drift: Float[np.ndarray, " slots_or_none"],
) -> Found:
    held, corrections = chunk.certificates, chunk.corrections
    (collected, scale), (changed, _) = after.of(chunk.chunk.output), change.of(chunk.chunk.output)
    opened = np.flatnonzero(bounds.highest[chunk.bucket] + (drift if drift.size else 0) >= held.soonest)
    size = int(held.count[opened].sum(dtype=np.int64))
    position, due = np.empty(size, held.start.dtype), np.empty(size, np.float32)
    touched, soonest = np.empty(opened.size, np.int32), np.empty(opened.size, np.float32)
    pairs = (np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.bool_))
    values = (np.empty(size), np.empty(size))
    expired = visited = flipped = evaluated = 0
    for low, high, base, base_first in geometry.initial.spans(chunk, opened):
        found = kernels.look_at_certificates(
            low, high, held.start, held.count, held.soonest, held.sample, held.due, chunk.neurons, base, base_first,
            chunk.coefficients, chunk.counts, chunk.start, chunk.words, chunk.bucket, drift, bounds.level,
            bounds.highest, step, changed, collected, corrections.head, corrections.following, corrections.sample,
            corrections.value, scale, geometry.peak, geometry.blocks64, geometry.inputs, geometry.threshold,
            position[expired:], due[expired:], touched[visited:], soonest[visited:],
            *(array[flipped:] for array in (*pairs, *values)),
        )  # fmt: skip
        expired, visited, flipped, evaluated = (
            have + more for have, more in zip((expired, visited, flipped, evaluated), found, strict=True)
        )
    return Found(
        ChunkFlips(*(array[:flipped].copy() for array in (*pairs, *values))).ordered(),
        drift,
        evaluated,
        Renewal(position[:expired].copy(), due[:expired].copy(), touched[:visited].copy(), soonest[:visited].copy()),
    )
