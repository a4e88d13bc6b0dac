"""How far a step of the certificate tracker can move pre-activations: bounds of buckets, movements of neurons."""

import numpy as np
from jaxtyping import Float, Integer

from widefit.kernels.certificate import bounds as kernels
from widefit.kernels.threads import ordered_map
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.trial import Bounds, Sums

# Samples whose bounds a task computes.
_TILE = 128
# Slots of a chunk at least that tell how many certificates a step lets expire.
_SURVEY = 192
# Part of the slots that may have expired certificates before their own movements are worth computing (measured).
_OPEN = 0.35


def step_bounds(
    geometry: Geometry, change: Float[np.ndarray, "k n"], largest: Float[np.ndarray, " k"]
) -> Float[np.ndarray, "k q n"]:
    """How far a neuron of each bucket can move z at each sample, when G changes so and |c_r| is at most `largest`."""
    outputs, samples = change.shape
    with np.errstate(over="ignore"):
        narrow = change.astype(np.float32)
    if not (geometry.steepest < float(np.finfo(np.float32).max) and np.all(np.isfinite(narrow))):
        return np.full((outputs, geometry.caps.size, samples), np.inf)
    out = np.empty((outputs, geometry.caps.size, samples))

    def fill(item: tuple[int, int]) -> None:
        output, first = item
        last = min(first + _TILE, samples)
        kernels.bound_columns(geometry.similarity, narrow[output], geometry.caps, first, last, out[output])

    items = [(output, first) for output in range(outputs) for first in range(0, samples, _TILE)]
    for _ in ordered_map(fill, items, geometry.threads):
        pass
    return out * largest[:, None, None]


def movements(
    geometry: Geometry,
    chunk: CertifiedChunk,
    change: Float[np.ndarray, " n"],
    scale_change: float,
    slots: slice = slice(None),
) -> Float[np.ndarray, " s"]:
    """How far the slots' pre-activations move at most, when G and P of their output change so."""
    span = range(chunk.neurons.size)[slots]
    moved, narrow = np.empty(len(span), np.float32), change.astype(np.float32)
    kernels.own_movements(
        chunk.coefficients, *chunk.rows(), span.start, span.stop, narrow, *chunk.corrections.chains(),
        float(scale_change), geometry.blocks32, geometry.lengths, np.abs(narrow) * geometry.lengths, moved,
    )  # fmt: skip
    return moved * np.float32(geometry.longest * (1 + 2e-7))


def drift_of_budget(
    geometry: Geometry, chunk: CertifiedChunk, budget: Float[np.ndarray, " n"], slots: slice = slice(None)
) -> Float[np.ndarray, " s"]:
    """How far steps with Σ |g| ≤ budget move the slots' pre-activations at most."""
    span = range(chunk.neurons.size)[slots]
    moved, (counts, start, words) = np.empty(len(span), np.float32), chunk.rows()
    kernels.own_budgets(
        chunk.coefficients[slots], counts[slots], start[span.start :], words,
        np.nextafter(budget.astype(np.float32), np.float32(np.inf)), geometry.steepest, moved,
    )  # fmt: skip
    return moved


def own_drift(geometry: Geometry, chunks: list[CertifiedChunk], change: Sums, bounds: Bounds) -> list[np.ndarray]:
    """Drift once every neuron's own movement is counted, as closely as these bounds make it matter."""
    room = bounds.room().astype(np.float32)
    by_output = bounds.by_output()

    def walk(chunk: CertifiedChunk) -> np.ndarray:
        output = chunk.chunk.output
        drift = chunk.drift.copy() if chunk.drift.size else np.zeros(chunk.neurons.size, np.float32)
        changed, shrunk = change.of(output)
        narrow = changed.astype(np.float32)
        kernels.drift_of_movements(
            chunk.coefficients, *chunk.rows(), narrow, *chunk.corrections.chains(), shrunk, geometry.blocks32,
            geometry.lengths, np.abs(narrow) * geometry.lengths, geometry.longest * (1 + 2e-7), chunk.bucket,
            by_output[output].highest, room[output], chunk.certificates.soonest, drift,
        )  # fmt: skip
        return drift

    return list(ordered_map(walk, chunks, geometry.threads))


def drift_of_shrinking(
    geometry: Geometry, chunk: CertifiedChunk, shrinking: float
) -> Float[np.ndarray, " slots_or_none"]:
    """Drift once corrections have shrunk, as P does by `shrinking`, which no bound covers."""
    corrections = chunk.corrections
    if shrinking == 0 or corrections.used == 0:
        return chunk.drift
    drift = chunk.drift.copy() if chunk.drift.size else np.zeros(chunk.neurons.size, np.float32)
    kernels.drift_of_corrections(
        corrections.owner, corrections.value, corrections.used, chunk.coefficients, shrinking * geometry.steepest, drift
    )
    return drift


def beyond(chunks: list[CertifiedChunk], drift: list[np.ndarray], room: Float[np.ndarray, "k q"]) -> list[np.ndarray]:
    """Slots of every chunk with pairs that could flip without a certificate."""
    return [
        np.flatnonzero(~((own if own.size else 0) < room[chunk.chunk.output][chunk.bucket])).astype(np.int32)
        for chunk, own in zip(chunks, drift, strict=True)
    ]


def few_expire(chunks: list[CertifiedChunk], level: Float[np.ndarray, "k q n"], drift: list[np.ndarray]) -> bool:
    """True when looking at what the bounds leave open takes less than the movements of all neurons."""
    highest, opened, seen = level.max(axis=2), 0, 0
    for chunk, own in zip(chunks, drift, strict=True):
        sample = slice(0, None, 1 + chunk.neurons.size // _SURVEY)
        extra = own[sample] if own.size else 0
        soonest = chunk.certificates.soonest[sample]
        opened += np.count_nonzero(highest[chunk.chunk.output][chunk.bucket[sample]] + extra >= soonest)
        seen += soonest.size
    return bool(opened <= _OPEN * seen)


def rebucket(geometry: Geometry, bounds: Bounds, chunk: CertifiedChunk, slots: Integer[np.ndarray, " s"]) -> None:
    """Neurons that fire on more samples than their bucket allows move to another."""
    outgrown = slots[chunk.counts[slots] > geometry.caps[chunk.bucket[slots]]]
    if outgrown.size == 0:
        return
    if chunk.drift.size == 0:
        chunk.drift = np.zeros(chunk.neurons.size, np.float32)
    held, own = chunk.certificates, bounds.of(chunk.chunk.output)
    kernels.move_to_bucket(
        outgrown, geometry.bucket_of[chunk.counts[outgrown]], chunk.bucket, own.radius, own.level, chunk.drift,
        held.start, held.count, held.soonest, held.sample, held.due,
    )  # fmt: skip
