"""Half-space reporting over the weights: a sample, seen or not, queries the neurons that fire on it."""

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels import changed_rows as kernels
from widefit.kernels.fire_rows import FireRows
from widefit.nn import TwoLayer
from widefit.trackers.base import Grams
from widefit.trackers.counters import Counters
from widefit.trackers.fire_pattern import FirePattern
from widefit.trackers.half_space.followed_rows import FollowedRows, Moved
from widefit.trackers.half_space.neuron_trees import Blocks, NeuronTrees
from widefit.trackers.layer import write_readout
from widefit.trackers.minibatches import Minibatches


class WeightHalfSpaces(FollowedRows):
    """Run with one tree over the neurons of each output; see `HalfSpaceTree`."""

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
        self._trees = NeuronTrees(self._layer, leaf_size, threads)
        self._adopt_patterns(self._evaluate([]))

    def query(self, x: Float[np.ndarray, "q d"]) -> list[Int[np.ndarray, " fired"]]:
        """Return the neurons that fire on some inputs, seen before or not; see `NeuronTrees.query`."""
        return self._trees.query(x)

    def evaluate(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """Return f at some inputs, seen before or not, at the committed weights; see `NeuronTrees.evaluate`."""
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
        self._trees.write_weights(self._layer.weight)
        if minibatches.trains_readout:
            write_readout(self._layer.coefficients, self._network)
        return self._adopt_descent(self._evaluate([]), gram)

    def _evaluate(self, moved: list[Moved]) -> list[FirePattern]:
        self._move_points(moved, keep=True)
        try:
            reports = self._trees.reports(self._inputs)
            return [row for output, blocks in enumerate(reports) for row in self._transposed(output, blocks)]
        finally:
            weight = self._layer.weight
            back = [Moved(part.chunk, part.rows, weight[part.chunk.first + part.rows]) for part in moved]
            self._move_points(back, keep=False)

    def _adopt_weights(self, moved: list[Moved]) -> None:
        self._move_points(moved, keep=True)

    def _spent(self) -> Counters:
        return self._counters + self._trees.counters

    def _structure_bytes(self) -> int:
        return self._trees.nbytes

    def _move_points(self, moved: list[Moved], *, keep: bool) -> None:
        """Move neurons in the trees; see `BallTree.move`."""
        for output, (first, _) in enumerate(self._layer.groups):
            own = [part for part in moved if part.chunk.output == output and part.rows.size > 0]
            if own:
                where = np.concatenate([part.rows + np.int32(part.chunk.first - first) for part in own])
                self._trees.move(output, where, np.concatenate([part.weights for part in own]), keep=keep)

    def _transposed(self, output: int, blocks: Blocks) -> list[FirePattern]:
        """Return the fire rows of the neurons of an output from the answers of all samples."""
        first, last = self._layer.groups[output]
        members = self._trees.members(output)
        samples = self._inputs.shape[0]
        counts = np.zeros(last - first, np.int32)
        for _, (_, slots) in blocks:
            kernels.count_members(slots, members, counts)
        start = np.empty(last - first + 1, np.int64)
        kernels.row_starts(counts, samples, start)
        rows = FireRows(counts, start, np.zeros(start[-1], np.uint32))
        filled = np.zeros(last - first, np.int32)
        for begin, (edges, slots) in blocks:
            kernels.fill_members(slots, edges, begin, members, samples, filled, rows)
        patterns = []
        for chunk in self._chunks:
            if chunk.output == output:
                low = chunk.first - first
                high = chunk.last - first
                own = rows.words[start[low] : start[high]]
                patterns.append(FirePattern(chunk, samples, counts[low:high], start[low : high + 1] - start[low], own))
        return patterns
