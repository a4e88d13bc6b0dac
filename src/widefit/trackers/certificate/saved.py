"""Fire rows and corrections of the certificate tracker's chunks as a few arrays, and back."""

from collections.abc import Sequence

import numpy as np

from widefit.trackers.certificate.chunk import CertifiedChunk


def packed(chunks: Sequence[CertifiedChunk]) -> dict[str, np.ndarray]:
    """What `CertifiedChunk.state` gives, chunk after chunk."""
    arrays: dict[str, list[np.ndarray]] = {}
    for chunk in chunks:
        for name, array in chunk.state().items():
            arrays.setdefault(name, []).append(array)
    return {name: np.concatenate(own) for name, own in arrays.items()}


def unpack(state: dict[str, np.ndarray], chunks: Sequence[CertifiedChunk]) -> None:
    """The inverse of `packed`, into chunks with the same neurons."""
    rows = entries = words = 0
    for chunk in chunks:
        size = chunk.neurons.size
        counts, used = state["counts"][rows : rows + size], state["corrections"][rows : rows + size]
        own = slice(entries, entries + int(used.sum()))
        length = int(counts.sum(dtype=np.int64))
        fired = state["fired"][words : words + length]
        chunk.restore(counts, fired, used, state["entry_sample"][own], state["entry_value"][own])
        rows, entries, words = rows + size, own.stop, words + length
