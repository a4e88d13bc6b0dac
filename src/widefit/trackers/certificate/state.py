"""What a run of the certificate tracker can be resumed from, and the weights that it comes to."""

import numpy as np
from jaxtyping import Float

from widefit.kernels.threads import ordered_map
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import weights_of
from widefit.trackers.certificate.trial import Sums
from widefit.trackers.certificate.windows import Standing


def save(standing: Standing) -> dict[str, np.ndarray]:
    """G, P, fire rows and corrections."""
    arrays: dict[str, list[np.ndarray]] = {}
    for chunk in standing.chunks:
        for name, array in chunk.state().items():
            arrays.setdefault(name, []).append(array)
    parts = {name: np.concatenate(own) for name, own in arrays.items()}
    return {"collected": standing.sums.collected, "scale": standing.sums.scale, **parts}


def restore(geometry: Geometry, standing: Standing, state: dict[str, np.ndarray]) -> None:
    """Go on from a state: the patterns are those it holds, certificates are issued by the next pass."""
    standing.sums = Sums(state["collected"].copy(), state["scale"].copy())
    standing.bounds = None
    rows = entries = words = 0
    for chunk in standing.chunks:
        size = chunk.neurons.size
        counts, used = state["counts"][rows : rows + size], state["corrections"][rows : rows + size]
        own = slice(entries, entries + int(used.sum()))
        length = int(counts.sum(dtype=np.int64))
        fired = state["fired"][words : words + length]
        chunk.restore(counts, fired, used, state["entry_sample"][own], state["entry_value"][own])
        chunk.bucket = geometry.bucket_of[chunk.counts]
        rows, entries, words = rows + size, own.stop, words + length


def write_weights(geometry: Geometry, standing: Standing, out: Float[np.ndarray, "m d"]) -> None:
    """W into `out`, which may be the network's own array."""
    network = geometry.initial.network

    def write(chunk: CertifiedChunk) -> None:
        target, first = out[chunk.chunk.rows], 0
        slots = np.arange(chunk.neurons.size, dtype=np.int32)
        if not np.shares_memory(out, network.rows(0, 1)):
            network.rows(chunk.chunk.first, chunk.chunk.last, target)
        for block in weights_of(geometry, chunk, slots, standing.sums):
            target[chunk.neurons[first : first + block.shape[0]]] = block
            first += block.shape[0]

    for _ in ordered_map(write, standing.chunks, geometry.threads):
        pass
