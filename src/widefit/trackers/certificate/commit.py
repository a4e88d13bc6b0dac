"""Adoption of a step, chunk by chunk."""

import numpy as np
from jaxtyping import Bool, Float

from widefit.kernels.memory import trimming_freed_memory
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.bounds import Bounds
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.movement import rebucket
from widefit.trackers.certificate.run_state import RunState
from widefit.trackers.certificate.running_update import RunningUpdate
from widefit.trackers.certificate.trial import CandidateStep, ChunkResult


def adopt(geometry: Geometry, run: RunState, step: CandidateStep) -> None:
    """Bring chunks, running sums and bounds to their state after a step."""
    reset: Bool[np.ndarray, " k"] = step.update.scale == 0
    update = RunningUpdate(step.update.collected, np.where(reset, 1.0, step.update.scale))

    def adopt_chunk(item: tuple[CertifiedChunk, ChunkResult]) -> None:
        chunk, result = item
        output = chunk.chunk.output
        if reset[output]:
            # All the way back: what was collected before counts for nothing, and P begins anew.
            chunk.corrections.clear()
        if step.full_pass:
            _replace(geometry, chunk, result, *update.of(output))
        else:
            _renew(geometry, step.bounds, chunk, result, *update.of(output))

    with serial_blas():
        items = zip(run.chunks, step.drain(), strict=True)
        for _ in trimming_freed_memory(ordered_map(adopt_chunk, items, geometry.threads)):
            pass
    run.update = update
    run.bounds = step.bounds


def _replace(
    geometry: Geometry, chunk: CertifiedChunk, result: ChunkResult, collected: Float[np.ndarray, " n"], scale: float
) -> None:
    """Adopt the result of a pass, in which all slots were evaluated."""
    assert result.rescanned is not None
    pattern = result.rescanned.pattern
    bucket = geometry.bucket_of[pattern.counts]
    chunk.replace(pattern, result.rescanned.certificates, bucket, result.flips, collected, scale)


def _renew(
    geometry: Geometry,
    bounds: Bounds | None,
    chunk: CertifiedChunk,
    result: ChunkResult,
    collected: Float[np.ndarray, " n"],
    scale: float,
) -> None:
    """Adopt a step in which some certificates have expired, and some slots were evaluated as a whole."""
    chunk.drift = result.drift
    if result.renewal is not None:
        chunk.certificates.renew(result.renewal.expired, result.renewal.due, result.renewal.touched)
    chunk.apply(result.flips, collected, scale)
    if result.rescanned is not None:
        slots = result.rescanned.slots
        chunk.bucket[slots] = geometry.bucket_of[chunk.counts[slots]]
        chunk.certificates.exchange(slots, result.rescanned.certificates)
    if bounds is not None:
        rebucket(geometry, bounds, chunk, result.flips.touched())
