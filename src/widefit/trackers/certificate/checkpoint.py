"""Checkpoint of a run of the certificate tracker: running sums, fire rows and corrections as a few arrays, and back."""

from collections.abc import Sequence

import numpy as np

from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.run_state import RunState
from widefit.trackers.certificate.running_update import RunningUpdate


def save_run(run: RunState) -> dict[str, np.ndarray]:
    """Return G, P, the fire rows and the corrections of a run."""
    return {"collected": run.update.collected, "scale": run.update.scale, **save_chunks(run.chunks)}


def restore_run(geometry: Geometry, run: RunState, state: dict[str, np.ndarray]) -> None:
    """Continue from the arrays of `save_run`; the next step is a pass, which issues the certificates."""
    run.update = RunningUpdate(state["collected"].copy(), state["scale"].copy())
    run.bounds = None
    restore_chunks(state, run.chunks)
    for chunk in run.chunks:
        chunk.bucket = geometry.bucket_of[chunk.counts]


def save_chunks(chunks: Sequence[CertifiedChunk]) -> dict[str, np.ndarray]:
    """Return the arrays of `CertifiedChunk.state`, those of all chunks joined."""
    arrays: dict[str, list[np.ndarray]] = {}
    for chunk in chunks:
        for name, array in chunk.state().items():
            arrays.setdefault(name, []).append(array)
    return {name: np.concatenate(own) for name, own in arrays.items()}


def restore_chunks(state: dict[str, np.ndarray], chunks: Sequence[CertifiedChunk]) -> None:
    """Read the arrays of `save_chunks` into chunks with the same neurons."""
    rows = 0
    entries = 0
    words = 0
    for chunk in chunks:
        size = chunk.neurons.size
        counts = state["counts"][rows : rows + size]
        corrections = state["corrections"][rows : rows + size]
        own = slice(entries, entries + int(corrections.sum()))
        length = int(counts.sum(dtype=np.int64))
        fired = state["fired"][words : words + length]
        chunk.restore(counts, fired, corrections, state["entry_sample"][own], state["entry_value"][own])
        rows += size
        entries = own.stop
        words += length
