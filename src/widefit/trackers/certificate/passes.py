"""Evaluation of slots as a whole: who fires, and new certificates."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.certificate import passes as kernels
from widefit.kernels.certificate import rows as rows_kernels
from widefit.kernels.certificate import slots as slots_kernels
from widefit.kernels.fire_rows import FireRows, row_limit
from widefit.kernels.products import block_for
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.bounds import Bounds, OutputBounds
from widefit.trackers.certificate.certificates import Certificates
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.flips import EvaluatedFlips
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.running_update import RunningUpdate
from widefit.trackers.certificate.trial import ChunkResult, Rescanned, StepResult, chunk_result
from widefit.trackers.certificate.weights import weights_of
from widefit.trackers.dense import block_rows
from widefit.trackers.fire_pattern import Chunk, FirePattern, word_dtype


@dataclass(frozen=True)
class Scan:
    """Fire rows and certificates of neurons, and their part of the outputs where that was asked for."""

    pattern: FirePattern
    certificates: Certificates
    outputs: Float[np.ndarray, " n_or_none"]


def scan(
    geometry: Geometry,
    chunk: Chunk,
    coefficients: Float[np.ndarray, " size"],
    weights: Iterable[Float[np.ndarray, "rows d"]],
    bounds: OutputBounds | None,
    *,
    opening: bool = False,
) -> Scan:
    """Evaluate neurons of a chunk whose weights come block by block; without bounds no certificates are issued.

    At the opening of a run neurons that fire on nothing get none either, and the outputs of the others are summed up.
    """
    samples = geometry.samples
    size = coefficients.size
    rows = min(block_rows(samples), size)
    dtype = word_dtype(samples)
    none = np.empty(0, np.float32)
    radius = none if bounds is None else bounds.radius
    level = none.reshape(0, samples) if bounds is None else bounds.level
    most = 0 if bounds is None else rows * samples

    operand = geometry.products.within(None if bounds is None else float(bounds.radius[bounds.radius.size // 2]))
    panels = kernels.PassOperand(operand.panels, block_for(operand.panels), operand.held(), operand.rounding)
    run = kernels.PassSamples(
        geometry.inputs, geometry.threshold, geometry.tolerance, geometry.floor, geometry.bucket_of
    )
    words = np.empty(rows * row_limit(np.empty(0, dtype), samples), dtype)
    scratch = np.empty((2, samples + 1), np.int32)
    outputs = np.zeros(samples if opening else 0)
    counts = np.empty(size, np.int32)
    issued = kernels.Issued(
        np.empty(size, np.int32), np.empty(size, np.float32), np.empty(most, dtype), np.empty(most, np.float32)
    )

    pieces = [(np.empty(0, dtype), np.empty(0, dtype), none)]
    first = 0
    for block in _cut(weights, rows):
        own = slice(first, first + block.shape[0])
        block_start = np.empty(block.shape[0] + 1, np.int64)
        pairs = kernels.pass_block(
            block, coefficients[own], panels, run, radius, level, FireRows(counts[own], block_start, words), scratch,
            issued._replace(count=issued.count[own], soonest=issued.soonest[own]), outputs,
        )  # fmt: skip
        pieces.append((words[: block_start[-1]].copy(), issued.sample[:pairs].copy(), issued.due[:pairs].copy()))
        first = own.stop
    all_words, all_samples, all_due = (np.concatenate(part) for part in zip(*pieces, strict=True))
    pattern = FirePattern(chunk, samples, counts.astype(dtype), None, all_words)
    return Scan(pattern, Certificates(issued.count.astype(dtype), issued.soonest, all_samples, all_due), outputs)


def _cut(weights: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Yield the same rows, at most so many at a time and in float64: the kernel is compiled for one dtype."""
    for given in weights:
        for low in range(0, given.shape[0], rows):
            yield given[low : low + rows].astype(np.float64, copy=False)


def evaluate_slots(
    geometry: Geometry,
    chunk: CertifiedChunk,
    slots: Int[np.ndarray, " a"],
    update: RunningUpdate,
    bounds: OutputBounds | None,
) -> Rescanned:
    """Return fire rows and certificates of slots at the weights of a running update."""
    weights = weights_of(geometry, chunk, slots, update)
    found = scan(geometry, chunk.chunk, chunk.coefficients[slots], weights, bounds)
    return Rescanned(slots, found.pattern, found.certificates)


def flips_of(geometry: Geometry, chunk: CertifiedChunk, rescanned: Rescanned, update: RunningUpdate) -> EvaluatedFlips:
    """Return the pairs in which new fire rows differ from those of the chunk."""
    counts = rescanned.pattern.counts
    most = int(chunk.counts[rescanned.slots].sum(dtype=np.int64) + counts.sum(dtype=np.int64))
    slots = np.empty(most, np.int32)
    samples = np.empty(most, np.int32)
    fires = np.empty(most, np.bool_)
    count = rows_kernels.differing_pairs(
        chunk.rows(), rescanned.slots, rescanned.pattern.rows, geometry.samples, slots, samples, fires
    )
    slots = slots[:count].copy()
    samples = samples[:count].copy()
    z, y = _exact(geometry, chunk, slots, samples, update)
    return EvaluatedFlips(slots, samples, fires[:count].copy(), z, y)


def _exact(
    geometry: Geometry,
    chunk: CertifiedChunk,
    slots: Int[np.ndarray, " q"],
    samples: Int[np.ndarray, " q"],
    update: RunningUpdate,
) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Return z of pairs, those of a slot together, and its difference from the start."""
    z = np.empty(slots.size)
    y = np.empty(slots.size)
    collected = chunk.collected(*update.of(chunk.chunk.output))
    for low, high, origin in geometry.origins(chunk, slots):
        part = slice(*np.searchsorted(slots, [low, high]))
        slots_kernels.exact_pairs(slots[part], samples[part], origin, collected, geometry.inputs, z[part], y[part])
    return z, y


def evaluate_all(
    geometry: Geometry, chunks: list[CertifiedChunk], update: RunningUpdate, bounds: Bounds | None
) -> StepResult:
    """Evaluate all slots at the weights of a running update."""
    outputs = len(update.scale)
    by_output: Sequence[OutputBounds | None] = [None] * outputs if bounds is None else bounds.by_output()

    def evaluate_chunk(chunk: CertifiedChunk) -> tuple[ChunkResult, np.ndarray]:
        slots = np.arange(chunk.neurons.size, dtype=np.int32)
        near = geometry.with_weights_of(chunk.chunk)
        rescanned = evaluate_slots(near, chunk, slots, update, by_output[chunk.chunk.output])
        flips = flips_of(near, chunk, rescanned, update)
        evaluated = slots.size * geometry.samples
        return chunk_result(geometry, chunk, flips, np.empty(0, np.float32), evaluated, rescanned=rescanned)

    with serial_blas():
        return StepResult.collect(chunks, ordered_map(evaluate_chunk, chunks, geometry.threads), outputs)
