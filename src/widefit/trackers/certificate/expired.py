"""Pairs whose certificates a step lets expire: renewed, or evaluated."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from widefit.kernels.certificate import look as kernels
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.bounds import Bounds, OutputBounds
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.flips import EvaluatedFlips
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import evaluate_slots, flips_of
from widefit.trackers.certificate.running_update import RunningUpdate
from widefit.trackers.certificate.trial import ChunkResult, Renewal, StepResult, chunk_result


def evaluate_expired(
    geometry: Geometry,
    chunks: list[CertifiedChunk],
    after: RunningUpdate,
    change: RunningUpdate,
    bounds: Bounds,
    step: Float[np.ndarray, "k q n"],
    drift: list[np.ndarray],
    whole: Sequence[np.ndarray | None],
) -> StepResult:
    """Evaluate the pairs whose certificates expire, and some slots as a whole.

    Parameters
    ----------
    after, change
        G and P after the step, and their change in it.
    bounds, step
        Bounds after the step, and their rise in it.
    drift
        Drift of every chunk after the step.
    whole
        Slots of every chunk to evaluate as a whole.
    """
    by_output = bounds.by_output()

    def evaluate_chunk(item: tuple[CertifiedChunk, np.ndarray, np.ndarray | None]) -> tuple[ChunkResult, np.ndarray]:
        chunk, own, slots = item
        output = chunk.chunk.output
        near = geometry
        rescanned = None
        others = None
        if slots is not None and slots.size:
            near = geometry.with_weights_of(chunk.chunk)
            rescanned = evaluate_slots(near, chunk, slots, after, by_output[output])
            others = flips_of(near, chunk, rescanned, after)
            own[slots] = -np.inf  # keeps their certificates from being looked at
        flips, renewal, evaluated = _look(near, chunk, after, change, by_output[output], step[output], own)
        if rescanned is not None and others is not None:
            own[rescanned.slots] = 0
            flips = flips.merged(others)
            evaluated += rescanned.slots.size * geometry.samples
        return chunk_result(geometry, chunk, flips, own, evaluated, renewal, rescanned)

    with serial_blas():
        results = ordered_map(evaluate_chunk, zip(chunks, drift, whole, strict=True), geometry.threads)
        return StepResult.collect(chunks, results, len(after.scale))


def _look(
    geometry: Geometry,
    chunk: CertifiedChunk,
    after: RunningUpdate,
    change: RunningUpdate,
    bounds: OutputBounds,
    step: Float[np.ndarray, "q n"],
    drift: Float[np.ndarray, " slots_or_none"],
) -> tuple[EvaluatedFlips, Renewal, int]:
    """Return the flips, the renewals, and the number of pre-activations computed."""
    output = chunk.chunk.output
    collected = chunk.collected(*after.of(output))
    runs = chunk.certificates.runs()
    levels = kernels.StepLevels(
        chunk.bucket, drift, bounds.level, bounds.highest, step, change.collected[output], geometry.peak
    )
    highest = bounds.highest[chunk.bucket] + (drift if drift.size else 0)
    opened = np.flatnonzero(highest >= runs.soonest)
    found = _space(int(runs.count[opened].sum(dtype=np.int64)), opened.size, runs.start.dtype)
    for low, high, origin in geometry.origins(chunk, opened):
        kernels.look_at_certificates(
            low, high, runs, levels, origin, collected, geometry.inputs, geometry.threshold, found
        )
    expired, touched, flipped, evaluated = found.totals.tolist()
    pairs = (found.slot, found.sample, found.fires, found.z, found.y)
    flips = EvaluatedFlips(*(array[:flipped] for array in pairs))
    renewal = Renewal(
        expired=found.position[:expired].astype(np.min_scalar_type(runs.due.size)),
        due=found.due[:expired].copy(),
        touched=found.touched[:touched].astype(chunk.neurons.dtype),
    )
    return flips, renewal, evaluated


def _space(certificates: int, slots: int, position: np.dtype) -> kernels.Findings:
    """Allocate arrays for what a step can find among some certificates of some slots."""
    return kernels.Findings(
        position=np.empty(certificates, position),
        due=np.empty(certificates, np.float32),
        touched=np.empty(slots, np.int32),
        slot=np.empty(certificates, np.int32),
        sample=np.empty(certificates, np.int32),
        fires=np.empty(certificates, np.bool_),
        z=np.empty(certificates),
        y=np.empty(certificates),
        totals=np.zeros(4, np.int64),
    )
