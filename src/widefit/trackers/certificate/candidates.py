"""Which pairs of the certificate tracker could flip within a budget of movement, and what becomes of them."""

import numpy as np
from jaxtyping import Float

from widefit.kernels import certificate_bounds as bounds_kernels
from widefit.kernels import certificate_look as kernels
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.trackers.certificate.chunk import CertifiedChunk, ChunkFlips
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import look_at_slots
from widefit.trackers.certificate.trial import Bounds, OutputBounds, Sums
from widefit.trackers.certificate.window import CandidateLook, Candidates

# Part of the slots that may be looked at as a whole so that a step or a window is safe for all.
REISSUED = 0.02


def drift_within(
    geometry: Geometry, chunks: list[CertifiedChunk], budget: Float[np.ndarray, "k n"]
) -> list[np.ndarray]:
    """Drift once a window has used up its budget."""
    narrow = np.nextafter(budget.astype(np.float32), np.float32(np.inf))

    def walk(chunk: CertifiedChunk) -> np.ndarray:
        moved = np.empty(chunk.neurons.size, np.float32)
        bounds_kernels.own_budgets(
            chunk.coefficients, chunk.counts, chunk.start, chunk.words, narrow[chunk.chunk.output], geometry.steepest,
            moved,
        )  # fmt: skip
        return moved + chunk.drift * np.float32(1 + 2e-7) if chunk.drift.size else moved

    return list(ordered_map(walk, chunks, geometry.threads))


def issue_anew(
    geometry: Geometry,
    chunks: list[CertifiedChunk],
    sums: Sums,
    bounds: Bounds,
    beyond: list[np.ndarray],
    drift: list[np.ndarray],
) -> list[np.ndarray]:
    """Give slots certificates from where they stand now, and take the drift so far off what is to come."""
    by_output = bounds.by_output()

    def issue(item: tuple[CertifiedChunk, np.ndarray, np.ndarray]) -> np.ndarray:
        chunk, slots, own = item
        if slots.size:
            if chunk.drift.size:
                own[slots] -= chunk.drift[slots] * np.float32(1 - 2e-7)
                chunk.drift[slots] = 0
            anew = look_at_slots(geometry, chunk, slots, sums, by_output[chunk.chunk.output])
            # Certificates are issued for the bucket of the present fire row.
            chunk.bucket[slots] = geometry.bucket_of[chunk.counts[slots]]
            chunk.certificates.exchange(slots, anew.certificates)
        return own

    with serial_blas():
        return list(ordered_map(issue, zip(chunks, beyond, drift, strict=True), geometry.threads))


def candidates(
    geometry: Geometry,
    chunk: CertifiedChunk,
    bounds: OutputBounds,
    drift: Float[np.ndarray, " slots"],
    budget: Float[np.ndarray, " n"],
) -> tuple[Candidates, Float[np.ndarray, " slots"]]:
    """Pairs that could flip within the budget, and the drift that it comes to when all of them do.

    Parameters
    ----------
    drift
        Once the budget is used up, as long as fire rows stay as they are.
    """
    share = np.abs(chunk.coefficients) * (geometry.steepest * (1 + 1e-6))
    slots, samples, fires = _expiring(geometry, chunk, bounds, drift)
    before, most = -1, drift
    while slots.size > max(before, 0):
        # A candidate that begins to fire lets its sample move the neuron, which may bring more candidates.
        added = np.bincount(slots[~fires], weights=budget[samples[~fires]], minlength=drift.size)
        most = np.nextafter((drift + share * added).astype(np.float32), np.float32(np.inf))
        before = slots.size
        slots, samples, fires = _expiring(geometry, chunk, bounds, most)
    caps = geometry.caps[chunk.bucket[slots]]
    rate = np.abs(chunk.coefficients[slots]) * np.sqrt(caps) * geometry.peak[samples] * (1 + 1e-9)
    due = np.zeros(slots.size)
    return Candidates(slots, samples, fires, rate, due, 0.0 if slots.size else np.inf), most


def _expiring(
    geometry: Geometry, chunk: CertifiedChunk, bounds: OutputBounds, drift: Float[np.ndarray, " slots"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs whose certificates expire before the drift has come to what is given, and whether they fire."""
    held = chunk.certificates
    slots, samples = np.empty(held.used, np.int32), np.empty(held.used, np.int32)
    fires = np.empty(held.used, np.bool_)
    found = kernels.open_certificates(
        held.start, held.count, held.soonest, held.sample, held.due, chunk.counts, chunk.start, chunk.words,
        chunk.bucket, drift, bounds.level, bounds.highest, geometry.samples, slots, samples, fires,
    )  # fmt: skip
    return slots[:found].copy(), samples[:found].copy(), fires[:found].copy()


def look_at_due(
    geometry: Geometry, chunks: list[CertifiedChunk], held: list[Candidates], sums: Sums, path: Float[np.ndarray, " k"]
) -> list[CandidateLook]:
    """Evaluate the candidates that are due when the path is so long."""
    looks = []
    for index, (chunk, own) in enumerate(zip(chunks, held, strict=True)):
        length = float(path[chunk.chunk.output])
        now = length * (1 + 1e-12)
        if own.next_due <= now:
            # What is due soon is looked at along with it.
            soon = now + 0.1 * (now - own.next_due)
            looks.append(_look(geometry, index, chunk, own, sums, length, soon))
    return looks


def _look(
    geometry: Geometry, index: int, chunk: CertifiedChunk, own: Candidates, sums: Sums, length: float, soon: float
) -> CandidateLook:
    size, corrections = own.slots.size, chunk.corrections
    collected, scale = sums.of(chunk.chunk.output)
    position, due, flips = np.empty(size, np.int64), np.empty(size), np.empty(size, np.int64)
    z, y = np.empty(size), np.empty(size)
    found, flipped = kernels.look_at_candidates(
        own.slots, own.samples, own.fires, own.rate, own.due, length, soon, chunk.neurons,
        geometry.initial.of_chunk(chunk.chunk), 0, chunk.coefficients, chunk.counts, chunk.start, chunk.words,
        collected, corrections.head, corrections.following, corrections.sample, corrections.value, scale,
        geometry.inputs64, geometry.threshold, position, due, flips, z, y,
    )  # fmt: skip
    pairs = flips[:flipped]
    changed = ChunkFlips(own.slots[pairs], own.samples[pairs], ~own.fires[pairs], z[:flipped], y[:flipped])
    return CandidateLook(index, position[:found], due[:found], changed, pairs)
