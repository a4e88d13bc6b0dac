"""Weight tree: one search tree for each sample, over the neurons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.kernels.trees import max_trees as trees
from widefit.kernels.trees import steps
from widefit.kernels.trees.steps import MovedKeys, Rows
from widefit.trackers.trees.search_tree import NEURONS_A_TASK, SAMPLES_A_TASK, Moved, SearchTree, TreeTracking

# Keys of −∞ at the end of a tree: trees a power of two apart would fight for the same lines of the cache.
_SPARE = 8


class WeightTreeTracking(TreeTracking):
    """Run with a tree for each sample; see `WeightTree`."""

    def fired_neurons(self, sample: int) -> Int[np.ndarray, " fired"]:
        """Return the ascending indices of the neurons that fire on a sample: one query."""
        samples = np.array([range(self._inputs.shape[0])[sample]], np.int32)
        _, neurons, visited = trees.query_trees(self._forest, samples, self._layer.threshold)
        self._visited += visited
        return neurons

    def fired_samples(self, neuron: int) -> Int[np.ndarray, " k_r"]:
        """Return the ascending indices of the samples that a neuron fires on: one key of each tree."""
        if not 0 <= neuron < self._layer.weight.shape[0]:
            raise IndexError(f"neuron {neuron} is not one of the network's")
        self._visited += self._inputs.shape[0]
        return np.flatnonzero(self._keys[neuron] > self._layer.threshold).astype(np.int32)

    def _build_trees(self) -> Float[np.ndarray, "trees nodes"]:
        width = self._layer.weight.shape[0]
        samples = self._inputs.shape[0]
        forest = np.empty((samples, 2 * (width + _SPARE)), self._layer.weight.dtype)
        forest[:, 0] = -np.inf
        forest[:, -_SPARE:] = -np.inf

        keys = forest[:, width + _SPARE : -_SPARE]

        for first in range(0, width, 16 * NEURONS_A_TASK):
            block = slice(first, min(first + 16 * NEURONS_A_TASK, width))
            keys[:, block] = self._products(self._layer.weight[block])

        def finish(first: int, last: int) -> None:
            trees.rebuild_trees(forest, first, last)

        self._in_ranges(finish, samples, SAMPLES_A_TASK, forest.size)
        return forest

    @property
    def _keys(self) -> Float[np.ndarray, "m n"]:
        return self._forest[:, self._layer.weight.shape[0] + _SPARE : -_SPARE].T

    def _rows(self, samples: Int[np.ndarray, " b"]) -> Rows:
        def find(first: int, last: int) -> tuple[np.ndarray, np.ndarray, int]:
            return trees.query_trees(self._forest, samples[first:last], self._layer.threshold)

        work = 0.1 * samples.size * self._layer.weight.shape[0]
        found = self._in_ranges(find, samples.size, SAMPLES_A_TASK, work)
        self._visited += sum(part[2] for part in found)
        counts = np.concatenate([np.diff(part[0]) for part in found] or [np.empty(0, np.int64)])
        neurons = np.concatenate([part[1] for part in found] or [np.empty(0, np.int32)])
        return steps.turn_lists(np.append(0, np.cumsum(counts)), neurons, samples, self._tally)

    def _products(self, weights: Float[np.ndarray, "c d"]) -> Float[np.ndarray, "n c"]:
        keys = np.empty((self._inputs.shape[0], weights.shape[0]), weights.dtype)

        def fill(first: int, last: int) -> None:
            steps.products(self._inputs, np.ascontiguousarray(weights[first:last].T), keys, first)

        self._in_ranges(fill, weights.shape[0], NEURONS_A_TASK, 2.0 * keys.size * weights.shape[1])
        return keys

    def _by_neuron(self, keys: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "c n"]:
        return keys.T

    def _evaluate(
        self, moved: Moved, fresh: Bool[np.ndarray, " k"], outputs: Float[np.ndarray, "n k"]
    ) -> Sequence[Int[np.ndarray, " _"]]:
        keys = MovedKeys(self._keys.T, moved.neurons, moved.keys, fresh)

        def work(first: int, last: int) -> np.ndarray:
            flips = np.empty((last - first) * moved.neurons.size, np.int64)
            count = steps.compare_by_sample(keys, self._fed, first, last, outputs, flips)
            return flips[:count].copy()

        return self._in_ranges(work, self._inputs.shape[0], SAMPLES_A_TASK, 5.0 * moved.keys.size)

    def _write(self, moved: Moved) -> int:
        def write(first: int, last: int) -> int:
            return trees.write_by_sample(self._forest, moved.neurons, moved.keys, self._layer.threshold, first, last)

        return sum(self._in_ranges(write, self._inputs.shape[0], SAMPLES_A_TASK, 10.0 * moved.keys.size))


@dataclass(frozen=True)
class WeightTree(SearchTree):
    """Max-trees, one for each sample over the m pre-activations (arXiv 2208.04508; WTree, arXiv 2211.14227).

    Built in O(n m d). The q neurons that fire on a sample are found in O(q log m), a neuron is moved in
    O(n (d + log m)). So a step on a few samples, `Tracking.descend` above all, costs what the neurons that fire on them
    cost; a step on all samples moves nearly every neuron and is cheaper with `Dense`. Memory: 2 m n numbers, and m n
    more while a step that moves every neuron is tried.
    """

    name: str = "weight-tree"
    tracking: ClassVar[type[TreeTracking]] = WeightTreeTracking
