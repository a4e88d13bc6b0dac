"""One search tree a neuron, over the samples: what does this neuron fire on?"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels import trees
from widefit.nn import TwoLayer
from widefit.trackers.base import Tracker
from widefit.trackers.search_tree import NEURONS_A_TASK, Moved, Rows, TreeTracking, refuse_what_cannot_fit


@dataclass(frozen=True)
class DataTree(Tracker):
    """For each neuron a max-tree over its n pre-activations (DTree, arXiv 2211.14227).

    Built in O(n m d). The q samples that a neuron fires on are found in O(q log n), in one comparison where there are
    none; a neuron is moved in O(n d), its tree rebuilt in O(n). The neurons that fire on a given sample are found by
    looking at every tree's root and, where it exceeds the threshold, at the sample's key: O(m) a sample, where
    `WeightTree` looks at those that fire. Memory as for `WeightTree`.
    """

    name: str = "data-tree"

    def start(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
        state: dict[str, np.ndarray] | None = None,
    ) -> "DataTreeTracking":
        """See `Tracker.start`.

        Raises
        ------
        MemoryError
            The keys exceed what is free; said before they are allocated.
        """
        refuse_what_cannot_fit(self.name, network, inputs.shape[0], anchor is not None)
        return DataTreeTracking(self.name, network, inputs, anchor, threads, state)


class DataTreeTracking(TreeTracking):
    """See `DataTree`."""

    def fired_samples(self, neuron: int) -> Int[np.ndarray, " k_r"]:
        """Ascending indices of the samples that a neuron fires on: one query."""
        if not 0 <= neuron < self._weight.shape[0]:
            raise IndexError(f"neuron {neuron} is not one of the network's")
        _, samples, visited = trees.query_trees(self._forest, np.array([neuron]), self._threshold)
        self._visited += visited
        return samples

    def fired_neurons(self, sample: int) -> Int[np.ndarray, " fired"]:
        """Ascending indices of the neurons that fire on a sample: every root, and a key where it is large enough."""
        return self._rows(np.array([range(self._inputs.shape[0])[sample]], np.int32)).neurons

    def _plant(self) -> Float[np.ndarray, "trees nodes"]:
        width, samples = self._weight.shape[0], self._inputs.shape[0]
        forest = np.empty((width, 2 * samples), self._weight.dtype)
        forest[:, 0] = -np.inf

        def fill(first: int, last: int) -> None:
            keys = np.empty((last - first, samples), forest.dtype)
            trees.products(self._weight[first:last], self._inputs_t, keys)
            forest[first:last, samples:] = keys
            trees.rebuild_trees(forest, first, last)

        self._in_ranges(fill, width, NEURONS_A_TASK, 2.0 * width * samples * self._inputs.shape[1])
        return forest

    @property
    def _keys(self) -> Float[np.ndarray, "m n"]:
        return self._forest[:, self._inputs.shape[0] :]

    def _rows(self, samples: Int[np.ndarray, " b"]) -> Rows:
        width = self._weight.shape[0]

        def find(first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
            if samples.size < self._inputs.shape[0]:
                return trees.look_up(self._forest, samples, self._threshold, first, last)
            neurons = np.arange(first, last)
            start, fired, visited = trees.query_trees(self._forest, neurons, self._threshold)
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

    def _write(self, moved: Moved) -> int:
        def write(first: int, last: int) -> int:
            return trees.write_by_neuron(self._forest, moved.neurons, moved.keys, self._threshold, first, last)

        return sum(self._in_ranges(write, moved.neurons.size, NEURONS_A_TASK, 10.0 * moved.keys.size))
