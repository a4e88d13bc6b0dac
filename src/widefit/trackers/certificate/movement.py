"""Distance that a step can move pre-activations: bounds of buckets, movements of neurons, and drift."""

import numpy as np
from jaxtyping import Float, Integer

from widefit.kernels.certificate import bounds as kernels
from widefit.kernels.fire_rows import FireRows
from widefit.kernels.threads import ordered_map
from widefit.trackers.certificate.bounds import Bounds
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.running_update import RunningUpdate

# Samples whose bounds a task computes.
_TILE = 128
# Slots of a chunk, at least, from which the number of certificates that expire is estimated.
_SURVEY = 192
# Part of the slots that may have expired certificates before their own movements are worth computing (measured).
_OPEN = 0.35


def step_bounds(
    geometry: Geometry, change: Float[np.ndarray, "k n"], largest: Float[np.ndarray, " k"]
) -> Float[np.ndarray, "k q n"]:
    """Bound the movement of z at each sample for the neurons of each bucket, given the change of G and max |c_r|."""
    outputs, samples = change.shape
    with np.errstate(over="ignore"):
        narrow = change.astype(np.float32)
    similarity = geometry.similarity
    if similarity is None or not (geometry.steepest < float(np.finfo(np.float32).max) and np.all(np.isfinite(narrow))):
        return np.full((outputs, geometry.caps.size, samples), np.inf)
    out = np.empty((outputs, geometry.caps.size, samples))

    def fill(item: tuple[int, int]) -> None:
        output, first = item
        last = min(first + _TILE, samples)
        kernels.bound_columns(similarity, narrow[output], geometry.caps, first, last, out[output])

    items = [(output, first) for output in range(outputs) for first in range(0, samples, _TILE)]
    for _ in ordered_map(fill, items, geometry.threads):
        pass
    return out * largest[:, None, None]


def _movement(
    geometry: Geometry, chunk: CertifiedChunk, change: Float[np.ndarray, " n"], scale_change: float
) -> kernels.Movement:
    """Return a change of G and P, for the kernels."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = change.astype(np.float32)
        steps = np.abs(narrow) * geometry.lengths
    return kernels.Movement(
        chunk.coefficients, chunk.collected(narrow, float(scale_change)), geometry.blocks32, geometry.lengths, steps
    )


def movements(
    geometry: Geometry,
    chunk: CertifiedChunk,
    change: Float[np.ndarray, " n"],
    scale_change: float,
    slots: slice = slice(None),
) -> Float[np.ndarray, " s"]:
    """Bound the movement of the slots' pre-activations, given the changes of G and P of their output."""
    span = range(chunk.neurons.size)[slots]
    moved = np.empty(len(span), np.float32)
    kernels.own_movements(_movement(geometry, chunk, change, scale_change), span.start, span.stop, moved)
    return moved * np.float32(geometry.longest * (1 + 2e-7))


def drift_of_budget(
    geometry: Geometry, chunk: CertifiedChunk, budget: Float[np.ndarray, " n"], slots: slice = slice(None)
) -> Float[np.ndarray, " s"]:
    """Bound the movement of the slots' pre-activations in steps with Σ |g| ≤ budget."""
    span = range(chunk.neurons.size)[slots]
    moved = np.empty(len(span), np.float32)
    rows = chunk.rows()
    kernels.own_budgets(
        chunk.coefficients[slots],
        FireRows(rows.counts[slots], rows.start[span.start :], rows.words),
        np.nextafter(budget.astype(np.float32), np.float32(np.inf)),
        geometry.steepest,
        moved,
    )
    return moved


def own_drift(
    geometry: Geometry, chunks: list[CertifiedChunk], change: RunningUpdate, bounds: Bounds
) -> list[np.ndarray]:
    """Return the drift with every neuron's own movement added, as closely as these bounds make it matter."""
    with np.errstate(over="ignore"):
        room = bounds.room().astype(np.float32)
    by_output = bounds.by_output()

    def add_movements(chunk: CertifiedChunk) -> np.ndarray:
        output = chunk.chunk.output
        drift = _own_copy(chunk)
        kernels.drift_of_movements(
            _movement(geometry, chunk, *change.of(output)),
            geometry.longest * (1 + 2e-7),
            chunk.bucket,
            by_output[output].highest,
            room[output],
            chunk.certificates.soonest,
            drift,
        )
        return drift

    return list(ordered_map(add_movements, chunks, geometry.threads))


def _own_copy(chunk: CertifiedChunk) -> Float[np.ndarray, " slots"]:
    """Return a copy of the drift, zeros where there is none."""
    return chunk.drift.copy() if chunk.drift.size else np.zeros(chunk.neurons.size, np.float32)


def drift_of_shrinking(
    geometry: Geometry, chunk: CertifiedChunk, shrinking: float
) -> Float[np.ndarray, " slots_or_none"]:
    """Return the drift once corrections have shrunk, as P does by `shrinking`, which no bound covers."""
    held = chunk.corrections
    if shrinking == 0 or held.used == 0:
        return chunk.drift
    drift = _own_copy(chunk)
    factor = shrinking * geometry.steepest
    kernels.drift_of_corrections(held.owner, held.value, held.used, chunk.coefficients, factor, drift)
    return drift


def beyond(chunks: list[CertifiedChunk], drift: list[np.ndarray], room: Float[np.ndarray, "k q"]) -> list[np.ndarray]:
    """Return the slots of every chunk with pairs that could flip without a certificate."""
    return [
        np.flatnonzero(~((own if own.size else 0) < room[chunk.chunk.output][chunk.bucket])).astype(np.int32)
        for chunk, own in zip(chunks, drift, strict=True)
    ]


def few_expire(chunks: list[CertifiedChunk], level: Float[np.ndarray, "k q n"], drift: list[np.ndarray]) -> bool:
    """Return True when the pairs that the bounds leave open take less than the movements of all neurons."""
    highest = level.max(axis=2)
    opened = 0
    seen = 0
    for chunk, own in zip(chunks, drift, strict=True):
        sample = slice(0, None, 1 + chunk.neurons.size // _SURVEY)
        extra = own[sample] if own.size else 0
        soonest = chunk.certificates.soonest[sample]
        opened += np.count_nonzero(highest[chunk.chunk.output][chunk.bucket[sample]] + extra >= soonest)
        seen += soonest.size
    return bool(opened <= _OPEN * seen)


def rebucket(geometry: Geometry, bounds: Bounds, chunk: CertifiedChunk, slots: Integer[np.ndarray, " s"]) -> None:
    """Move neurons that fire on more samples than their bucket allows to another."""
    outgrown = slots[chunk.counts[slots] > geometry.caps[chunk.bucket[slots]]]
    if outgrown.size == 0:
        return
    if chunk.drift.size == 0:
        chunk.drift = np.zeros(chunk.neurons.size, np.float32)
    own = bounds.of(chunk.chunk.output)
    target = geometry.bucket_of[chunk.counts[outgrown]]
    kernels.move_to_bucket(
        outgrown, target, chunk.bucket, own.radius, own.level, chunk.drift, chunk.certificates.runs()
    )
