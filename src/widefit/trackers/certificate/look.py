"""Looking at the pairs of the certificate tracker whose certificates a step lets expire."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from widefit.kernels.certificate import look as kernels
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.flips import EvaluatedFlips
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import flips_of, look_at_slots
from widefit.trackers.certificate.trial import Bounds, Found, Looked, OutputBounds, Renewal, Sums, found_in


def look(
    geometry: Geometry,
    chunks: list[CertifiedChunk],
    after: Sums,
    change: Sums,
    bounds: Bounds,
    step: Float[np.ndarray, "k q n"],
    drift: list[np.ndarray],
    whole: Sequence[np.ndarray | None],
) -> Looked:
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

    def look_at(item: tuple[CertifiedChunk, np.ndarray, np.ndarray | None]) -> tuple[Found, np.ndarray]:
        chunk, own, slots = item
        near, output, anew, others = geometry, chunk.chunk.output, None, None
        if slots is not None and slots.size:
            near = geometry.with_weights_of(chunk.chunk)
            anew = look_at_slots(near, chunk, slots, after, by_output[output])
            others = flips_of(near, chunk, anew, after)
            own[slots] = -np.inf  # keeps their certificates from being looked at
        flips, renewal, evaluated = _look_at_expired(near, chunk, after, change, by_output[output], step[output], own)
        if anew is not None and others is not None:
            own[anew.slots] = 0
            flips, evaluated = flips.merged(others), evaluated + anew.slots.size * geometry.samples
        return found_in(geometry, chunk, flips, own, evaluated, renewal, anew)

    with serial_blas():
        found = ordered_map(look_at, zip(chunks, drift, whole, strict=True), geometry.threads)
        return Looked.at(chunks, found, len(after.scale))


def _look_at_expired(
    geometry: Geometry,
    chunk: CertifiedChunk,
    after: Sums,
    change: Sums,
    bounds: OutputBounds,
    step: Float[np.ndarray, "q n"],
    drift: Float[np.ndarray, " slots_or_none"],
) -> tuple[EvaluatedFlips, Renewal, int]:
    """Flips, renewals, and how many pre-activations were computed."""
    held, run_start, coefficients = chunk.certificates, chunk.certificates.start, chunk.coefficients
    rows, chains = chunk.rows(), chunk.corrections.chains()
    (collected, scale), (changed, _) = after.of(chunk.chunk.output), change.of(chunk.chunk.output)
    opened = np.flatnonzero(bounds.highest[chunk.bucket] + (drift if drift.size else 0) >= held.soonest)
    size = int(held.count[opened].sum(dtype=np.int64))
    position, due = np.empty(size, run_start.dtype), np.empty(size, np.float32)
    touched, soonest = np.empty(opened.size, np.int32), np.empty(opened.size, np.float32)
    pairs = (np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.bool_))
    values = (np.empty(size), np.empty(size))
    expired = visited = flipped = evaluated = 0
    for low, high, base, base_first in geometry.initial.spans(chunk, opened):
        found = kernels.look_at_certificates(
            low, high, run_start, held.count, held.soonest, held.sample, held.due, chunk.neurons, base, base_first,
            coefficients, *rows, chunk.bucket, drift, bounds.level, bounds.highest, step, changed, collected, *chains,
            scale, geometry.peak, geometry.blocks64, geometry.inputs, geometry.threshold, position[expired:],
            due[expired:], touched[visited:], soonest[visited:], *(array[flipped:] for array in (*pairs, *values)),
        )  # fmt: skip
        expired, visited, flipped, evaluated = (
            have + more for have, more in zip((expired, visited, flipped, evaluated), found, strict=True)
        )
    flips = EvaluatedFlips(*(array[:flipped] for array in (*pairs, *values)))
    shortest = np.min_scalar_type(held.due.size)
    renewal = Renewal(
        position[:expired].astype(shortest), due[:expired].copy(), touched[:visited].astype(chunk.neurons.dtype)
    )
    return flips, renewal, evaluated
