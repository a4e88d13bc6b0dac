"""Common part of the weight tree and the data tree: all pre-activations are kept as keys of max-trees."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.kernels.memory import available_memory
from widefit.kernels.threads import ordered_map
from widefit.kernels.trees import steps
from widefit.kernels.trees.steps import FedOutputs, Rows
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Flips, Grams, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.cost import Cost, Workload
from widefit.trackers.fire_pattern import FirePattern, partition
from widefit.trackers.layer import Layer
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.validation import check_sums

Result = TypeVar("Result")

# Operations below which starting threads costs more than it saves.
_WORTH_THREADS = 10_000_000
# Neurons of a task: few enough for the second-level cache and for every core to have some.
NEURONS_A_TASK = 256
# Samples of a task, likewise.
SAMPLES_A_TASK = 16


@dataclass(frozen=True)
class Moved:
    """Neurons whose weights change: their weights, and their pre-activations on all samples, afterwards.

    The keys lie as in the trees: a row a tree.
    """

    neurons: Int[np.ndarray, " c"]
    weights: Float[np.ndarray, "c d"]
    keys: Float[np.ndarray, "_ _"]


def refuse_what_cannot_fit(tracker: str, network: TwoLayer, samples: int, anchored: bool) -> None:
    """Refuse keys that will not fit, before anything is allocated.

    Raises
    ------
    MemoryError
        2 m n numbers of keys, and m (n + d) for a step that moves every neuron, exceed what is free.
    """
    itemsize = network.dtype.itemsize
    features = network.in_features
    neuron = itemsize * (3 * samples + features * (3 if anchored else 1))
    needed = network.width * neuron
    free = available_memory()
    if needed <= free:
        return
    held = f"{2 * network.width * samples * itemsize:,} bytes of keys and {needed:,} bytes with a step in progress"
    fits = free // neuron // 2 * 2
    advice = f"a width of {fits:,} fits" if fits >= 2 else f"no width fits with {samples:,} samples"
    raise MemoryError(f'tracker="{tracker}" needs {held}, and {free:,} are free; {advice}, tracker="dense" keeps none')


class TreeTracking(Tracking):
    """Run with keys z_ri in max-trees; a subclass says along which axis.

    A step costs n d + the trees' work for each neuron that fires on a sample with g ≠ 0, and nothing for the others.
    Keys are recomputed from the weights, never updated by differences, so they do not drift. `outputs` is summed anew
    from the keys by every step that moves all that fires, and after `descend`; other steps add the difference of the
    moved neurons' terms in float64, exact but for the rounding of the sum.
    """

    def __init__(
        self,
        name: str,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        anchor: Float[np.ndarray, "m d"] | None,
        threads: int,
        state: dict[str, np.ndarray] | None,
    ):
        self._name = name
        self._layer = Layer.trained_by(name, network, anchor)
        self._inputs = inputs
        self._threads = threads
        groups = list(self._layer.groups)
        output_of = np.repeat(np.arange(len(groups), dtype=np.int32), [last - first for first, last in groups])
        self._fed = FedOutputs(self._layer.coefficients, output_of, self._layer.threshold)
        self._chunks = partition(groups)
        self._passes = 1
        self._flips = 0
        self._visited = 0
        self._updated = 0
        # Zeros between two calls of `turn_lists`.
        self._tally = np.zeros(network.width, np.int64)
        self._pairs = network.width * inputs.shape[0]
        self._forest = self._build_trees()
        self._refresh()
        if state is not None:
            check_sums(state, *self.outputs.shape, displaced=self.displacement is not None)
            self.outputs = state["outputs"].copy()
            if self.displacement is not None:
                self.displacement = Displacement(state["response"].copy(), state["squared_norm"].copy())

    @abstractmethod
    def _build_trees(self) -> Float[np.ndarray, "trees nodes"]:
        """Build the forest at the weights of the network."""

    @property
    @abstractmethod
    def _keys(self) -> Float[np.ndarray, "m n"]:
        """Z as a view of the forest."""

    @abstractmethod
    def _rows(self, samples: Int[np.ndarray, " b"]) -> Rows:
        """Query the neurons that fire on some samples (ascending, int32)."""

    @abstractmethod
    def _products(self, weights: Float[np.ndarray, "c d"]) -> Float[np.ndarray, "_ _"]:
        """Compute pre-activations of some weights on all samples, a row a tree."""

    @abstractmethod
    def _by_neuron(self, keys: Float[np.ndarray, "_ _"]) -> Float[np.ndarray, "c n"]:
        """Return a view of the result of `_products` with a row a neuron."""

    @abstractmethod
    def _evaluate(
        self, moved: Moved, fresh: Bool[np.ndarray, " k"], outputs: Float[np.ndarray, "n k"]
    ) -> Sequence[Int[np.ndarray, " _"]]:
        """Bring outputs up to date, and return the flips as `steps.compare_by_sample` writes them."""

    @abstractmethod
    def _write(self, moved: Moved) -> int:
        """Write keys into the trees, and return the number of flips."""

    def propose(self, update: Update, gram: Grams) -> Trial:
        moved = self._move(self._rows(_supported(update.g)), update)
        # Where every neuron that fires moves, nothing of the old sum remains: it is made anew, without its rounding.
        fresh = (update.shrink != 0) | np.all(update.g != 0, axis=0)
        outputs = np.where(fresh, self._layer.silent, self.outputs)
        changes = self._listed(self._evaluate(moved, fresh, outputs))
        return Trial(
            update=update,
            outputs=outputs,
            flips=len(changes),
            rebased=moved.neurons.size == self._layer.weight.shape[0],
            displacement=self._displaced(moved, update, fresh),
            payload=moved,
            changes=changes,
        )

    def commit(self, trial: Trial) -> None:
        self._flips += self._adopt(trial.payload)
        self._passes += int(trial.rebased)
        self.outputs = trial.outputs
        self.displacement = trial.displacement
        if trial.flips:
            self._patterns = None

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps; outputs are summed over the neurons that fire on the batch, and no others."""
        if minibatches.shrinks:
            return super().descend(minibatches, gram)
        still = np.zeros(self._layer.silent.size)
        flips = 0
        gram.follow(None)
        for step in range(len(minibatches)):
            batch = minibatches.batch(step)
            rows = self._rows(np.sort(batch).astype(np.int32))
            g = np.zeros_like(self.outputs)
            g[batch] = minibatches.g(step, self._sum(rows)[batch])
            moved = self._move(rows, Update(g, still))
            averaged, average = minibatches.kept(step)
            if average is not None:
                average.follow(moved.neurons, self._layer.weight[moved.neurons], moved.weights, averaged)
            flips += self._adopt(moved)
        self._flips += flips
        self._refresh()
        return flips

    def patterns(self) -> Sequence[FirePattern]:
        if self._patterns is None:
            self._patterns = self._pack(self._rows(self._all_samples()))
        return self._patterns

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        if out is not self._layer.weight:
            out[...] = self._layer.weight

    def finish(self) -> None:
        """End the run; every commit has written the weights."""

    def state(self) -> dict[str, np.ndarray]:
        """Return the sums that steps changed by differences; keys are the same whenever they are computed."""
        state = {"outputs": self.outputs}
        if self.displacement is not None:
            state |= {"response": self.displacement.response, "squared_norm": self.displacement.squared_norm}
        return state

    def report(self) -> TrackerReport:
        patterns = self.patterns()
        return TrackerReport(
            tracker=self._name,
            full_passes=self._passes,
            pairs_evaluated=self._pairs,
            flips=self._flips,
            firing_pairs=int(sum(int(pattern.counts.sum(dtype=np.int64)) for pattern in patterns)),
            bytes_held=self._forest.nbytes + sum(pattern.nbytes for pattern in patterns),
            nodes_visited=self._visited,
            keys_updated=self._updated,
        )

    def _all_samples(self) -> Int[np.ndarray, " n"]:
        return np.arange(self._inputs.shape[0], dtype=np.int32)

    def _in_ranges(
        self, work: Callable[[int, int], Result], count: int, step: int, operations: float
    ) -> Sequence[Result]:
        """Call `work(first, last)` over ranges of `step` up to `count`, in threads where that pays."""
        ranges = [(first, min(first + step, count)) for first in range(0, count, step)]
        threads = self._threads if operations > _WORTH_THREADS else 1
        return list(ordered_map(lambda edges: work(*edges), ranges, threads))

    def _sum(self, rows: Rows) -> Float[np.ndarray, "n k"]:
        """Sum f from the keys, right for the samples of the rows."""
        outputs = np.tile(self._layer.silent, (self._inputs.shape[0], 1))
        steps.sum_rows(self._keys, rows, self._fed, outputs)
        return outputs

    def _pack(self, rows: Rows) -> list[FirePattern]:
        """Return rows as the fire pattern of every chunk."""
        samples = self._inputs.shape[0]
        packed = []
        for chunk in self._chunks:
            row = steps.pack_rows(rows.neurons, rows.start, rows.samples, samples, chunk.first, chunk.last)
            packed.append(FirePattern(chunk, samples, *row))
        return packed

    def _move(self, rows: Rows, update: Update) -> Moved:
        """Compute weights and keys after an update whose g is 0 but on the samples of the rows."""
        rows = self._concerned(rows, update)
        layer = self._layer
        weights = np.empty((rows.neurons.size, self._inputs.shape[1]), layer.weight.dtype)
        anchor = layer.anchor_of(slice(None))

        def work(first: int, last: int) -> None:
            steps.step_rows(
                layer.weight, anchor, update.shrink, self._fed, update.g, self._inputs, rows, first, last, weights
            )

        self._in_ranges(work, rows.neurons.size, 16 * NEURONS_A_TASK, 2.0 * rows.samples.size * weights.shape[1])
        self._pairs += weights.shape[0] * self._inputs.shape[0]
        return Moved(rows.neurons, weights, self._products(weights))

    def _concerned(self, rows: Rows, update: Update) -> Rows:
        """Return the rows of neurons that an update moves: without those where g is 0, with all those that shrink."""
        shrinks = update.shrink != 0
        counts = np.diff(rows.start)
        if shrinks.any() and self._layer.anchor is None:
            raise ValueError("update.shrink: start the run with anchor=W₀ to shrink towards it")
        output_of = self._fed.output_of[rows.neurons]
        pushed = update.g[rows.samples, np.repeat(output_of, counts)] != 0
        if pushed.all() and not shrinks.any():
            return rows
        kept = (np.diff(np.concatenate([[0], np.cumsum(pushed)])[rows.start]) > 0) | shrinks[output_of]
        neurons = rows.neurons[kept]
        samples = rows.samples[np.repeat(kept, counts)]
        counts = counts[kept]
        if shrinks.any():
            every = np.zeros(self._layer.weight.shape[0], np.int64)
            every[neurons] = counts
            neurons = np.flatnonzero(shrinks[self._fed.output_of] | (every > 0))
            counts = every[neurons]
        return Rows(neurons, np.concatenate([[0], np.cumsum(counts)]), samples)

    def _listed(self, flips: Sequence[np.ndarray]) -> Flips:
        """Return flips 2 (r n + i) + fires, in any order, as pairs ordered by neuron and sample."""
        codes = np.sort(np.concatenate(list(flips) or [np.empty(0, np.int64)]))
        neurons, samples = np.divmod(codes >> 1, self._inputs.shape[0])
        return Flips(neurons, samples, (codes & 1).astype(np.bool_))

    def _displaced(self, moved: Moved, update: Update, fresh: np.ndarray) -> Displacement | None:
        """Return J (W − W₀) and ‖W − W₀‖² after some neurons have moved."""
        if self._layer.anchor is None or self.displacement is None:
            return None
        anchor = self._layer.anchor[moved.neurons]
        before = self._layer.weight[moved.neurons] - anchor
        after = moved.weights - anchor
        rest = update.shrink != 0
        none = np.zeros_like(fresh)
        response = np.where(fresh, 0.0, self.displacement.response)
        self._respond(self._keys, moved.neurons, moved.neurons, fresh, before, -1.0, response)
        every = np.arange(moved.neurons.size)
        self._respond(self._by_neuron(moved.keys), every, moved.neurons, none, after, 1.0, response)
        squared_norm = np.where(rest, 0.0, self.displacement.squared_norm)
        steps.squared_norms(before, moved.neurons, self._fed.output_of, -1.0, rest, squared_norm)
        steps.squared_norms(after, moved.neurons, self._fed.output_of, 1.0, none, squared_norm)
        return Displacement(response, np.maximum(squared_norm, 0.0))

    def _respond(
        self,
        keys: np.ndarray,
        rows: np.ndarray,
        neurons: np.ndarray,
        left_out: np.ndarray,
        offsets: np.ndarray,
        sign: float,
        response: np.ndarray,
    ) -> None:
        """Add terms of some neurons to J (W − W₀); see `steps.respond`."""

        def work(first: int, last: int) -> None:
            steps.respond(keys, rows, neurons, left_out, self._fed, offsets, self._inputs, sign, first, last, response)

        self._in_ranges(work, self._inputs.shape[0], SAMPLES_A_TASK, 8.0 * neurons.size * self._inputs.shape[0])

    def _adopt(self, moved: Moved) -> int:
        """Write weights and keys, and return the number of flips."""
        self._layer.weight[moved.neurons] = moved.weights
        self._updated += moved.keys.size
        return self._write(moved)

    def _refresh(self) -> None:
        """Compute pattern, outputs and displacement from the keys alone."""
        rows = self._rows(self._all_samples())
        self._patterns: list[FirePattern] | None = self._pack(rows)
        self.outputs = self._sum(rows)
        self.displacement = None
        layer = self._layer
        if layer.anchor is None:
            return
        width = layer.weight.shape[0]
        displacement = Displacement.none(self._inputs.shape[0], layer.silent.size)
        none = np.zeros(layer.silent.size, np.bool_)
        for first in range(0, width, 16 * NEURONS_A_TASK):
            neurons = np.arange(first, min(first + 16 * NEURONS_A_TASK, width))
            offsets = layer.weight[neurons] - layer.anchor[neurons]
            self._respond(self._keys, neurons, neurons, none, offsets, 1.0, displacement.response)
            steps.squared_norms(offsets, neurons, self._fed.output_of, 1.0, none, displacement.squared_norm)
        self.displacement = displacement


def _supported(g: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " b"]:
    """Return the samples with g ≠ 0, ascending."""
    return np.flatnonzero(np.any(g != 0, axis=1)).astype(np.int32)


class SearchTree(Tracker):
    """Tracker with a search tree for each sample, or for each neuron."""

    tracking: ClassVar[type[TreeTracking]]

    def cost(self, work: Workload) -> Cost:
        # Keys twice over and those of a step, or fire patterns as bits both ways.
        return Cost(work.pattern_bytes + 3 * work.pairs * work.itemsize, math.inf)

    def start(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
        state: dict[str, np.ndarray] | None = None,
        expected: Float[np.ndarray, "n k"] | None = None,
    ) -> TreeTracking:
        """Find the fire pattern of a network; see `Tracker.start`.

        Raises
        ------
        MemoryError
            The keys exceed what is free; said before they are allocated.
        """
        refuse_what_cannot_fit(self.name, network, inputs.shape[0], anchor is not None)
        return self.tracking(self.name, network, inputs, anchor, threads, state)
