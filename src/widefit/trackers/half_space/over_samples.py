"""Half-space reporting over the samples: a neuron that has moved asks for the samples that it fires on."""

import numpy as np
from jaxtyping import Float

from widefit.kernels import changed_rows as fire_rows
from widefit.kernels.balls import row_descent
from widefit.kernels.threads import ordered_map
from widefit.nn import TwoLayer
from widefit.trackers.base import Grams
from widefit.trackers.counters import Counters
from widefit.trackers.fire_pattern import Chunk, FirePattern
from widefit.trackers.half_space.ball_tree import BallTree
from widefit.trackers.half_space.followed_rows import FollowedRows, Moved
from widefit.trackers.minibatches import Minibatches


class DataHalfSpaces(FollowedRows):
    """See `HalfSpaceTree`: one tree over the samples, which never move."""

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
            Moved(chunk, np.arange(chunk.last - chunk.first, dtype=np.int32), self._weight[chunk.rows])
            for chunk in self._chunks
        ]
        self._adopt(self._look(everyone))

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps; a step looks up again the neurons that fire on its batch and no other.

        Meanwhile the fire pattern is held as bits, by neuron and by sample: m n / 4 bytes. The flips are the pairs that
        differ in the end.
        """
        if minibatches.shrinks:
            return super().descend(minibatches, gram)
        width, samples = self._weight.shape[0], self._inputs.shape[0]
        by_neuron = np.zeros((width, (samples + 31) // 32), np.uint32)
        by_sample = np.zeros((samples, (width + 63) // 64), np.uint64)
        feeds, neurons = np.empty(width, np.int32), np.empty(width, np.int32)
        for pattern in self._patterns:
            feeds[pattern.chunk.rows] = pattern.chunk.output
            row_descent.spread(
                pattern.counts, pattern.start, pattern.words, samples, pattern.chunk.first, by_neuron, by_sample
            )
        threshold, coefficients, weight = self._threshold, self._coefficients, self._weight
        for step in range(len(minibatches)):
            batch = minibatches.batch(step)
            f = np.tile(self._silent, (batch.size, 1))
            pairs = row_descent.batch_outputs(
                by_sample, batch, feeds, weight, coefficients, threshold, self._inputs, f
            )  # fmt: skip
            g, size = minibatches.g(step, f), row_descent.neurons_on(by_sample, batch, neurons)
            averaged, average = minibatches.kept(step)
            before_step = weight[neurons[:size]] if average is not None else weight[:0]
            visited, scanned = row_descent.step(
                neurons[:size], batch, g, feeds, coefficients, threshold, self._inputs, self._tree.tree, weight,
                by_neuron, by_sample,
            )  # fmt: skip
            if average is not None:
                average.follow(neurons[:size], before_step, weight[neurons[:size]], averaged)
            self._counters += Counters(pairs_evaluated=pairs + scanned, nodes_visited=visited)
        return self._descended([self._gathered(chunk, by_neuron) for chunk in self._chunks], gram)

    def _gathered(self, chunk: Chunk, by_neuron: np.ndarray) -> FirePattern:
        """Fire rows of a chunk from bits."""
        rows, limit = by_neuron[chunk.rows].shape
        counts, start = np.empty(rows, np.int32), np.empty(rows + 1, np.int64)
        words = np.empty(rows * limit, np.uint32)
        row_descent.gather(by_neuron[chunk.rows], counts, start, words)
        return FirePattern(chunk, self._inputs.shape[0], counts, start, words[: start[-1]].copy())

    def _look(self, moved: list[Moved]) -> list[FirePattern]:
        before = self._patterns or [None] * len(moved)
        patterns = []
        work = zip(before, moved, strict=True)
        for pattern, visited, scanned in ordered_map(self._look_again, work, self._threads):
            patterns.append(pattern)
            self._counters += Counters(pairs_evaluated=scanned, nodes_visited=visited)
        return patterns

    def _look_again(self, work: tuple[FirePattern | None, Moved]) -> tuple[FirePattern, int, int]:
        """Fire rows of a chunk with those of neurons that have moved found anew."""
        before, moved = work
        samples, size = self._inputs.shape[0], moved.rows.size
        if size == 0 and before is not None:
            return before, 0, 0
        counts, start = np.empty(size, np.int32), np.empty(size + 1, np.int64)
        words = np.empty(size * ((samples + 31) // 32), np.uint32)
        visited, scanned = fire_rows.look_again(
            moved.weights, self._threshold, self._tree.tree, samples, counts, start, words
        )
        if before is None:
            return FirePattern(moved.chunk, samples, counts, start, words[: start[-1]].copy()), visited, scanned
        all_counts, all_start = before.counts.copy(), np.empty(before.counts.size + 1, np.int64)
        all_counts[moved.rows] = counts
        fire_rows.row_starts(all_counts, samples, all_start)
        all_words = np.empty(all_start[-1], np.uint32)
        fire_rows.replace_rows(
            before.start, before.words, moved.rows, start, words, all_start, all_words
        )  # fmt: skip
        return FirePattern(moved.chunk, samples, all_counts, all_start, all_words), visited, scanned

    def _settle(self, moved: list[Moved]) -> None:
        """Nothing to do: the samples stay where they are."""

    def _structure_bytes(self) -> int:
        return self._tree.nbytes
