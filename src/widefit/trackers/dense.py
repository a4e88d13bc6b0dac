"""The reference tracker: recompute every pre-activation, block by block, and compare it with the threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.kernels import fire_rows as cpu
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Grams, Stream, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.cost import FLOPS, REFERENCE_THREADS, Cost, NeuronShape, Steps, Workload
from widefit.trackers.descent import descend
from widefit.trackers.fire_pattern import Chunk, FirePattern, partition
from widefit.trackers.layer import Layer, refuse_unstored, write_readout
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.streams import DenseStream

# Pre-activations of a block: 4 MB in float32, which the third-level cache holds for every core.
_BLOCK_NUMBERS = 1 << 20
# Passes of a run or an epoch. A pass with a ridge multiplies twice: W and W − W₀; an epoch costs its products and the
# pass that ends it.
_PASSES = {Steps.LONG: 6.0, Steps.SHORT: 100.0}
_PASSES_OF_AN_EPOCH = 1.4
# Seconds a neuron of a stochastic step on one core (AMD Zen 4), beside its products.
_STREAM_NEURON = 0.65e-9


@dataclass(frozen=True)
class Dense(Tracker):
    """Z = W Xᵀ in cache-sized blocks (this project; the baseline of arXiv 2208.04508).

    A trial costs one pass: 2 m n d flops for the products and a scan of m n numbers. Memory: two fire patterns, one
    block a thread; W is written once an accepted update. A stochastic step costs 2 m b d flops for a batch of b; a
    pass follows the last.
    """

    name: str = "dense"

    @property
    def anywhere(self) -> bool:
        return True

    def cost(self, work: Workload) -> Cost:
        passes = _PASSES.get(work.steps, _PASSES_OF_AN_EPOCH)
        products = 2 if work.anchored and not work.steps.sees_few else 1
        return Cost(work.pattern_bytes, passes * products * work.seconds_of_a_pass)

    def seconds_in_a_stream(self, shape: NeuronShape) -> float:
        return shape.width * (_STREAM_NEURON + 4 * shape.features / FLOPS) / REFERENCE_THREADS

    def start(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
        state: dict[str, np.ndarray] | None = None,
        expected: Float[np.ndarray, "n k"] | None = None,
    ) -> "DenseTracking":
        return DenseTracking(network, inputs, anchor, threads)

    @property
    def trains_readout(self) -> bool:
        return True

    def stream(self, network: TwoLayer, *, threads: int = 1) -> Stream:
        return DenseStream(self.name, network, threads)


@dataclass(frozen=True)
class _ChunkTrial:
    pattern: FirePattern
    outputs: Float[np.ndarray, " n"]
    flips: int
    response: Float[np.ndarray, " n"] | None
    squared_norm: float


def block_rows(samples: int) -> int:
    """Neurons a block."""
    return min(1024, max(64, _BLOCK_NUMBERS // samples))


class DenseTracking(Tracking):
    """See `Dense`."""

    def __init__(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        anchor: Float[np.ndarray, "m d"] | None,
        threads: int,
    ):
        refuse_unstored(Dense.name, network)
        self._network = network
        self._weight = network.weight.detach().numpy()
        self._coefficients = network.coefficients()
        self._threshold = self._weight.dtype.type(network.threshold)
        self._silent = network.silent_outputs()
        self._groups = [network.neurons_of(output) for output in range(network.out_features)]
        self._chunks = partition(self._groups)
        self._inputs = inputs
        self._anchor = anchor
        self._threads = threads
        self._passes = 0
        self._sampled = 0
        self._flips = 0
        self._patterns: list[FirePattern] | None = None
        first = self._pass(None)
        self._patterns, self.outputs, self.displacement = first.payload, first.outputs, first.displacement

    def propose(self, update: Update, gram: Grams) -> Trial:
        return self._pass(update)

    def commit(self, trial: Trial) -> None:
        def write(chunk_and_pattern: tuple[Chunk, FirePattern]) -> None:
            chunk, pattern = chunk_and_pattern
            rows = block_rows(self._inputs.shape[0])
            scratch = np.empty((2, self._inputs.shape[0] + 1), np.int32)
            for first in range(0, chunk.last - chunk.first, rows):
                last = min(first + rows, chunk.last - chunk.first)
                block = slice(chunk.first + first, chunk.first + last)
                self._step(trial.update, pattern, first, last, scratch, self._weight[block])

        for _ in ordered_map(write, zip(self._chunks, self.patterns(), strict=True), self._threads):
            pass
        self._patterns, self.outputs, self.displacement = trial.payload, trial.outputs, trial.displacement
        self._flips += trial.flips

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps on the samples of each batch alone; the flips are the pairs that differ in the end."""
        layer = Layer(self._weight, self._anchor, self._coefficients, self._threshold, self._silent, self._groups)
        descend(layer, self._inputs, minibatches, self._threads)
        looks = 1 if minibatches.adversary is None else 1 + minibatches.adversary.steps
        self._sampled += looks * self._weight.shape[0] * minibatches.samples.size
        if minibatches.trains_readout:
            write_readout(self._coefficients, self._network)
        gram.follow(None)
        after = self._pass(None)
        self._patterns, self.outputs, self.displacement = after.payload, after.outputs, after.displacement
        self._flips += after.flips
        return after.flips

    def patterns(self) -> Sequence[FirePattern]:
        assert self._patterns is not None
        return self._patterns

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        if out is not self._weight:
            out[...] = self._weight

    def finish(self) -> None:
        """Nothing is left to do: every commit writes the weights."""

    def report(self) -> TrackerReport:
        return TrackerReport(
            tracker=Dense.name,
            full_passes=self._passes,
            pairs_evaluated=self._passes * self._weight.shape[0] * self._inputs.shape[0] + self._sampled,
            flips=self._flips,
            firing_pairs=int(sum(int(pattern.counts.sum(dtype=np.int64)) for pattern in self.patterns())),
            bytes_held=sum(pattern.nbytes for pattern in self.patterns()),
        )

    def _pass(self, update: Update | None) -> Trial:
        samples, outputs = self._inputs.shape[0], self._silent.size
        patterns, flips = [], 0
        result = np.tile(self._silent, (samples, 1))
        displacement = Displacement(np.zeros((samples, outputs)), np.zeros(outputs))
        before = self._patterns if self._patterns is not None else [None] * len(self._chunks)
        work = [(chunk, pattern, update) for chunk, pattern in zip(self._chunks, before, strict=True)]
        with serial_blas():
            for chunk, part in zip(self._chunks, ordered_map(self._chunk_pass, work, self._threads), strict=True):
                patterns.append(part.pattern)
                flips += part.flips
                result[:, chunk.output] += part.outputs
                if part.response is not None:
                    displacement.response[:, chunk.output] += part.response
                    displacement.squared_norm[chunk.output] += part.squared_norm
        self._passes += 1
        no_update = Update(np.zeros((samples, outputs)), np.zeros(outputs))
        return Trial(
            update=update or no_update,
            outputs=result,
            flips=flips,
            rebased=True,
            displacement=displacement if self._anchor is not None else None,
            payload=patterns,
        )

    def _chunk_pass(self, work: tuple[Chunk, FirePattern | None, Update | None]) -> _ChunkTrial:
        """Pre-activations, fire rows and outputs of one chunk at its weights after the update."""
        chunk, before, update = work
        samples, dtype = self._inputs.shape[0], self._weight.dtype
        size, rows = chunk.last - chunk.first, block_rows(self._inputs.shape[0])
        limit = (samples + 31) // 32
        z = np.empty((min(rows, size), samples), dtype)
        moved = np.empty((min(rows, size), self._inputs.shape[1]), dtype)
        words, scratch = np.empty(min(rows, size) * limit, np.uint32), np.empty((2, samples + 1), np.int32)
        counts, start = np.empty(size, np.int32), np.zeros(size + 1, np.int64)
        outputs, flips, pieces = np.zeros(samples), 0, []
        response, squared_norm = (np.zeros(samples), 0.0) if self._anchor is not None else (None, 0.0)

        for first in range(0, size, rows):
            last = min(first + rows, size)
            block = slice(chunk.first + first, chunk.first + last)
            weights = self._weight[block]
            if update is not None and before is not None:
                weights = moved[: last - first]
                self._step(update, before, first, last, scratch, weights)
            values = z[: last - first]
            np.matmul(weights, self._inputs.T, out=values)
            block_start = np.empty(last - first + 1, np.int64)
            flips += cpu.fire_block(
                values, self._threshold, self._coefficients[block], *_rows(before, first, last),
                counts[first:last], block_start, words, scratch, outputs,
            )  # fmt: skip
            pieces.append(words[: block_start[-1]].copy())
            if response is not None and self._anchor is not None:
                offset = weights - self._anchor[block]
                squared_norm += float(np.vdot(offset, offset))
                np.matmul(offset, self._inputs.T, out=values)
                cpu.response_block(
                    values, self._coefficients[block], counts[first:last], block_start, words, scratch, response
                )
            start[first + 1 : last + 1] = start[first] + block_start[1:]
        pattern = FirePattern(chunk, samples, counts, start, np.concatenate(pieces))
        return _ChunkTrial(pattern, outputs, int(flips), response, squared_norm)

    def _step(
        self, update: Update, pattern: FirePattern, first: int, last: int, scratch: np.ndarray, out: np.ndarray
    ) -> None:
        """Weights of rows `first` to `last` of a chunk after the update, into out."""
        chunk = pattern.chunk
        block = slice(chunk.first + first, chunk.first + last)
        shrink = self._weight.dtype.type(update.shrink[chunk.output])
        anchor = self._anchor[block] if self._anchor is not None else np.empty((0, out.shape[1]), self._weight.dtype)
        g = np.ascontiguousarray(update.g[:, chunk.output])
        cpu.step_block(
            self._weight[block], anchor, shrink, self._coefficients[block], g, self._inputs,
            *_rows(pattern, first, last), scratch, out,
        )  # fmt: skip


def _rows(pattern: FirePattern | None, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fire rows `first` to `last` of a pattern as the kernels take them; empty for no pattern."""
    if pattern is None:
        return np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.uint32)
    return pattern.counts[first:last], pattern.start[first : last + 1], pattern.words
