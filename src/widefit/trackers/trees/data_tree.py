"""Data tree: one search tree for each neuron, over the samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.kernels.trees import max_trees as trees
from widefit.kernels.trees import steps
from widefit.kernels.trees.steps import MovedKeys, Rows
from widefit.trackers.trees.search_tree import NEURONS_A_TASK, Moved, SearchTree, TreeTracking

# Samples whose inputs stay in the second-level cache while neurons stream by.
_SAMPLES_A_BLOCK = 512


class DataTreeTracking(TreeTracking):
    """Run with a tree for each neuron; see `DataTree`."""

    def fired_samples(self, neuron: int) -> Int[np.ndarray, " k_r"]:
        """Return the ascending indices of the samples that a neuron fires on: one query."""
        if not 0 <= neuron < self._layer.weight.shape[0]:
            raise IndexError(f"neuron {neuron} is not one of the network's")
        _, samples, visited = trees.query_trees(self._forest, np.array([neuron]), self._layer.threshold)
        self._visited += visited
        return samples

    def fired_neurons(self, sample: int) -> Int[np.ndarray, " fired"]:
        """Return the ascending indices of the neurons that fire on a sample, from roots and, where large, keys."""
        return self._rows(np.array([range(self._inputs.shape[0])[sample]], np.int32)).neurons

    def _build_trees(self) -> Float[np.ndarray, "trees nodes"]:
        width = self._layer.weight.shape[0]
        samples = self._inputs.shape[0]
        starts = range(0, samples, _SAMPLES_A_BLOCK)
        self._columns = [(i, np.ascontiguousarray(self._inputs[i : i + _SAMPLES_A_BLOCK].T)) for i in starts]
        forest = np.empty((width, 2 * samples), self._layer.weight.dtype)
        forest[:, 0] = -np.inf

        for first in range(0, width, 16 * NEURONS_A_TASK):
            block = slice(first, min(first + 16 * NEURONS_A_TASK, width))
            forest[block, samples:] = self._products(self._layer.weight[block])

        def finish(first: int, last: int) -> None:
            trees.rebuild_trees(forest, first, last)

        self._in_ranges(finish, width, 16 * NEURONS_A_TASK, forest.size)
        return forest

    @property
    def _keys(self) -> Float[np.ndarray, "m n"]:
        return self._forest[:, self._inputs.shape[0] :]

    def _rows(self, samples: Int[np.ndarray, " b"]) -> Rows:
        width = self._layer.weight.shape[0]

        def find(first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
            if samples.size < self._inputs.shape[0]:
                return trees.look_up(self._forest, samples, self._layer.threshold, first, last)
            neurons = np.arange(first, last)
            start, fired, visited = trees.query_trees(self._forest, neurons, self._layer.threshold)
            firing = np.diff(start) > 0
            return neurons[firing], np.append(start[:-1][firing], start[-1]), fired, visited

        found = self._in_ranges(find, width, 16 * NEURONS_A_TASK, 4.0 * samples.size * width)
        counts = np.concatenate([np.diff(part[1]) for part in found])
        self._visited += sum(part[3] for part in found)
        return Rows(
            np.concatenate([part[0] for part in found]),
            np.concatenate([[0], np.cumsum(counts)]),
            np.concatenate([part[2] for part in found]),
        )

    def _products(self, weights: Float[np.ndarray, "c d"]) -> Float[np.ndarray, "c n"]:
        keys = np.empty((weights.shape[0], self._inputs.shape[0]), weights.dtype)
        columns = self._columns

        def fill(first: int, last: int) -> None:
            for sample, block in columns:
                steps.products(weights[first:last], block, keys[first:last], sample)

        self._in_ranges(fill, keys.shape[0], NEURONS_A_TASK, 2.0 * keys.size * weights.shape[1])
        return keys

    def _by_neuron(self, keys: Float[np.ndarray, "c n"]) -> Float[np.ndarray, "c n"]:
        return keys

    def _evaluate(
        self, moved: Moved, fresh: Bool[np.ndarray, " k"], outputs: Float[np.ndarray, "n k"]
    ) -> Sequence[Int[np.ndarray, " _"]]:
        keys = MovedKeys(self._keys, moved.neurons, moved.keys, fresh)

        def work(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
            part = np.zeros_like(outputs)
            flips = np.empty((last - first) * moved.keys.shape[1], np.int64)
            count = steps.compare_by_neuron(keys, self._fed, first, last, part, flips)
            return part, flips[:count].copy()

        parts = self._in_ranges(work, moved.neurons.size, 16 * NEURONS_A_TASK, 5.0 * moved.keys.size)
        for part, _ in parts:
            outputs += part
        return [flips for _, flips in parts]

    def _write(self, moved: Moved) -> int:
        def write(first: int, last: int) -> int:
            return trees.write_by_neuron(self._forest, moved.neurons, moved.keys, self._layer.threshold, first, last)

        return sum(self._in_ranges(write, moved.neurons.size, NEURONS_A_TASK, 10.0 * moved.keys.size))


@dataclass(frozen=True)
class DataTree(SearchTree):
    """Max-trees, one for each neuron over its n pre-activations (DTree, arXiv 2211.14227).

    Built in O(n m d). The q samples that a neuron fires on are found in O(q log n), in one comparison where there are
    none; a neuron is moved in O(n d), its tree rebuilt in O(n). The neurons that fire on a given sample are found by
    looking at every tree's root and, where it exceeds the threshold, at the sample's key: O(m) a sample, where
    `WeightTree` looks at those that fire. Memory as for `WeightTree`.
    """

    name: str = "data-tree"
    tracking: ClassVar[type[TreeTracking]] = DataTreeTracking
