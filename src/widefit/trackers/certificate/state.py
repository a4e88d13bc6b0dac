"""What a run of the certificate tracker can be resumed from, and the weights that it comes to."""

import numpy as np
from jaxtyping import Float

from widefit.kernels.threads import ordered_map
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.passes import weights_of
from widefit.trackers.certificate.saved import packed, unpack
from widefit.trackers.certificate.standing import Standing
from widefit.trackers.certificate.trial import Sums


def save(standing: Standing) -> dict[str, np.ndarray]:
    """G, P, fire rows and corrections."""
    return {"collected": standing.sums.collected, "scale": standing.sums.scale, **packed(standing.chunks)}


def restore(geometry: Geometry, standing: Standing, state: dict[str, np.ndarray]) -> None:
    """Go on from a state: the patterns are those it holds, certificates are issued by the next pass."""
    standing.sums = Sums(state["collected"].copy(), state["scale"].copy())
    standing.bounds = None
    unpack(state, standing.chunks)
    for chunk in standing.chunks:
        chunk.bucket = geometry.bucket_of[chunk.counts]


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
