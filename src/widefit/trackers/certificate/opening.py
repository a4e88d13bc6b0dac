"""Start of a run: fire rows and certificates of all neurons."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.kernels.memory import trimming_freed_memory
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn import TwoLayer
from widefit.trackers.certificate.bounds import Bounds, OutputBounds
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.coefficients import Coefficients
from widefit.trackers.certificate.corrections import Corrections
from widefit.trackers.certificate.flips import slot_dtype
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import scan
from widefit.trackers.certificate.radius import SURVEY, Reach, choose_radius
from widefit.trackers.certificate.running_update import RunningUpdate
from widefit.trackers.fire_pattern import Chunk, partition


@dataclass(frozen=True)
class Opening:
    """Run before its first step.

    Attributes
    ----------
    chunks
        All of them.
    bounds
        Bounds that their certificates were issued for; None where none were.
    outputs
        f.
    largest
        max |c_r| over the slots of each output.
    """

    chunks: list[CertifiedChunk]
    bounds: Bounds | None
    outputs: Float[np.ndarray, "n k"]
    largest: Float[np.ndarray, " k"]


def open_run(geometry: Geometry, network: TwoLayer, expected: Float[np.ndarray, "n k"] | None, reach: Reach) -> Opening:
    """Evaluate all neurons, and forget those that fire on nothing."""
    groups = [network.neurons_of(output) for output in range(network.out_features)]
    if network.store == "array":
        network.coefficients()  # refuses readouts that couple outputs
    with serial_blas():
        bounds = None if expected is None else _expected_bounds(geometry, network, groups, expected, reach)
        by_output = [None] * len(groups) if bounds is None else bounds.by_output()

        def open_chunk(chunk: Chunk) -> tuple[CertifiedChunk, np.ndarray]:
            return _open_chunk(geometry, network, chunk, by_output[chunk.output])

        return _collected(network, ordered_map(open_chunk, partition(groups), geometry.threads), geometry, bounds)


def _collected(
    network: TwoLayer,
    opened: Iterator[tuple[CertifiedChunk, np.ndarray]],
    geometry: Geometry,
    bounds: Bounds | None,
) -> Opening:
    """Sum up chunks as they are opened."""
    outputs = np.tile(network.silent_outputs(), (geometry.samples, 1))
    chunks = []
    largest = np.zeros(network.out_features)
    for chunk, added in trimming_freed_memory(opened):
        chunks.append(chunk)
        output = chunk.chunk.output
        outputs[:, output] += added
        largest[output] = max(largest[output], float(np.abs(chunk.coefficients).max(initial=0)))
    return Opening(chunks, bounds, outputs, largest)


def _expected_bounds(
    geometry: Geometry,
    network: TwoLayer,
    groups: list[tuple[int, int]],
    expected: Float[np.ndarray, "n k"],
    reach: Reach,
) -> Bounds | None:
    """Choose the radius for steps whose sum is about `expected`, from some neurons of each output."""
    survey = []
    for output, (first, last) in enumerate(groups):
        middle = (first + last) // 2
        chunk = Chunk(middle, min(middle + SURVEY, last), output)
        survey.append(_open_chunk(geometry, network, chunk, None)[0])
    coming = RunningUpdate(np.ascontiguousarray(expected.T), np.zeros(len(groups)))
    now = RunningUpdate.none(len(groups), geometry.samples)
    radius = choose_radius(geometry, survey, coming, now, reach)
    return None if radius is None else Bounds.after_pass(radius, geometry.samples)


def _open_chunk(
    geometry: Geometry, network: TwoLayer, chunk: Chunk, bounds: OutputBounds | None
) -> tuple[CertifiedChunk, Float[np.ndarray, " n"]]:
    """Return the slots of a chunk, and the part of its neurons in the outputs."""
    own = network.coefficients(chunk.first, chunk.last)
    found = scan(geometry, chunk, own, geometry.initial.blocks(chunk), bounds, opening=True)
    alive = np.flatnonzero(found.pattern.counts).astype(np.int32)
    counts = found.pattern.counts[alive]
    size = chunk.last - chunk.first
    slots = CertifiedChunk(
        chunk=chunk,
        samples=geometry.samples,
        neurons=alive.astype(slot_dtype(size)),
        sizes=Coefficients.of(own[alive]),
        counts=counts,
        words=found.pattern.words,
        bucket=geometry.bucket_of[counts],
        certificates=found.certificates.of(alive),
        corrections=Corrections(alive.size, size, geometry.samples),
        drift=np.empty(0, np.float32),
    )
    return slots, found.outputs
