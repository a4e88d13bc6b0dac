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

from widefit.kernels import ball_tree, half_space_steps
from widefit.kernels.half_space_steps import Fired
from widefit.kernels.threads import team
from widefit.trackers.ball_tree import REKEY_SHARE, BallTree
from widefit.trackers.counters import Counters
from widefit.trackers.layer import Layer
from widefit.trackers.minibatches import Minibatches

# A tree is cut into 2^4 parts, fewer if it has fewer leaves: enough for every core to have some.
_LEVEL = 4


@dataclass
class _Plant:
    """A tree with what stands beside its points, slot by slot."""

    tree: BallTree
    coefficients: Float[np.ndarray, " slots"]
    # What every part adds to the outputs of the batch.
    outputs: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def level(self) -> int:
        return min(_LEVEL, self.tree.tree.sizes.size.bit_length() - 1)

    def rebuild(self) -> None:
        """A fresh tree over the points where they are, and all that stands beside them in its new place."""
        coefficients = self.coefficients[self.tree.slots]
        self.tree.rebuild()
        self.coefficients = _by_slot(self.tree, coefficients)


@dataclass
class _Part:
    """Some parts of a tree, for one thread: who fired on the last batch."""

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


def descend(
    trees: Sequence[BallTree],
    layer: Layer,
    inputs: Float[np.ndarray, "n d"],
    minibatches: Minibatches,
    threads: int,
) -> tuple[Float[np.ndarray, "visits k"], Counters]:
    """Take the steps; the trees, and the coefficients of the layer, are up to date when it returns.

    Parameters
    ----------
    trees
        Over the neurons of each output.
    layer
        The rest of the network; its weights are not looked at.
    inputs
        X, in the dtype of the weights.
    minibatches
        The batches; they do not shrink.
    threads
        Cores to use; the result does not depend on it.

    Returns
    -------
    f at every visited sample before the step of its batch, in the order of the visits; and what it took.
    """
    return _Descent(trees, layer, threads).take(inputs, minibatches)


class _Descent:
    """The steps of one call of `descend`."""

    def __init__(self, trees: Sequence[BallTree], layer: Layer, threads: int):
        beside = zip(trees, coefficients_by_slot(trees, layer), strict=True)
        self._plants = [_Plant(tree, coefficients) for tree, coefficients in beside]
        self._layer = layer
        self._shares = _shares(self._plants, threads)
        self._parts = [part for share in self._shares for part in share]
        self._rebuilt = Counters()

    def take(self, inputs: np.ndarray, minibatches: Minibatches) -> tuple[np.ndarray, Counters]:
        before = np.tile(self._layer.silent, (minibatches.samples.size, 1))
        with team(len(self._shares)) as for_each:

            def evaluate(points: np.ndarray, last: _Step | None = None) -> np.ndarray:
                for plant in self._plants:
                    plant.outputs = np.empty((1 << plant.level, points.shape[0]))
                for_each(partial(self._advance, last, points), self._shares)
                if last is not None and self._rebuild():
                    for_each(partial(self._advance, None, points), self._shares)
                f = np.tile(self._layer.silent, (points.shape[0], 1))
                for output, plant in enumerate(self._plants):
                    f[:, output] += plant.outputs.sum(axis=0)
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
                last = _Step(x, minibatches.g(step, f), minibatches.trains_readout)
            for_each(partial(self._advance, last, None), self._shares)
        self._rebuild()
        for plant in self._plants:
            ball_tree.crown(plant.tree.tree, (1 << plant.level) - 1)
        if minibatches.trains_readout:
            for plant, group in zip(self._plants, self._layer.groups, strict=True):
                self._layer.coefficients[slice(*group)] = plant.coefficients[plant.tree.slots]
        return before, sum((part.spent for part in self._parts), self._rebuilt)

    def _advance(self, last: _Step | None, points: np.ndarray | None, share: list[_Part]) -> None:
        """Finish the last step and begin the next, in some parts of the trees."""
        for part in share:
            if last is not None:
                self._apply(last, part)
            if points is not None:
                self._fire(points, part)

    def _apply(self, step: _Step, part: _Part) -> None:
        """Move the neurons of some parts that fired."""
        plant, g, fired = self._plants[part.output], np.ascontiguousarray(step.g[:, part.output]), part.fired
        moves = None
        if step.trains_readout:
            moves = half_space_steps.readout_moves(
                step.inputs, self._layer.threshold, g / self._layer.weight.shape[0], fired, plant.tree.tree
            )
        part.grown = np.zeros(1 << plant.level)
        rekeyed = half_space_steps.step(
            step.inputs, g, plant.coefficients, fired, plant.tree.tree, plant.tree.keys, REKEY_SHARE, plant.level,
            0.0, _NOTHING, part.grown,
        )  # fmt: skip
        if moves is not None:
            half_space_steps.move_readout(*moves, plant.coefficients, 0.0, _NOTHING[:, 0, 0])
        part.spent += Counters(keys_updated=rekeyed)

    def _fire(self, points: np.ndarray, part: _Part) -> None:
        """Who fires on a batch."""
        plant = self._plants[part.output]
        part.room, records, visited, scanned = half_space_steps.fire(
            points, self._layer.threshold, plant.tree.tree, plant.coefficients, plant.level, part.first, part.last,
            plant.outputs[part.first : part.last], part.room,
        )  # fmt: skip
        part.fired = Fired(*(array[:records] for array in part.room))
        part.spent += Counters(pairs_evaluated=scanned, nodes_visited=visited)

    def _pull_back(self, slope: np.ndarray, share: list[_Part]) -> None:
        """What some parts add to ∂ Σ s_ic f_c(x_i) / ∂x at the batch last evaluated."""
        for part in share:
            plant, own = self._plants[part.output], np.ascontiguousarray(slope[:, part.output])
            part.pulled = np.empty((part.last - part.first, slope.shape[0], self._layer.weight.shape[1]))
            half_space_steps.pull_back(
                own, plant.coefficients, part.fired, plant.tree.tree, plant.level, part.first, part.pulled
            )

    def _rebuild(self) -> bool:
        """Build the trees anew whose balls have been stretched too much."""
        rebuilt = False
        for output, plant in enumerate(self._plants):
            grown = np.sum([part.grown for part in self._parts if part.output == output], axis=0)
            if plant.tree.stretched(grown):
                plant.rebuild()
                self._rebuilt += Counters(full_passes=1, keys_updated=plant.tree.slots.size)
                rebuilt = True
        for part in self._parts:
            part.grown = np.zeros_like(part.grown)
        return rebuilt


def coefficients_by_slot(trees: Sequence[BallTree], layer: Layer) -> list[Float[np.ndarray, " slots"]]:
    """a_r / √m where neuron r of an output stands in its tree, 0 in empty slots."""
    groups = zip(trees, layer.groups, strict=True)
    return [_by_slot(tree, layer.coefficients[slice(*group)]) for tree, group in groups]


_NOTHING = np.empty((0, 1, 1))


def _by_slot(tree: BallTree, values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " slots"]:
    by_slot = np.zeros(tree.tree.members.size)
    by_slot[tree.slots] = values
    return by_slot


def _shares(plants: Sequence[_Plant], threads: int) -> list[list[_Part]]:
    """The parts of all trees, dealt out in order."""
    edges = np.cumsum([0, *(1 << plant.level for plant in plants)])
    total = int(edges[-1])
    shares = []
    for low, high in pairwise(share * total // threads for share in range(threads + 1)):
        own = [
            _Part(output, max(low, first) - first, min(high, last) - first, _room(plants[output].tree))
            for output, (first, last) in enumerate(pairwise(edges.tolist()))
            if max(low, first) < min(high, last)
        ]
        if own:
            shares.append(own)
    return shares


def _room(tree: BallTree) -> Fired:
    """Room for the first records; it grows."""
    capacity = tree.tree.members.shape[1]
    return Fired(np.zeros(64, np.int32), np.zeros(64, np.int32), np.zeros((64, capacity), np.bool_))
