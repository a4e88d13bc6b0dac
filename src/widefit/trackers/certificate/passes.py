"""Looking at slots of the certificate tracker as a whole: who fires, and new certificates."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.certificate import passes as kernels
from widefit.kernels.certificate import rows as rows_kernels
from widefit.kernels.certificate import slots as slots_kernels
from widefit.kernels.fire_rows import row_limit
from widefit.kernels.products import block_for
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.chunk import Certificates, CertifiedChunk
from widefit.trackers.certificate.flips import EvaluatedFlips
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.trial import Anew, Bounds, Found, Looked, OutputBounds, Sums, found_in
from widefit.trackers.certificate.weights import weights_of
from widefit.trackers.dense import block_rows
from widefit.trackers.fire_pattern import Chunk, FirePattern, word_dtype


@dataclass(frozen=True)
class Scan:
    """Fire rows, certificates, and what the neurons add to the outputs, where that was asked for."""

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

    At the opening of a run neurons that fire on nothing get none either, and what the others add to the outputs is
    summed up.
    """
    samples, size = geometry.samples, coefficients.size
    rows = min(block_rows(samples), size)
    operand = geometry.products.within(None if bounds is None else float(bounds.radius[bounds.radius.size // 2]))
    z, held = block_for(operand.panels), operand.held()
    dtype, scratch = word_dtype(samples), np.empty((2, samples + 1), np.int32)
    words = np.empty(rows * row_limit(np.empty(0, dtype), samples), dtype)
    if bounds is None:
        radius, level, most = np.empty(0, np.float32), np.empty((0, samples), np.float32), 0
    else:
        radius, level, most = bounds.radius, bounds.level, rows * samples
    pair_sample, due = np.empty(most, dtype), np.empty(most, np.float32)
    issued, soonest = np.empty(size, np.int32), np.empty(size, np.float32)
    counts, outputs = np.empty(size, np.int32), np.zeros(samples * opening)
    pieces = [(np.empty(0, dtype), np.empty(0, dtype), np.empty(0, np.float32))]
    first = 0
    for block in _cut(weights, rows):
        last = first + block.shape[0]
        block_start = np.empty(last - first + 1, np.int64)
        pairs = kernels.pass_block(
            block, operand.panels, z, held, operand.rounding, geometry.inputs, geometry.threshold, geometry.tolerance,
            geometry.floor, coefficients[first:last], geometry.bucket_of, radius, level, counts[first:last],
            block_start, words, scratch, issued[first:last], soonest[first:last], pair_sample, due, outputs,
        )  # fmt: skip
        pieces.append((words[: block_start[-1]].copy(), pair_sample[:pairs].copy(), due[:pairs].copy()))
        first = last
    all_words, all_samples, all_due = (np.concatenate(part) for part in zip(*pieces, strict=True))
    pattern = FirePattern(chunk, samples, counts.astype(dtype), None, all_words)
    return Scan(pattern, Certificates(issued.astype(dtype), soonest, all_samples, all_due), outputs)


def _cut(weights: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    for given in weights:
        for low in range(0, given.shape[0], rows):
            yield given[low : low + rows]


def look_at_slots(
    geometry: Geometry, chunk: CertifiedChunk, slots: Int[np.ndarray, " a"], sums: Sums, bounds: OutputBounds | None
) -> Anew:
    """Fire rows and certificates of slots at the weights that the sums come to."""
    weights = weights_of(geometry, chunk, slots, sums)
    found = scan(geometry, chunk.chunk, chunk.coefficients[slots], weights, bounds)
    return Anew(slots, found.pattern, found.certificates)


def flips_of(geometry: Geometry, chunk: CertifiedChunk, anew: Anew, sums: Sums) -> EvaluatedFlips:
    """Where new fire rows differ from those of the chunk."""
    pattern = anew.pattern
    most = int(chunk.counts[anew.slots].sum(dtype=np.int64) + pattern.counts.sum(dtype=np.int64))
    slots, samples, fires = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.bool_)
    count = rows_kernels.differing_pairs(
        *chunk.rows(), anew.slots, pattern.counts, pattern.start, pattern.words, geometry.samples, slots, samples, fires
    )  # fmt: skip
    slots, samples = slots[:count].copy(), samples[:count].copy()
    z, y = _exact(geometry, chunk, slots, samples, sums)
    return EvaluatedFlips(slots, samples, fires[:count].copy(), z, y)


def _exact(
    geometry: Geometry, chunk: CertifiedChunk, slots: Int[np.ndarray, " q"], samples: Int[np.ndarray, " q"], sums: Sums
) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """z of pairs, those of a slot together, and how far it is from the one at the start."""
    z, y, (collected, scale) = np.empty(slots.size), np.empty(slots.size), sums.of(chunk.chunk.output)
    coefficients, rows, chains = chunk.coefficients, chunk.rows(), chunk.corrections.chains()
    for low, high, base, base_first in geometry.initial.spans(chunk, slots):
        part = slice(*np.searchsorted(slots, [low, high]))
        slots_kernels.exact_pairs(
            slots[part], samples[part], chunk.neurons, base, base_first, coefficients, *rows, collected, *chains,
            scale, geometry.blocks64, geometry.inputs, z[part], y[part],
        )  # fmt: skip
    return z, y


def pass_over(geometry: Geometry, chunks: list[CertifiedChunk], sums: Sums, bounds: Bounds | None) -> Looked:
    """Look at all slots at the weights that the sums come to."""
    by_output: Sequence[OutputBounds | None] = [None] * len(sums.scale) if bounds is None else bounds.by_output()

    def look(chunk: CertifiedChunk) -> tuple[Found, np.ndarray]:
        slots = np.arange(chunk.neurons.size, dtype=np.int32)
        near = geometry.with_weights_of(chunk.chunk)
        anew = look_at_slots(near, chunk, slots, sums, by_output[chunk.chunk.output])
        flips = flips_of(near, chunk, anew, sums)
        return found_in(geometry, chunk, flips, np.empty(0, np.float32), slots.size * geometry.samples, anew=anew)

    with serial_blas():
        return Looked.at(chunks, ordered_map(look, chunks, geometry.threads), len(sums.scale))
