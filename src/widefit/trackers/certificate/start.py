"""The start of a run of the certificate tracker: who fires, and the slots."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.kernels.memory import giving_back
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn import TwoLayer
from widefit.trackers.certificate.chunk import CertifiedChunk, Coefficients
from widefit.trackers.certificate.corrections import Corrections
from widefit.trackers.certificate.flips import slot_dtype
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import scan
from widefit.trackers.certificate.radius import SURVEY, Reach, choose_radius
from widefit.trackers.certificate.trial import Bounds, OutputBounds, Sums
from widefit.trackers.fire_pattern import Chunk, partition


@dataclass(frozen=True)
class Opened:
    """A run before its first step.

    Attributes
    ----------
    chunks
        All of them.
    bounds
        What their certificates were issued for; None where none were.
    outputs
        f.
    largest
        max |c_r| over the slots of each output.
    """

    chunks: list[CertifiedChunk]
    bounds: Bounds | None
    outputs: Float[np.ndarray, "n k"]
    largest: Float[np.ndarray, " k"]


def open_run(geometry: Geometry, network: TwoLayer, expected: Float[np.ndarray, "n k"] | None, reach: Reach) -> Opened:
    """Look at all neurons; those that fire on nothing are forgotten."""
    groups = [network.neurons_of(output) for output in range(network.out_features)]
    if network.store == "array":
        network.coefficients()  # refuses readouts that couple outputs
    with serial_blas():
        bounds = None if expected is None else _bounds_of(geometry, network, groups, expected, reach)
        by_output = [None] * len(groups) if bounds is None else bounds.by_output()

        def open_own(chunk: Chunk) -> tuple[CertifiedChunk, np.ndarray]:
            return _open_chunk(geometry, network, chunk, by_output[chunk.output])

        return _collected(network, ordered_map(open_own, partition(groups), geometry.threads), geometry, bounds)


def _collected(
    network: TwoLayer,
    opened: Iterator[tuple[CertifiedChunk, np.ndarray]],
    geometry: Geometry,
    bounds: Bounds | None,
) -> Opened:
    outputs = np.tile(network.silent_outputs(), (geometry.samples, 1))
    chunks, largest = [], np.zeros(network.out_features)
    for chunk, added in giving_back(opened):
        chunks.append(chunk)
        output = chunk.chunk.output
        outputs[:, output] += added
        largest[output] = max(largest[output], float(np.abs(chunk.coefficients).max(initial=0)))
    return Opened(chunks, bounds, outputs, largest)


def _bounds_of(
    geometry: Geometry,
    network: TwoLayer,
    groups: list[tuple[int, int]],
    expected: Float[np.ndarray, "n k"],
    reach: Reach,
) -> Bounds | None:
    """The radius for steps whose sum is about `expected`, from some neurons of each output."""
    survey = []
    for output, (first, last) in enumerate(groups):
        middle = (first + last) // 2
        chunk = Chunk(middle, min(middle + SURVEY, last), output)
        survey.append(_open_chunk(geometry, network, chunk, None)[0])
    coming = Sums(np.ascontiguousarray(expected.T), np.zeros(len(groups)))
    now = Sums(np.zeros_like(coming.collected), np.ones(len(groups)))
    radius = choose_radius(geometry, survey, coming, now, reach)
    return None if radius is None else Bounds.after_pass(radius, geometry.samples)


def _open_chunk(
    geometry: Geometry, network: TwoLayer, chunk: Chunk, bounds: OutputBounds | None
) -> tuple[CertifiedChunk, Float[np.ndarray, " n"]]:
    """The slots of a chunk, and what its neurons add to the outputs."""
    own = network.coefficients(chunk.first, chunk.last)
    found = scan(geometry, chunk, own, geometry.initial.blocks(chunk), bounds, opening=True)
    pattern = found.pattern
    alive = np.flatnonzero(pattern.counts).astype(np.int32)
    counts, size = pattern.counts[alive], chunk.last - chunk.first
    held = CertifiedChunk(
        chunk=chunk,
        samples=geometry.samples,
        neurons=alive.astype(slot_dtype(size)),
        sizes=Coefficients.of(own[alive]),
        counts=counts,
        words=pattern.words,
        bucket=geometry.bucket_of[counts],
        certificates=found.certificates.of(alive),
        corrections=Corrections(alive.size, size, geometry.samples),
        drift=np.empty(0, np.float32),
    )
    return held, found.outputs
