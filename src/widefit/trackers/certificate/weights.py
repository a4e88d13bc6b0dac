"""Weights of slots, formed from the weights at the start and the running sums."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.certificate import slots as kernels
from widefit.kernels.threads import ordered_map
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.running_update import RunningUpdate
from widefit.trackers.dense import block_rows


def weights_of(
    geometry: Geometry, chunk: CertifiedChunk, slots: Int[np.ndarray, " s"], update: RunningUpdate
) -> Iterator[Float[np.ndarray, "rows d"]]:
    """Yield the weights of slots in float64, block by block."""
    collected = chunk.collected(*update.of(chunk.chunk.output))
    size = block_rows(geometry.samples)
    for first in range(0, slots.size, size):
        block = slots[first : first + size]
        out = np.empty((block.size, geometry.inputs.shape[1]))
        kernels.materialize(block, geometry.origin(chunk, block), collected, out)
        yield out


def write_weights(
    geometry: Geometry, chunks: list[CertifiedChunk], update: RunningUpdate, out: Float[np.ndarray, "m d"]
) -> None:
    """Write W into `out`, which may be the network's own array."""
    network = geometry.initial.network

    def write(chunk: CertifiedChunk) -> None:
        target = out[chunk.chunk.rows]
        slots = np.arange(chunk.neurons.size, dtype=np.int32)
        if not np.shares_memory(out, network.rows(0, 1)):
            network.rows(chunk.chunk.first, chunk.chunk.last, target)
        first = 0
        for block in weights_of(geometry, chunk, slots, update):
            target[chunk.neurons[first : first + block.shape[0]]] = block
            first += block.shape[0]

    for _ in ordered_map(write, chunks, geometry.threads):
        pass
