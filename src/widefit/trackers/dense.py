"""Dense tracker, the reference: every pre-activation is recomputed, block by block, and compared with the threshold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from widefit.kernels import fire_rows as kernels
from widefit.kernels.fire_rows import FireRows
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Grams, Stream, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.cost import FLOPS, REFERENCE_THREADS, Cost, NeuronShape, Steps, Workload
from widefit.trackers.descent import descend
from widefit.trackers.fire_pattern import Chunk, FirePattern, partition
from widefit.trackers.layer import Layer, write_readout
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.streams import DenseStream

# Pre-activations of a block: 4 MB in float32, which the third-level cache holds for every core.
_BLOCK_NUMBERS = 1 << 20
# Passes of a run or an epoch. A pass with a ridge multiplies twice: W and W − W₀; an epoch costs its products and the
# pass that ends it.
_PASSES = {Steps.LONG: 6.0, Steps.FEW: 2.0, Steps.SHORT: 100.0}
_PASSES_OF_AN_EPOCH = 1.4
# Bytes of weights up to which those of a trial are kept: a commit need not find them again.
_KEPT_BYTES = 1 << 25
# Seconds a neuron of a stochastic step on one core (AMD Zen 4), beside its products.
_STREAM_NEURON = 0.65e-9


@dataclass(frozen=True)
class Dense(Tracker):
    """Z = W Xᵀ in cache-sized blocks (this project; the baseline of arXiv 2208.04508).

    A trial costs one pass: 2 m n d flops for the products and a scan of m n numbers. Memory: two fire patterns, one
    block a thread, and W of the trial where it is small; W is written once an accepted update. A stochastic step costs
    2 m b d flops for a batch of b; a pass follows the last.
    """

    name: str = "dense"
    shares_neurons: ClassVar[bool] = True

    @property
    def accepts_new_points(self) -> bool:
        return True

    def cost(self, work: Workload) -> Cost:
        passes = _PASSES.get(work.steps, _PASSES_OF_AN_EPOCH)
        products = 2 if work.anchored and not work.steps.sees_few else 1
        # Counted beyond what is kept as well: a wider network never needs less.
        kept = 0 if work.steps.sees_few else min(work.weight_bytes, _KEPT_BYTES)
        return Cost(work.pattern_bytes + kept, passes * products * work.seconds_of_a_pass)

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
class _Tried:
    """Fire patterns after an update, and the weights where they are kept."""

    patterns: list[FirePattern]
    weight: Float[np.ndarray, "m d"] | None


class _LateDisplacement(Displacement):
    """A displacement whose response is found when it is asked for: nobody asks for that of the last step."""

    def __init__(self, find: Callable[[], Float[np.ndarray, "n k"]], squared_norm: Float[np.ndarray, " k"]):
        object.__setattr__(self, "_find", find)
        object.__setattr__(self, "squared_norm", squared_norm)

    def __getattr__(self, name: str) -> Any:
        if name != "response":
            raise AttributeError(name)
        object.__setattr__(self, "response", self._find())
        return self.response


@dataclass(frozen=True)
class _ChunkTrial:
    """Pattern and sums of a chunk; the last two are J (W − W₀) and ‖W − W₀‖² where the run has an anchor."""

    pattern: FirePattern
    outputs: Float[np.ndarray, " n"]
    flips: int
    response: Float[np.ndarray, " n"] | None
    squared_norm: float


def block_rows(samples: int) -> int:
    """Return the neurons of a block."""
    return min(1024, max(64, _BLOCK_NUMBERS // samples))


class DenseTracking(Tracking):
    """Run of the dense tracker; see `Dense`."""

    def __init__(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        anchor: Float[np.ndarray, "m d"] | None,
        threads: int,
    ):
        self._network = network
        self._layer = Layer.trained_by(Dense.name, network, anchor)
        self._chunks = partition(list(self._layer.groups))
        self._inputs = inputs
        self._threads = threads
        self._passes = 0
        self._sampled = 0
        self._flips = 0
        self._patterns: list[FirePattern] | None = None
        self._adopt(self._evaluate(None))

    def propose(self, update: Update, gram: Grams) -> Trial:
        return self._evaluate(update)

    def commit(self, trial: Trial) -> None:
        if trial.payload.weight is not None:
            self._layer.weight[...] = trial.payload.weight
            self._adopt(trial)
            return
        samples = self._inputs.shape[0]

        def write(chunk_and_pattern: tuple[Chunk, FirePattern]) -> None:
            chunk, pattern = chunk_and_pattern
            scratch = np.empty((2, samples + 1), np.int32)
            for first, last in _blocks(chunk, samples):
                own = self._layer.weight[chunk.first + first : chunk.first + last]
                self._move(trial.update, pattern, first, last, scratch, own)

        for _ in ordered_map(write, zip(self._chunks, self.patterns(), strict=True), self._threads):
            pass
        self._adopt(trial)

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps on the samples of each batch alone; the flips are the pairs that differ in the end."""
        descend(self._layer, self._inputs, minibatches, self._threads)
        evaluations = 1 if minibatches.adversary is None else 1 + minibatches.adversary.steps
        self._sampled += evaluations * self._layer.weight.shape[0] * minibatches.samples.size
        if minibatches.trains_readout:
            write_readout(self._layer.coefficients, self._network)
        gram.follow(None)
        after = self._evaluate(None)
        self._adopt(after)
        return after.flips

    def patterns(self) -> Sequence[FirePattern]:
        assert self._patterns is not None
        return self._patterns

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        if out is not self._layer.weight:
            out[...] = self._layer.weight

    def finish(self) -> None:
        """End the run; every commit has written the weights."""

    def report(self) -> TrackerReport:
        return TrackerReport(
            tracker=Dense.name,
            full_passes=self._passes,
            pairs_evaluated=self._passes * self._layer.weight.shape[0] * self._inputs.shape[0] + self._sampled,
            flips=self._flips,
            firing_pairs=int(sum(int(pattern.counts.sum(dtype=np.int64)) for pattern in self.patterns())),
            bytes_held=sum(pattern.nbytes for pattern in self.patterns()),
        )

    def _evaluate(self, update: Update | None) -> Trial:
        """Find who fires after an update; None: at the committed weights."""
        samples = self._inputs.shape[0]
        silent = self._layer.silent
        patterns = []
        flips = 0
        outputs = np.tile(silent, (samples, 1))
        displacement = Displacement.none(samples, silent.size)
        before = self._patterns if self._patterns is not None else [None] * len(self._chunks)
        keeps = update is not None and self._layer.weight.nbytes <= _KEPT_BYTES
        kept = np.empty_like(self._layer.weight) if keeps else None
        work = [(chunk, pattern, update, kept) for chunk, pattern in zip(self._chunks, before, strict=True)]
        with serial_blas():
            for chunk, part in zip(self._chunks, ordered_map(self._evaluate_chunk, work, self._threads), strict=True):
                patterns.append(part.pattern)
                flips += part.flips
                outputs[:, chunk.output] += part.outputs
                if part.response is not None:
                    displacement.response[:, chunk.output] += part.response
                    displacement.squared_norm[chunk.output] += part.squared_norm
        self._passes += 1
        tried = _Tried(patterns, kept)
        if kept is not None:
            displacement = _LateDisplacement(lambda: self._response(tried), displacement.squared_norm)
        return Trial(
            update=update or Update.none(samples, silent.size),
            outputs=outputs,
            flips=flips,
            rebased=True,
            displacement=displacement if self._layer.anchor is not None else None,
            payload=tried,
        )

    def _evaluate_chunk(
        self, work: tuple[Chunk, FirePattern | None, Update | None, Float[np.ndarray, "m d"] | None]
    ) -> _ChunkTrial:
        """Compute pre-activations, fire rows and outputs of one chunk at its weights after the update."""
        chunk, before, update, kept = work
        layer = self._layer
        samples, features = self._inputs.shape
        size = chunk.last - chunk.first
        longest = min(block_rows(samples), size)
        z = np.empty((longest, samples), layer.weight.dtype)
        moved = np.empty((longest, features), layer.weight.dtype)
        words = np.empty(longest * ((samples + 31) // 32), np.uint32)
        scratch = np.empty((2, samples + 1), np.int32)
        counts = np.empty(size, np.int32)
        start = np.zeros(size + 1, np.int64)
        outputs = np.zeros(samples)
        response = np.zeros(samples) if layer.anchor is not None else None
        squared_norm = 0.0
        flips = 0
        pieces = []
        for first, last in _blocks(chunk, samples):
            block = slice(chunk.first + first, chunk.first + last)
            weights = layer.weight[block]
            if update is not None and before is not None:
                weights = moved[: last - first] if kept is None else kept[block]
                self._move(update, before, first, last, scratch, weights)
            values = z[: last - first]
            if update is None and _are_twins(weights):
                # As they are drawn the two neurons of a pair are equal.
                values[::2] = np.matmul(weights[::2], self._inputs.T)
                values[1::2] = values[::2]
            else:
                np.matmul(weights, self._inputs.T, out=values)
            rows = FireRows(counts[first:last], np.empty(last - first + 1, np.int64), words)
            flips += kernels.fire_block(
                values, layer.threshold, layer.coefficients[block], _rows(before, first, last), rows, scratch, outputs
            )
            pieces.append(words[: rows.start[-1]].copy())
            if response is not None and layer.anchor is not None:
                offset = weights - layer.anchor[block]
                squared_norm += float(np.vdot(offset, offset))
                # Before the first step there is none, and what is kept tells of it later.
                if kept is None and squared_norm > 0:
                    np.matmul(offset, self._inputs.T, out=values)
                    kernels.response_block(values, layer.coefficients[block], rows, scratch, response)
            start[first + 1 : last + 1] = start[first] + rows.start[1:]
        pattern = FirePattern(chunk, samples, counts, start, np.concatenate(pieces))
        return _ChunkTrial(pattern, outputs, int(flips), response, squared_norm)

    def _response(self, tried: _Tried) -> Float[np.ndarray, "n k"]:
        """Return J (W − W₀) at the weights of a trial that are kept."""
        layer = self._layer
        samples = self._inputs.shape[0]
        found = np.zeros((samples, layer.silent.size))

        def respond(pattern: FirePattern) -> Float[np.ndarray, " n"]:
            chunk = pattern.chunk
            response = np.zeros(samples)
            scratch = np.empty((2, samples + 1), np.int32)
            for first, last in _blocks(chunk, samples):
                block = slice(chunk.first + first, chunk.first + last)
                assert tried.weight is not None
                assert layer.anchor is not None
                values = (tried.weight[block] - layer.anchor[block]) @ self._inputs.T
                rows = _rows(pattern, first, last)
                kernels.response_block(values, layer.coefficients[block], rows, scratch, response)
            return response

        with serial_blas():
            for pattern, part in zip(tried.patterns, ordered_map(respond, tried.patterns, self._threads), strict=True):
                found[:, pattern.chunk.output] += part
        return found

    def _move(
        self, update: Update, pattern: FirePattern, first: int, last: int, scratch: np.ndarray, out: np.ndarray
    ) -> None:
        """Write the weights of rows `first` to `last` of a chunk after the update."""
        layer = self._layer
        chunk = pattern.chunk
        block = slice(chunk.first + first, chunk.first + last)
        shrink = update.shrink[chunk.output]
        g = np.ascontiguousarray(update.g[:, chunk.output])
        kernels.step_block(
            layer.weight[block], layer.anchor_of(block), shrink, layer.coefficients[block], g, self._inputs,
            _rows(pattern, first, last), scratch, out,
        )  # fmt: skip

    def _adopt(self, trial: Trial) -> None:
        """Make a trial's pattern and sums the current ones."""
        self._patterns = trial.payload.patterns
        self.outputs = trial.outputs
        self.displacement = trial.displacement
        self._flips += trial.flips


def _are_twins(weights: Float[np.ndarray, "rows d"]) -> bool:
    """Return True where neurons 2j and 2j + 1 of a block are equal."""
    return len(weights) % 2 == 0 and np.array_equal(weights[::2], weights[1::2])


def _blocks(chunk: Chunk, samples: int) -> Iterator[tuple[int, int]]:
    """Yield half-open ranges of the neurons of a chunk, counted from its first."""
    size = chunk.last - chunk.first
    rows = block_rows(samples)
    for first in range(0, size, rows):
        yield first, min(first + rows, size)


def _rows(pattern: FirePattern | None, first: int, last: int) -> FireRows:
    """Return rows `first` to `last` of a pattern; none for no pattern."""
    if pattern is None:
        return FireRows(np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.uint32))
    return FireRows(pattern.counts[first:last], pattern.start[first : last + 1], pattern.words)
