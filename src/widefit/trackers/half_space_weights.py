"""Half-space reporting over the weights: a sample, seen or not, asks for the neurons that fire on it."""

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels import ball_tree, fire_rows, half_space
from widefit.kernels.threads import ordered_map
from widefit.nn import TwoLayer
from widefit.trackers.ball_tree import BallTree, Movement
from widefit.trackers.base import Grams
from widefit.trackers.fire_pattern import FirePattern
from widefit.trackers.followed_rows import Counters, FollowedRows, Moved
from widefit.trackers.minibatches import Minibatches

# Samples of a task: enough to hide what a call costs, few enough to spread over the threads.
_QUERIES = 32


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

        def build(group: tuple[int, int]) -> BallTree:
            return BallTree(self._weight[slice(*group)], leaf_size, moving=True)

        self._trees = list(ordered_map(build, self._groups, threads))
        # True while every tree is what building it from the present weights would give.
        self._fresh = True
        self._sums_of_nodes: list[tuple[np.ndarray, np.ndarray]] | None = None
        self._counters += Counters(full_passes=1, keys_updated=network.width)
        self._adopt(self._look([]))

    def query(self, x: Float[np.ndarray, "q d"]) -> list[Int[np.ndarray, " fired"]]:
        """Which neurons fire on some inputs, seen before or not.

        Parameters
        ----------
        x
            Shape (q, d); cast to the dtype of the weights.

        Returns
        -------
        Ascending indices of the neurons at the committed weights, one array an input.

        Raises
        ------
        ValueError
            x has another shape, or numbers that are not finite.
        """
        x = self._checked(x)
        answers: list[list[np.ndarray]] = [[] for _ in range(x.shape[0])]
        for tree, (first, _), blocks in zip(self._trees, self._groups, self._reports(x), strict=True):

            def expand(item: tuple[int, tuple], tree=tree, first=first) -> tuple[int, list[np.ndarray]]:
                begin, (start, slots) = item
                return begin, tree.named(start, slots, first)

            for begin, lists in ordered_map(expand, blocks, self._threads):
                for offset, neurons in enumerate(lists):
                    answers[begin + offset].append(neurons)
        return [np.concatenate(parts) for parts in answers]

    def evaluate(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """f at some inputs, seen before or not, from the neurons that fire alone.

        A node that fires as a whole adds ⟨Σ a_r w_r, x⟩ − b Σ a_r, in O(d): sums over nodes are made in O(m d) when the
        weights have changed since the last call.

        Parameters
        ----------
        x
            Shape (q, d); cast to the dtype of the weights.

        Returns
        -------
        Shape (q, k), float64, at the committed weights.

        Raises
        ------
        ValueError
            x has another shape, or numbers that are not finite.
        """
        x = self._checked(x)
        if self._sums_of_nodes is None:
            by_slot = [self._coefficients_by_slot(output) for output in range(len(self._trees))]
            self._sums_of_nodes = [
                (coefficients, half_space.node_sums(tree.tree, coefficients))
                for tree, coefficients in zip(self._trees, by_slot, strict=True)
            ]
        outputs = np.tile(self._silent, (x.shape[0], 1))
        for output, (tree, sums) in enumerate(zip(self._trees, self._sums_of_nodes, strict=True)):

            def add(begin: int, tree=tree, sums=sums) -> tuple[np.ndarray, int, int]:
                block = x[begin : begin + _QUERIES]
                out = np.empty(block.shape[0])
                coefficients, nodes = sums
                visited, scanned = half_space.fired_sums(block, self._threshold, tree.tree, coefficients, nodes, out)
                return out, visited, scanned

            begins = range(0, x.shape[0], _QUERIES)
            for begin, (out, visited, scanned) in zip(begins, ordered_map(add, begins, self._threads), strict=True):
                outputs[begin : begin + out.size, output] += out
                self._counters += Counters(pairs_evaluated=scanned, nodes_visited=visited)
        return outputs

    def fired_neurons(self, sample: int) -> Int[np.ndarray, " fired"]:
        return self.query(self._inputs[sample : sample + 1])[0].astype(np.int64)

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps; a step touches the neurons that fire on its batch and no other.

        The flips are the pairs that differ in the end.
        """
        if minibatches.shrinks:
            if minibatches.adversary is not None:
                raise ValueError(f'alpha must be 0 for an adversary and tracker="{self._name}"; or use tracker="dense"')
            return super().descend(minibatches, gram)
        if not self._fresh:
            # The steps sum in the order of the tree: begin with the one that a resumed run would have.
            for tree in self._trees:
                tree.rebuild()
            self._counters += Counters(full_passes=1, keys_updated=self._weight.shape[0])
        self._changed()
        by_slot = [self._coefficients_by_slot(output) for output in range(len(self._trees))]
        for step in range(len(minibatches)):
            x = self._inputs[minibatches.batch(step)]
            answers: list[tuple[np.ndarray, np.ndarray]] = []

            def evaluate(points: np.ndarray, answers=answers) -> np.ndarray:
                f = np.tile(self._silent, (points.shape[0], 1))
                answers[:] = [self._answer(output, points, own, f) for output, own in enumerate(by_slot)]
                return f

            def pull_back(slope: np.ndarray, answers=answers) -> np.ndarray:
                out = np.zeros((slope.shape[0], self._weight.shape[1]))
                for tree, (start, slots), own, column in zip(self._trees, answers, by_slot, slope.T, strict=True):
                    half_space.pull_back(np.ascontiguousarray(column), own, start, slots, tree.tree, out)
                return out

            x, f = minibatches.attacked(step, x, evaluate(x), evaluate, pull_back)
            g = np.ascontiguousarray(minibatches.g(step, f).T)
            for output, (tree, answer) in enumerate(zip(self._trees, answers, strict=True)):
                leaves = half_space.step_slots(x, g[output], by_slot[output], *answer, tree.tree)
                if self._count(tree.settle(leaves)).rebuilt:
                    by_slot[output] = self._coefficients_by_slot(output)
        for tree, group in zip(self._trees, self._groups, strict=True):
            ball_tree.points_of(tree.tree, self._weight[slice(*group)])
        return self._descended(self._look([]), gram)

    def _answer(
        self, output: int, x: np.ndarray, coefficients: np.ndarray, f: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Who fires on some inputs, as `BallTree.report` gives it; what they add to an output is added to f."""
        tree = self._trees[output]
        start, slots, visited, scanned = tree.report(x, self._threshold)
        half_space.add_fired(x, self._threshold, tree.tree, coefficients, start, slots, f[:, output])
        self._counters += Counters(pairs_evaluated=scanned + slots.size, nodes_visited=visited)
        return start, slots

    def _look(self, moved: list[Moved]) -> list[FirePattern]:
        self._move(moved, keep=True)
        try:
            reports = self._reports(self._inputs)
            return [row for output, blocks in enumerate(reports) for row in self._turn_around(output, blocks)]
        finally:
            back = [Moved(part.chunk, part.rows, self._weight[part.chunk.first + part.rows]) for part in moved]
            self._move(back, keep=False)

    def _settle(self, moved: list[Moved]) -> None:
        self._move(moved, keep=True)
        self._changed()

    def _changed(self) -> None:
        self._fresh, self._sums_of_nodes = False, None

    def _structure_bytes(self) -> int:
        sums = [array.nbytes for pair in self._sums_of_nodes or [] for array in pair]
        return sum(tree.nbytes for tree in self._trees) + sum(sums)

    def _move(self, moved: list[Moved], *, keep: bool) -> None:
        for output, (tree, (first, _)) in enumerate(zip(self._trees, self._groups, strict=True)):
            own = [part for part in moved if part.chunk.output == output and part.rows.size > 0]
            if own:
                self._fresh = False
                where = np.concatenate([part.rows + np.int32(part.chunk.first - first) for part in own])
                self._count(tree.move(where, np.concatenate([part.weights for part in own]), keep=keep))

    def _count(self, movement: Movement) -> Movement:
        self._counters += Counters(full_passes=int(movement.rebuilt), keys_updated=movement.rekeyed)
        return movement

    def _reports(self, x: np.ndarray) -> list[list[tuple[int, tuple[np.ndarray, np.ndarray]]]]:
        """Answers of every tree: (first query, (start, slots)) for each block of queries."""
        begins = range(0, x.shape[0], _QUERIES)
        tasks = [(tree, begin) for tree in self._trees for begin in begins]

        def ask(task: tuple[BallTree, int]) -> tuple[np.ndarray, np.ndarray, int, int]:
            tree, begin = task
            return tree.report(x[begin : begin + _QUERIES], self._threshold)

        found: list[list[tuple[int, tuple[np.ndarray, np.ndarray]]]] = []
        for (_, begin), (start, slots, visited, scanned) in zip(
            tasks, ordered_map(ask, tasks, self._threads), strict=True
        ):
            if begin == 0:
                found.append([])
            found[-1].append((begin, (start, slots)))
            self._counters += Counters(pairs_evaluated=scanned, nodes_visited=visited)
        return found

    def _turn_around(self, output: int, blocks: list[tuple[int, tuple[np.ndarray, np.ndarray]]]) -> list[FirePattern]:
        """Fire rows of the neurons of an output from the answers of all samples."""
        (first, last), members = self._groups[output], self._trees[output].tree.members
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

    def _coefficients_by_slot(self, output: int) -> Float[np.ndarray, " slots"]:
        """a_r / √m where neuron r stands, 0 in empty slots."""
        tree = self._trees[output]
        by_slot = np.zeros(tree.tree.members.size)
        by_slot[tree.slots] = self._coefficients[slice(*self._groups[output])]
        return by_slot

    def _checked(self, x: Float[np.ndarray, "q d"]) -> np.ndarray:
        features = self._weight.shape[1]
        if x.ndim != 2 or x.shape[1] != features:
            raise ValueError(f"x must have shape (q, {features}), got {x.shape}")
        x = np.ascontiguousarray(x, self._weight.dtype)
        if not np.isfinite(x).all():
            row = int(np.argwhere(~np.isfinite(x))[0][0])
            raise ValueError(f"x contains NaN or infinity (or overflows {x.dtype}), first in row {row}")
        return x
