"""Half-space trees over the neurons of a network: who fires on any input, and stochastic steps on any batch."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.balls import ball_tree, half_space
from widefit.kernels.threads import ordered_map
from widefit.trackers.counters import Counters
from widefit.trackers.half_space.ball_tree import BallTree
from widefit.trackers.half_space.tree_descent import TreeWithCoefficients, descend
from widefit.trackers.layer import Layer
from widefit.trackers.minibatches import Minibatches

# Samples of a task: enough to hide what a call costs, few enough to spread over the threads.
_QUERIES = 32

# Answers of one tree: (first query, (start, slots)) for each block of queries.
Blocks = list[tuple[int, tuple[np.ndarray, np.ndarray]]]


class NeuronTrees:
    """One tree over the neurons of each output (arXiv 2307.06565; balls and drift: this project).

    The trees hold the weights, in the order of their leaves: the layer's array is read when they are built and written
    by `write_weights`.

    Parameters
    ----------
    layer
        The neurons. The trees own its coefficients: steps that train the second layer change them.
    leaf_size
        Points of a leaf, at most.
    threads
        Cores to use; the result does not depend on it.

    Attributes
    ----------
    counters
        Operations so far.
    """

    def __init__(self, layer: Layer, leaf_size: int, threads: int):
        self._layer = layer
        self._threads = threads

        def build(group: tuple[int, int]) -> BallTree:
            return BallTree(layer.weight[slice(*group)], leaf_size, moving=True)

        self._trees = list(ordered_map(build, layer.groups, threads))
        # True while every tree is as building it from the present weights would leave it.
        self._fresh = True
        self._built: list[TreeWithCoefficients] | None = None
        self._sums_of_nodes: list[tuple[np.ndarray, np.ndarray]] | None = None
        self.counters = Counters(full_passes=1, keys_updated=layer.weight.shape[0])

    def __getstate__(self) -> dict[str, Any]:
        """Without the layer, which `attach` gives back to a copy."""
        return {**vars(self), "_layer": None, "_sums_of_nodes": None}

    def attach(self, layer: Layer) -> None:
        """Go on with the layer of a copied network, whose weights are those of the trees."""
        self._layer = layer

    @property
    def nbytes(self) -> int:
        """Memory of the trees."""
        sums = [array.nbytes for pair in self._sums_of_nodes or [] for array in pair]
        return sum(tree.nbytes for tree in self._trees) + sum(sums)

    def members(self, output: int) -> Int[np.ndarray, "leaves capacity"]:
        """Return the neuron of an output, counted from its first, in every slot of the leaves; −1 for none."""
        return self._trees[output].tree.members

    def query(self, x: Float[np.ndarray, "q d"]) -> list[Int[np.ndarray, " fired"]]:
        """Return the neurons that fire on some inputs, seen before or not.

        Parameters
        ----------
        x
            Shape (q, d); cast to the dtype of the weights.

        Returns
        -------
        Ascending indices of the neurons, one array an input.

        Raises
        ------
        ValueError
            x has another shape, or numbers that are not finite.
        """
        x = self._checked(x)
        answers: list[list[np.ndarray]] = [[] for _ in range(x.shape[0])]
        for tree, (first, _), blocks in zip(self._trees, self._layer.groups, self.reports(x), strict=True):

            def expand(item: tuple[int, tuple], tree=tree, first=first) -> tuple[int, list[np.ndarray]]:
                begin, (start, slots) = item
                return begin, tree.named(start, slots, first)

            for begin, lists in ordered_map(expand, blocks, self._threads):
                for offset, neurons in enumerate(lists):
                    answers[begin + offset].append(neurons)
        return [np.concatenate(parts) for parts in answers]

    def evaluate(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """Return f at some inputs, seen before or not, from the neurons that fire alone.

        A node that fires as a whole adds ⟨Σ a_r w_r, x⟩ − b Σ a_r, in O(d): sums over nodes are made in O(m d) when the
        weights have changed since the last call.

        Parameters
        ----------
        x
            Shape (q, d); cast to the dtype of the weights.

        Returns
        -------
        Shape (q, k), float64.

        Raises
        ------
        ValueError
            x has another shape, or numbers that are not finite.
        """
        x = self._checked(x)
        if self._sums_of_nodes is None:
            self._sums_of_nodes = [
                (tree.coefficients, half_space.node_sums(tree.tree.tree, tree.coefficients))
                for tree in self._build_trees()
            ]
        outputs = np.tile(self._layer.silent, (x.shape[0], 1))
        threshold = self._layer.threshold
        for output, (tree, sums) in enumerate(zip(self._trees, self._sums_of_nodes, strict=True)):

            def add(begin: int, tree=tree, sums=sums) -> tuple[np.ndarray, int, int]:
                block = x[begin : begin + _QUERIES]
                out = np.empty(block.shape[0])
                coefficients, nodes = sums
                visited, scanned = half_space.fired_sums(block, threshold, tree.tree, coefficients, nodes, out)
                return out, visited, scanned

            begins = range(0, x.shape[0], _QUERIES)
            for begin, (out, visited, scanned) in zip(begins, ordered_map(add, begins, self._threads), strict=True):
                outputs[begin : begin + out.size, output] += out
                self.counters += Counters(pairs_evaluated=scanned, nodes_visited=visited)
        return outputs

    def reports(self, x: Float[np.ndarray, "q d"]) -> list[Blocks]:
        """Return the answers of every tree as slots; x in the dtype of the weights."""
        begins = range(0, x.shape[0], _QUERIES)
        tasks = [(tree, begin) for tree in self._trees for begin in begins]

        def ask(task: tuple[BallTree, int]) -> tuple[np.ndarray, np.ndarray, int, int]:
            tree, begin = task
            return tree.report(x[begin : begin + _QUERIES], self._layer.threshold)

        found: list[Blocks] = []
        for (_, begin), (start, slots, visited, scanned) in zip(
            tasks, ordered_map(ask, tasks, self._threads), strict=True
        ):
            if begin == 0:
                found.append([])
            found[-1].append((begin, (start, slots)))
            self.counters += Counters(pairs_evaluated=scanned, nodes_visited=visited)
        return found

    def descend(self, inputs: Float[np.ndarray, "n d"], minibatches: Minibatches) -> Float[np.ndarray, "visits k"]:
        """Take stochastic steps that do not shrink; a step touches the neurons that fire on its batch and no other.

        Parameters
        ----------
        inputs
            The samples that the batches are of, in the dtype of the weights.
        minibatches
            The batches.

        Returns
        -------
        f at every visited sample before the step of its batch, in the order of the visits.
        """
        self._changed()
        before, spent = descend(self._build_trees(), self._layer, inputs, minibatches, self._threads)
        self.counters += spent
        if minibatches.trains_readout:
            # The network may round them.
            self._built = None
        return before

    def refresh(self) -> None:
        """Bring every tree to the state in which building it from the present weights would leave it."""
        if self._fresh:
            return
        for tree in self._trees:
            tree.rebuild()
        self._changed()
        self._built = None
        self._fresh = True
        self.counters += Counters(full_passes=1, keys_updated=self._layer.weight.shape[0])

    def move(
        self, output: int, where: Int[np.ndarray, " q"], weights: Float[np.ndarray, "q d"], *, keep: bool = True
    ) -> None:
        """Move neurons of an output; see `BallTree.move`."""
        self._changed()
        movement = self._trees[output].move(where, weights, keep=keep)
        if movement.rebuilt:
            self._built = None
        self.counters += Counters(full_passes=int(movement.rebuilt), keys_updated=movement.rekeyed)

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        """Write W in the order of the neurons."""
        for tree, group in zip(self._trees, self._layer.groups, strict=True):
            ball_tree.points_of(tree.tree, out[slice(*group)])

    def _changed(self) -> None:
        """Note that the weights have changed."""
        self._fresh = False
        self._sums_of_nodes = None

    def _build_trees(self) -> list[TreeWithCoefficients]:
        """Return the trees with the coefficients of their points, held until the trees are built anew."""
        if self._built is None:
            groups = zip(self._trees, self._layer.groups, strict=True)
            coefficients = self._layer.coefficients
            self._built = [TreeWithCoefficients.of(tree, coefficients[slice(*group)]) for tree, group in groups]
        return self._built

    def _checked(self, x: Float[np.ndarray, "q d"]) -> np.ndarray:
        """Return inputs in the dtype of the weights; refuse those of another shape, or not finite."""
        features = self._layer.weight.shape[1]
        if x.ndim != 2 or x.shape[1] != features:
            raise ValueError(f"x must have shape (q, {features}), got {x.shape}")
        x = np.ascontiguousarray(x, self._layer.weight.dtype)
        if not np.isfinite(x).all():
            row = int(np.argwhere(~np.isfinite(x))[0][0])
            raise ValueError(f"x contains NaN or infinity (or overflows {x.dtype}), first in row {row}")
        return x
