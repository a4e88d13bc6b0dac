"""Constants of a run: samples, rounding, buckets, and the weights at the start."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.certificate.slots import SlotOrigin
from widefit.kernels.vector import column_blocks
from widefit.nn import TwoLayer
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.products import Products
from widefit.trackers.fire_pattern import Chunk

# Samples up to which K is held: bounds of buckets take n² operations a step, movements of neurons m k_r d.
LARGEST_SIMILARITY = 1 << 13
# Neurons of a regenerated network that are drawn at a time: whole streams, of pairs, too.
_DRAWN = 2048


def bucket_caps(samples: int) -> Int[np.ndarray, " q"]:
    """Return ascending numbers of samples, in steps of a factor of about √2, the last of them n."""
    caps = []
    cap = 2
    while cap < samples:
        caps.append(cap)
        caps.append(cap + cap // 2)
        cap *= 2
    return np.array([*sorted({cap for cap in caps if cap < samples}), samples], np.int64)


@dataclass(frozen=True)
class InitialWeights:
    """Weights W₀ at the start: held by a network with an array until the run ends, drawn anew from any other.

    Attributes
    ----------
    network
        The network; its weights do not change before the end of the run.
    features, dtype
        d, and the dtype of the weights.
    drawn
        Weights of the chunk that is being evaluated, where they have been drawn.
    """

    network: TwoLayer
    features: int
    dtype: np.dtype
    drawn: Float[np.ndarray, "neurons d"] | None = None

    @property
    def stored(self) -> bool:
        """True where the network holds its weights."""
        return self.network.store == "array"

    def of_chunk(self, chunk: Chunk) -> Float[np.ndarray, "neurons d"]:
        """Return the weights of all neurons of a chunk at once."""
        return self.network.rows(chunk.first, chunk.last) if self.drawn is None else self.drawn

    def blocks(self, chunk: Chunk) -> Iterator[Float[np.ndarray, "rows d"]]:
        """Yield the weights of a chunk block by block; the next block overwrites the one before."""
        size = chunk.last - chunk.first if self.stored else _DRAWN
        out = None if self.stored else np.empty((size, self.features), self.dtype)
        for first in range(chunk.first, chunk.last, size):
            last = min(first + size, chunk.last)
            yield self.network.rows(first, last, None if out is None else out[: last - first])

    def around(self, chunk: CertifiedChunk, slots: Int[np.ndarray, " s"]) -> tuple[Float[np.ndarray, "rows d"], int]:
        """Return weights of consecutive neurons, among them those of ascending slots, and the first neuron."""
        first = int(chunk.neurons[slots[0]])
        last = int(chunk.neurons[slots[-1]])
        if self.drawn is not None:
            return self.drawn[first : last + 1], first
        return self.network.rows(chunk.chunk.first + first, chunk.chunk.first + last + 1), first

    def spans(
        self, chunk: CertifiedChunk, slots: Int[np.ndarray, " s"]
    ) -> Iterator[tuple[int, int, Float[np.ndarray, "rows d"], int]]:
        """Yield ranges of slots that hold `slots`, the weights of their neurons, and the first of these neurons.

        Weights that are held are yielded all at once; others are drawn where `slots` are, and overwritten by the next.
        """
        if self.stored or self.drawn is not None:
            yield 0, chunk.neurons.size, self.of_chunk(chunk.chunk), 0
            return
        size = chunk.chunk.last - chunk.chunk.first
        origin = chunk.chunk.first
        edges = np.searchsorted(chunk.neurons, np.arange(0, size + _DRAWN, _DRAWN))
        out = np.empty((min(_DRAWN, size), self.features), self.dtype)
        for block in np.unique(chunk.neurons[slots] // _DRAWN).tolist():
            first = block * _DRAWN
            last = min(first + _DRAWN, size)
            weights = self.network.rows(origin + first, origin + last, out[: last - first])
            yield int(edges[block]), int(edges[block + 1]), weights, first


@dataclass(frozen=True)
class Geometry:
    """Samples, threshold, rounding and buckets.

    Attributes
    ----------
    initial
        W₀.
    inputs, inputs64
        X in the dtype of the network, and in float64.
    blocks64, blocks32
        X as `widefit.kernels.vector` reads it for sums in float64 and, in float32, for sums in float32.
    products
        Products with X, in the dtype of the network or in integers.
    similarity
        K = X Xᵀ, float32, and infinite beyond its range; None for more than `LARGEST_SIMILARITY` samples.
    peak
        At least max_i |K_ij| for every sample j.
    lengths, longest
        ‖x_i‖, rounded up, float32, and the largest of them.
    threshold
        b, as the dtype of the network has it.
    tolerance, floor
        The rounding of z_rj in that dtype is at most tolerance · ‖w_r‖ + floor.
    caps, bucket_of
        Most samples that a neuron of each bucket may fire on; bucket of a neuron that fires on k, with room to grow.
    threads
        Cores to use.
    """

    initial: InitialWeights
    inputs: Float[np.ndarray, "n d"]
    inputs64: Float[np.ndarray, "n d"]
    blocks64: Float[np.ndarray, "blocks n lanes"]
    blocks32: Float[np.ndarray, "blocks32 n lanes32"]
    products: Products
    similarity: Float[np.ndarray, "n n"] | None
    peak: Float[np.ndarray, " n"]
    lengths: Float[np.ndarray, " n"]
    longest: float
    threshold: float
    tolerance: float
    floor: float
    caps: Int[np.ndarray, " q"]
    bucket_of: Int[np.ndarray, " n_plus_one"] | np.ndarray
    threads: int

    @classmethod
    def of(cls, network: TwoLayer, inputs: Float[np.ndarray, "n d"], threads: int) -> "Geometry":
        """Compute the constants of a run over `inputs`."""
        samples, features = inputs.shape
        inputs64 = inputs.astype(np.float64)
        norms = np.linalg.norm(inputs64, axis=1)
        # What is too large for float32 is infinite there: no bound covers it.
        with np.errstate(over="ignore"):
            lengths = (norms * (1 + 2e-7)).astype(np.float32)
            blocks32 = column_blocks(inputs.astype(np.float32), np.float32)
        longest = float(lengths.max())
        similarity, peak = _similarity(inputs64, norms)
        eps = float(np.finfo(inputs.dtype).eps)
        threshold = float(inputs.dtype.type(network.threshold))
        caps = bucket_caps(samples)
        fired = np.arange(samples + 1)
        with_room = np.minimum(fired + np.maximum(1, fired // 8), samples)
        return cls(
            initial=InitialWeights(network, features, inputs.dtype),
            inputs=inputs,
            inputs64=inputs64,
            blocks64=column_blocks(inputs, np.float64),
            blocks32=blocks32,
            products=Products.of(inputs, network.rows(0, min(_DRAWN, network.width)), network.width),
            similarity=similarity,
            peak=peak,
            lengths=lengths,
            longest=longest,
            threshold=threshold,
            tolerance=(features + 8) * eps * longest,
            floor=4 * eps * abs(threshold),
            caps=caps,
            bucket_of=np.searchsorted(caps, with_room).astype(np.uint8),
            threads=threads,
        )

    def with_weights_of(self, chunk: Chunk) -> "Geometry":
        """Return the same with the weights of a chunk at hand, for work that reads them more than once."""
        if self.initial.stored:
            return self
        return replace(self, initial=replace(self.initial, drawn=self.initial.of_chunk(chunk)))

    def origin(self, chunk: CertifiedChunk, slots: Int[np.ndarray, " s"]) -> SlotOrigin:
        """Return the weights at the start around ascending slots, for the kernels."""
        initial, first = self.initial.around(chunk, slots)
        return SlotOrigin(chunk.neurons, initial, first, chunk.coefficients, self.blocks64)

    def origins(self, chunk: CertifiedChunk, slots: Int[np.ndarray, " s"]) -> Iterator[tuple[int, int, SlotOrigin]]:
        """Yield ranges of slots that hold `slots`, and their weights at the start; see `InitialWeights.spans`."""
        coefficients = chunk.coefficients
        for low, high, initial, first in self.initial.spans(chunk, slots):
            yield low, high, SlotOrigin(chunk.neurons, initial, first, coefficients, self.blocks64)

    @property
    def samples(self) -> int:
        """n."""
        return self.inputs.shape[0]

    @property
    def steepest(self) -> float:
        """max |K_ij|, rounded up."""
        return float(self.peak.max())


def _similarity(
    inputs: Float[np.ndarray, "n d"], norms: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n n"] | None, Float[np.ndarray, " n"]]:
    """Return K in float32, or None where it would be large, and at least max_i |K_ij|."""
    with np.errstate(over="ignore"):
        if len(inputs) > LARGEST_SIMILARITY:
            return None, norms * norms.max() * (1 + 1e-12)
        similarity = inputs @ inputs.T
        peak = np.maximum(similarity.max(axis=0), -similarity.min(axis=0))
        return similarity.astype(np.float32), peak * (1 + 1e-12)
