"""Half-space reporting over the weights: a sample, seen or not, asks for the neurons that fire on it."""

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels import changed_rows as fire_rows
from widefit.nn import TwoLayer
from widefit.trackers.base import Grams
from widefit.trackers.counters import Counters
from widefit.trackers.fire_pattern import FirePattern
from widefit.trackers.half_space.followed_rows import FollowedRows, Moved
from widefit.trackers.half_space.neuron_trees import Blocks, NeuronTrees
from widefit.trackers.layer import Layer, write_readout
from widefit.trackers.minibatches import Minibatches


class WeightHalfSpaces(FollowedRows):
    """See `HalfSpaceTree`: one tree over the neurons of each output."""

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
        self._network = network
        layer = Layer(self._weight, anchor, self._coefficients, self._threshold, self._silent, self._groups)
        self._trees = NeuronTrees(layer, leaf_size, threads)
        self._adopt(self._look([]))

    def query(self, x: Float[np.ndarray, "q d"]) -> list[Int[np.ndarray, " fired"]]:
        """Which neurons fire on some inputs, seen before or not; see `NeuronTrees.query`."""
        return self._trees.query(x)

    def evaluate(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """f at some inputs, seen before or not, at the committed weights; see `NeuronTrees.evaluate`."""
        return self._trees.evaluate(x)

    def fired_neurons(self, sample: int) -> Int[np.ndarray, " fired"]:
        return self.query(self._inputs[sample : sample + 1])[0].astype(np.int64)

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps; a step touches the neurons that fire on its batch and no other.

        The flips are the pairs that differ in the end.
        """
        if minibatches.shrinks:
            if minibatches.adversary is not None:
                raise ValueError(f'alpha must be 0 for an adversary and tracker="{self._name}"; or use tracker="dense"')
            if minibatches.trains_readout:
                raise ValueError(
                    'steps that shrink move every neuron; to train the second layer as well take tracker="dense"'
                )
            return super().descend(minibatches, gram)
        # The steps sum in the order of the trees: begin with those that a resumed run would have.
        self._trees.refresh()
        self._trees.descend(self._inputs, minibatches)
        self._trees.write_weights(self._weight)
        if minibatches.trains_readout:
            write_readout(self._coefficients, self._network)
        return self._descended(self._look([]), gram)

    def _look(self, moved: list[Moved]) -> list[FirePattern]:
        self._move(moved, keep=True)
        try:
            reports = self._trees.reports(self._inputs)
            return [row for output, blocks in enumerate(reports) for row in self._turn_around(output, blocks)]
        finally:
            back = [Moved(part.chunk, part.rows, self._weight[part.chunk.first + part.rows]) for part in moved]
            self._move(back, keep=False)

    def _settle(self, moved: list[Moved]) -> None:
        self._move(moved, keep=True)

    def _spent(self) -> Counters:
        return self._counters + self._trees.counters

    def _structure_bytes(self) -> int:
        return self._trees.nbytes

    def _move(self, moved: list[Moved], *, keep: bool) -> None:
        for output, (first, _) in enumerate(self._groups):
            own = [part for part in moved if part.chunk.output == output and part.rows.size > 0]
            if own:
                where = np.concatenate([part.rows + np.int32(part.chunk.first - first) for part in own])
                self._trees.move(output, where, np.concatenate([part.weights for part in own]), keep=keep)

    def _turn_around(self, output: int, blocks: Blocks) -> list[FirePattern]:
        """Fire rows of the neurons of an output from the answers of all samples."""
        (first, last), members = self._groups[output], self._trees.members(output)
        samples = self._inputs.shape[0]
        counts, start = np.zeros(last - first, np.int32), np.empty(last - first + 1, np.int64)
        for _, (_, slots) in blocks:
            fire_rows.count_members(slots, members, counts)
        fire_rows.row_starts(counts, samples, start)
        filled, words = np.zeros(last - first, np.int32), np.zeros(start[-1], np.uint32)
        for begin, (edges, slots) in blocks:
            fire_rows.fill_members(slots, edges, begin, members, counts, samples, start, filled, words)
        patterns = []
        for chunk in self._chunks:
            if chunk.output == output:
                low, high = chunk.first - first, chunk.last - first
                own = words[start[low] : start[high]]
                patterns.append(FirePattern(chunk, samples, counts[low:high], start[low : high + 1] - start[low], own))
        return patterns
