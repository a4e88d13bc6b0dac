"""Minibatch steps on weights in ball trees: a step touches the neurons that fire on its batch (this project).

As with stored weights (`widefit.trackers.descent`), a visit to a part of a tree ends the step before and begins the
next: the neurons that fired move, their balls follow, and the new batch finds who fires. g follows from the sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from widefit.kernels.balls import ball_tree, half_space_steps
from widefit.kernels.balls.half_space_steps import Fired
from widefit.kernels.threads import team
from widefit.trackers.averaging import IterateAverage
from widefit.trackers.counters import Counters
from widefit.trackers.half_space.ball_tree import REKEY_SHARE, BallTree
from widefit.trackers.layer import Layer
from widefit.trackers.minibatches import Minibatches

# A tree is cut into 2^4 parts, fewer if it has fewer leaves: enough for every core to have some.
_LEVEL = 4
# Neurons below which handing a step out to threads takes longer than they save.
WORTH_THREADS = 1 << 16


@dataclass
class TreeWithCoefficients:
    """Tree over the neurons of an output, with the numbers that belong to its points.

    Attributes
    ----------
    tree
        Tree over the weights.
    coefficients
        a_r / √m by slot, 0 in empty slots.
    moves, readout_moves
        Sums of an `IterateAverage`, (leaves, d, cap) and by slot; without entries where nothing is averaged.
    outputs
        Terms of every part in the outputs of the batch.
    """

    tree: BallTree
    coefficients: Float[np.ndarray, " slots"]
    moves: Float[np.ndarray, "leaves d cap"] = field(default_factory=lambda: np.empty((0, 1, 1)))
    readout_moves: Float[np.ndarray, " slots"] = field(default_factory=lambda: np.empty(0))
    outputs: Float[np.ndarray, "parts b"] = field(default_factory=lambda: np.empty((0, 0)))

    @classmethod
    def of(cls, tree: BallTree, coefficients: Float[np.ndarray, " N"]) -> "TreeWithCoefficients":
        """Take coefficients in the order of the neurons."""
        return cls(tree, _by_slot(tree, coefficients))

    @property
    def level(self) -> int:
        """Level of the roots of the parts."""
        return min(_LEVEL, self.tree.tree.sizes.size.bit_length() - 1)

    def rebuild(self) -> None:
        """Build the tree anew over the points where they are, and put all numbers into their new places."""
        coefficients = self.by_neuron()
        moves, readout_moves = self.kept()
        self.tree.rebuild()
        self.coefficients = _by_slot(self.tree, coefficients)
        self.keep(moves, readout_moves)

    def by_neuron(self) -> Float[np.ndarray, " N"]:
        """Return the coefficients in the order of the neurons."""
        return self.coefficients[self.tree.slots]

    def keep(self, moves: Float[np.ndarray, "_ d"], readout_moves: Float[np.ndarray, " _"]) -> None:
        """Take the sums of an average, in the order of the neurons; without entries where nothing is averaged."""
        leaves, d, cap = self.tree.tree.blocks.shape
        self.moves = np.empty((0, d, cap))
        if moves.shape[0]:
            rows = np.zeros((leaves * cap, d))
            rows[self.tree.slots] = moves
            self.moves = np.ascontiguousarray(rows.reshape(leaves, cap, d).transpose(0, 2, 1))
        self.readout_moves = _by_slot(self.tree, readout_moves) if readout_moves.size else readout_moves

    def kept(self) -> tuple[Float[np.ndarray, "_ d"], Float[np.ndarray, " _"]]:
        """Return the sums of an average in the order of the neurons: the inverse of `keep`."""
        slots = self.tree.slots
        _, d, cap = self.moves.shape
        moves = self.moves[slots // cap, :, slots % cap] if self.moves.size else np.empty((0, d))
        return moves, self.readout_moves[slots] if self.readout_moves.size else self.readout_moves


@dataclass
class _Part:
    """Parts of a tree for one thread, and the pairs that fired on the last batch."""

    output: int
    first: int
    last: int
    room: Fired
    fired: Fired | None = None
    pulled: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0)))
    grown: np.ndarray = field(default_factory=lambda: np.zeros(1))
    spent: Counters = field(default_factory=Counters)


@dataclass(frozen=True)
class _Step:
    """W ← W − Jᵀ g on a batch, and the readout likewise if it is trained."""

    inputs: np.ndarray
    g: np.ndarray
    trains_readout: bool
    averaged: float


def descend(
    trees: Sequence[TreeWithCoefficients],
    layer: Layer,
    inputs: Float[np.ndarray, "n d"],
    minibatches: Minibatches,
    threads: int,
) -> tuple[Float[np.ndarray, "visits k"], Counters]:
    """Take the steps; the trees, and the coefficients of the layer, are up to date when it returns.

    Parameters
    ----------
    trees
        One over the neurons of each output.
    layer
        The rest of the network; its weights are not read.
    inputs
        X, in the dtype of the weights.
    minibatches
        The batches; they do not shrink.
    threads
        Cores to use; the result does not depend on it.

    Returns
    -------
    f at every visited sample before the step of its batch, in the order of the visits; and the operations.
    """
    return _Descent(trees, layer, threads).take(inputs, minibatches)


class _Descent:
    """Steps of one call of `descend`."""

    def __init__(self, trees: Sequence[TreeWithCoefficients], layer: Layer, threads: int):
        self._trees = trees
        self._layer = layer
        neurons = sum(tree.tree.slots.size for tree in trees)
        self._shares = _shares(trees, threads if neurons >= WORTH_THREADS else 1)
        self._parts = [part for share in self._shares for part in share]
        self._rebuilt = Counters()

    def take(self, inputs: np.ndarray, minibatches: Minibatches) -> tuple[np.ndarray, Counters]:
        """Take the steps; see `descend`."""
        before = np.tile(self._layer.silent, (minibatches.samples.size, 1))
        self._keep(minibatches.average)
        with team(len(self._shares)) as for_each:

            def evaluate(points: np.ndarray, last: _Step | None = None) -> np.ndarray:
                for tree in self._trees:
                    tree.outputs = np.empty((1 << tree.level, points.shape[0]))
                for_each(partial(self._advance, last, points), self._shares)
                if last is not None and self._rebuild():
                    for_each(partial(self._advance, None, points), self._shares)
                f = np.tile(self._layer.silent, (points.shape[0], 1))
                for output, tree in enumerate(self._trees):
                    f[:, output] += tree.outputs.sum(axis=0)
                return f

            def pull_back(slope: np.ndarray) -> np.ndarray:
                for_each(partial(self._pull_back, slope), self._shares)
                return np.concatenate([part.pulled for part in self._parts]).sum(axis=0)

            last: _Step | None = None
            for step in range(len(minibatches)):
                x = inputs[minibatches.batch(step)]
                f = evaluate(x, last)
                before[minibatches.edges[step] : minibatches.edges[step + 1]] = f
                x, f = minibatches.attacked(step, x, f, evaluate, pull_back)
                last = _Step(x, minibatches.g(step, f), minibatches.trains_readout, minibatches.kept(step)[0])
            for_each(partial(self._advance, last, None), self._shares)
        self._rebuild()
        self._write_back(minibatches)
        return before, sum((part.spent for part in self._parts), self._rebuilt)

    def _keep(self, average: IterateAverage | None) -> None:
        """Hand the sums of an average to the trees."""
        for tree, group in zip(self._trees, self._layer.groups, strict=True):
            own = slice(*group)
            if average is None:
                tree.keep(np.empty((0, self._layer.weight.shape[1])), np.empty(0))
            else:
                tree.keep(average.weight[own], average.readout[own])

    def _write_back(self, minibatches: Minibatches) -> None:
        """Bring the tops of the trees, the coefficients and the average up to date."""
        average = minibatches.average
        for tree, group in zip(self._trees, self._layer.groups, strict=True):
            own = slice(*group)
            ball_tree.crown(tree.tree.tree, (1 << tree.level) - 1)
            if minibatches.trains_readout:
                self._layer.coefficients[own] = tree.by_neuron()
            if average is not None:
                average.weight[own], average.readout[own] = tree.kept()

    def _advance(self, last: _Step | None, points: np.ndarray | None, share: list[_Part]) -> None:
        """Finish the last step and begin the next, in some parts of the trees."""
        for part in share:
            if last is not None:
                self._apply(last, part)
            if points is not None:
                self._fire(points, part)

    def _apply(self, step: _Step, part: _Part) -> None:
        """Move the neurons of some parts that fired."""
        tree = self._trees[part.output]
        g = np.ascontiguousarray(step.g[:, part.output])
        fired = part.fired
        moves = None
        if step.trains_readout:
            moves = half_space_steps.readout_moves(
                step.inputs, self._layer.threshold, g / self._layer.weight.shape[0], fired, tree.tree.tree
            )
        part.grown = np.zeros(1 << tree.level)
        rekeyed = half_space_steps.step(
            step.inputs, g, tree.coefficients, fired, tree.tree.tree, tree.tree.keys, REKEY_SHARE, tree.level,
            step.averaged, tree.moves, part.grown,
        )  # fmt: skip
        if moves is not None:
            half_space_steps.move_readout(*moves, tree.coefficients, step.averaged, tree.readout_moves)
        part.spent += Counters(keys_updated=rekeyed)

    def _fire(self, points: np.ndarray, part: _Part) -> None:
        """Find who fires on a batch."""
        tree = self._trees[part.output]
        part.room, records, visited, scanned = half_space_steps.fire(
            points, self._layer.threshold, tree.tree.tree, tree.coefficients, tree.level, part.first, part.last,
            tree.outputs[part.first : part.last], part.room,
        )  # fmt: skip
        part.fired = Fired(*(array[:records] for array in part.room))
        part.spent += Counters(pairs_evaluated=int(scanned), nodes_visited=int(visited))

    def _pull_back(self, slope: np.ndarray, share: list[_Part]) -> None:
        """Compute the terms of some parts in ∂ Σ s_ic f_c(x_i) / ∂x at the batch last evaluated."""
        for part in share:
            tree = self._trees[part.output]
            own = np.ascontiguousarray(slope[:, part.output])
            part.pulled = np.empty((part.last - part.first, slope.shape[0], self._layer.weight.shape[1]))
            half_space_steps.pull_back(
                own, tree.coefficients, part.fired, tree.tree.tree, tree.level, part.first, part.pulled
            )

    def _rebuild(self) -> bool:
        """Build the trees anew whose balls have been stretched too much; return True where there are any."""
        rebuilt = False
        for output, tree in enumerate(self._trees):
            grown = np.sum([part.grown for part in self._parts if part.output == output], axis=0)
            if tree.tree.stretched(grown):
                tree.rebuild()
                self._rebuilt += Counters(full_passes=1, keys_updated=tree.tree.slots.size)
                rebuilt = True
        for part in self._parts:
            part.grown = np.zeros_like(part.grown)
        return rebuilt


def _by_slot(tree: BallTree, values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " slots"]:
    """Put numbers in the order of the neurons into the order of the slots, 0 in empty slots."""
    by_slot = np.zeros(tree.tree.members.size)
    by_slot[tree.slots] = values
    return by_slot


def _shares(trees: Sequence[TreeWithCoefficients], threads: int) -> list[list[_Part]]:
    """Deal out the parts of all trees in order."""
    edges = np.cumsum([0, *(1 << tree.level for tree in trees)])
    total = int(edges[-1])
    shares = []
    for low, high in pairwise(share * total // threads for share in range(threads + 1)):
        own = [
            _Part(output, max(low, first) - first, min(high, last) - first, _room(trees[output].tree))
            for output, (first, last) in enumerate(pairwise(edges.tolist()))
            if max(low, first) < min(high, last)
        ]
        if own:
            shares.append(own)
    return shares


def _room(tree: BallTree) -> Fired:
    """Allocate room for the first records; it grows."""
    capacity = tree.tree.members.shape[1]
    return Fired(np.zeros(64, np.int32), np.zeros(64, np.int32), np.zeros((64, capacity), np.bool_))
