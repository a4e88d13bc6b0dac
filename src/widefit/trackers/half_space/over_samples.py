"""Half-space reporting over the samples: a neuron that has moved queries the samples that it fires on."""

import numpy as np
from jaxtyping import Float

from widefit.kernels import changed_rows as kernels
from widefit.kernels.balls import row_descent
from widefit.kernels.fire_rows import FireRows
from widefit.kernels.threads import ordered_map
from widefit.nn import TwoLayer
from widefit.trackers.base import Grams
from widefit.trackers.counters import Counters
from widefit.trackers.fire_pattern import Chunk, FirePattern
from widefit.trackers.half_space.ball_tree import BallTree
from widefit.trackers.half_space.followed_rows import FollowedRows, Moved
from widefit.trackers.minibatches import Minibatches


class DataHalfSpaces(FollowedRows):
    """Run with one tree over the samples, which never move; see `HalfSpaceTree`."""

    def __init__(
        self,
        name: str,
        leaf_size: int,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        anchor: Float[np.ndarray, "m d"] | None,
        threads: int,
    ):
        super().__init__(name, network, inputs, anchor, threads)
        self._tree = BallTree(inputs, leaf_size)
        self._counters += Counters(full_passes=1, keys_updated=inputs.shape[0])
        everyone = [
            Moved(chunk, np.arange(chunk.last - chunk.first, dtype=np.int32), self._layer.weight[chunk.rows])
            for chunk in self._chunks
        ]
        self._adopt_patterns(self._evaluate(everyone))

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps; a step queries for the neurons that fire on its batch and no other.

        Meanwhile the fire pattern is held as bits, by neuron and by sample: m n / 4 bytes. The flips are the pairs that
        differ in the end.
        """
        if minibatches.shrinks:
            return super().descend(minibatches, gram)
        layer = self._layer
        width = layer.weight.shape[0]
        samples = self._inputs.shape[0]
        bits = row_descent.PatternBits(
            by_neuron=np.zeros((width, (samples + 31) // 32), np.uint32),
            by_sample=np.zeros((samples, (width + 63) // 64), np.uint64),
        )
        output_of = np.empty(width, np.int32)
        for pattern in self._patterns:
            output_of[pattern.chunk.rows] = pattern.chunk.output
            row_descent.spread(pattern.rows, samples, pattern.chunk.first, bits)
        neurons = row_descent.FedNeurons(layer.weight, layer.coefficients, output_of, layer.threshold, self._inputs)
        firing = np.empty(width, np.int32)
        for step in range(len(minibatches)):
            batch = minibatches.batch(step)
            f = np.tile(layer.silent, (batch.size, 1))
            pairs = row_descent.batch_outputs(bits.by_sample, batch, neurons, f)
            moving = firing[: row_descent.neurons_on(bits.by_sample, batch, firing)]
            averaged, average = minibatches.kept(step)
            before_step = layer.weight[moving] if average is not None else layer.weight[:0]
            g = minibatches.g(step, f)
            visited, scanned = row_descent.step(moving, batch, g, neurons, self._tree.tree, bits)
            if average is not None:
                average.follow(moving, before_step, layer.weight[moving], averaged)
            self._counters += Counters(pairs_evaluated=pairs + scanned, nodes_visited=visited)
        return self._adopt_descent([self._gathered(chunk, bits.by_neuron) for chunk in self._chunks], gram)

    def _gathered(self, chunk: Chunk, by_neuron: np.ndarray) -> FirePattern:
        """Return the fire rows of a chunk from bits."""
        rows = self._space(chunk.last - chunk.first)
        row_descent.gather(by_neuron[chunk.rows], rows)
        return self._pattern(chunk, rows)

    def _space(self, rows: int) -> FireRows:
        """Allocate fire rows."""
        limit = (self._inputs.shape[0] + 31) // 32
        return FireRows(np.empty(rows, np.int32), np.empty(rows + 1, np.int64), np.empty(rows * limit, np.uint32))

    def _pattern(self, chunk: Chunk, rows: FireRows) -> FirePattern:
        """Return fire rows of a chunk without the space behind them."""
        words = rows.words[: rows.start[-1]].copy()
        return FirePattern(chunk, self._inputs.shape[0], rows.counts, rows.start, words)

    def _evaluate(self, moved: list[Moved]) -> list[FirePattern]:
        before = self._patterns or [None] * len(moved)
        patterns = []
        work = zip(before, moved, strict=True)
        for pattern, visited, scanned in ordered_map(self._evaluate_chunk, work, self._threads):
            patterns.append(pattern)
            self._counters += Counters(pairs_evaluated=scanned, nodes_visited=visited)
        return patterns

    def _evaluate_chunk(self, work: tuple[FirePattern | None, Moved]) -> tuple[FirePattern, int, int]:
        """Return the fire rows of a chunk, those of neurons that have moved found anew, and the cost of that."""
        before, moved = work
        samples = self._inputs.shape[0]
        if moved.rows.size == 0 and before is not None:
            return before, 0, 0
        rows = self._space(moved.rows.size)
        visited, scanned = kernels.query_rows(moved.weights, self._layer.threshold, self._tree.tree, samples, rows)
        if before is None:
            return self._pattern(moved.chunk, rows), visited, scanned
        counts = before.counts.copy()
        counts[moved.rows] = rows.counts
        start = np.empty(counts.size + 1, np.int64)
        kernels.row_starts(counts, samples, start)
        words = np.empty(start[-1], np.uint32)
        kernels.replace_rows(before.rows, moved.rows, rows, start, words)
        return FirePattern(moved.chunk, samples, counts, start, words), visited, scanned

    def _adopt_weights(self, moved: list[Moved]) -> None:
        """Leave the tree as it is: the samples do not move."""

    def _structure_bytes(self) -> int:
        return self._tree.nbytes
