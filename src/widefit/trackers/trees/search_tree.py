"""What the weight tree and the data tree share: all pre-activations are kept as keys of max-trees."""

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
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Flips, Grams, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.cost import Cost, Workload
from widefit.trackers.fire_pattern import FirePattern, partition
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.validation import check_sums

Result = TypeVar("Result")

# Operations below which starting threads costs more than it saves.
_WORTH_THREADS = 10_000_000
# Neurons, or samples, that a task works on: few enough for the second-level cache and for every core to have some.
NEURONS_A_TASK, SAMPLES_A_TASK = 256, 16


@dataclass(frozen=True)
class Rows:
    """Who fires on some samples: neurons[q], ascending, on samples[start[q]:start[q + 1]], ascending."""

    neurons: Int[np.ndarray, " c"]
    start: Int[np.ndarray, " c_plus_one"]
    samples: Int[np.ndarray, " pairs"]


@dataclass(frozen=True)
class Moved:
    """Neurons whose weights change: their weights, and their pre-activations on all samples, afterwards.

    The keys lie as in the trees: a row a tree.
    """

    neurons: Int[np.ndarray, " c"]
    weights: Float[np.ndarray, "c d"]
    keys: Float[np.ndarray, "_ _"]


def refuse_what_cannot_fit(tracker: str, network: TwoLayer, samples: int, anchored: bool) -> None:
    """Say before anything is allocated that the keys will not fit.

    Raises
    ------
    MemoryError
        2 m n numbers of keys, and m (n + d) for a step that moves every neuron, exceed what is free.
    """
    itemsize, features = network.weight.element_size(), network.in_features
    neuron = itemsize * (3 * samples + features * (3 if anchored else 1))
    needed, free = network.width * neuron, available_memory()
    if needed <= free:
        return
    held = f"{2 * network.width * samples * itemsize:,} bytes of keys and {needed:,} bytes with a step in progress"
    fits = free // neuron // 2 * 2
    advice = f"a width of {fits:,} fits" if fits >= 2 else f"no width fits with {samples:,} samples"
    raise MemoryError(f'tracker="{tracker}" needs {held}, and {free:,} are free; {advice}, tracker="dense" keeps none')


class TreeTracking(Tracking):
    """Keys z_ri in max-trees; a subclass says along which axis.

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
        self._name, self._inputs, self._anchor, self._threads = name, inputs, anchor, threads
        self._weight = network.weight.detach().numpy()
        self._coefficients = network.coefficients()
        self._threshold = self._weight.dtype.type(network.threshold)
        self._silent = network.silent_outputs()
        edges = [network.neurons_of(output) for output in range(network.out_features)]
        self._output_of = np.repeat(np.arange(len(edges), dtype=np.int32), [last - first for first, last in edges])
        self._chunks = partition(edges)
        self._passes, self._flips, self._visited, self._updated = 1, 0, 0, 0
        self._tally = np.zeros(self._weight.shape[0], np.int64)
        self._pairs = self._weight.shape[0] * inputs.shape[0]
        self._forest = self._plant()
        self._refresh()
        if state is not None:
            check_sums(state, *self.outputs.shape, displaced=self.displacement is not None)
            self.outputs = state["outputs"].copy()
            if self.displacement is not None:
                self.displacement = Displacement(state["response"].copy(), state["squared_norm"].copy())

    @abstractmethod
    def _plant(self) -> Float[np.ndarray, "trees nodes"]:
        """The forest at the weights of the network."""

    @property
    @abstractmethod
    def _keys(self) -> Float[np.ndarray, "m n"]:
        """Z as a view of the forest."""

    @abstractmethod
    def _rows(self, samples: Int[np.ndarray, " b"]) -> Rows:
        """The neurons that fire on some samples (ascending, int32), found by queries."""

    @abstractmethod
    def _products(self, weights: Float[np.ndarray, "c d"]) -> Float[np.ndarray, "_ _"]:
        """Pre-activations of some weights on all samples, a row a tree."""

    @abstractmethod
    def _by_neuron(self, keys: Float[np.ndarray, "_ _"]) -> Float[np.ndarray, "c n"]:
        """A view of what `_products` returns with a row a neuron."""

    @abstractmethod
    def _compare(
        self, moved: Moved, anew: Bool[np.ndarray, " k"], outputs: Float[np.ndarray, "n k"]
    ) -> Sequence[Int[np.ndarray, " _"]]:
        """Bring outputs up to date; returns the flips as `steps.compare_by_sample` writes them."""

    @abstractmethod
    def _write(self, moved: Moved) -> int:
        """Write keys into the trees; returns the number of flips."""

    def propose(self, update: Update, gram: Grams) -> Trial:
        moved = self._move(self._rows(_supported(update.g)), update)
        # Where every neuron that fires moves, nothing of the old sum remains: it is made anew, without its rounding.
        anew = (update.shrink != 0) | np.all(update.g != 0, axis=0)
        outputs = np.where(anew, self._silent, self.outputs)
        changes = self._listed(self._compare(moved, anew, outputs))
        return Trial(
            update=update,
            outputs=outputs,
            flips=len(changes),
            rebased=moved.neurons.size == self._weight.shape[0],
            displacement=self._displaced(moved, update, anew),
            payload=moved,
            changes=changes,
        )

    def commit(self, trial: Trial) -> None:
        self._flips += self._carry_out(trial.payload)
        self._passes += int(trial.rebased)
        self.outputs, self.displacement = trial.outputs, trial.displacement
        if trial.flips:
            self._patterns = None

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Stochastic steps whose outputs are summed over the neurons that fire on the batch, and no others."""
        if minibatches.shrinks:
            return super().descend(minibatches, gram)
        still, flips = np.zeros(self._silent.size), 0
        gram.follow(None)
        for step in range(len(minibatches)):
            batch = minibatches.batch(step)
            rows = self._rows(np.sort(batch).astype(np.int32))
            g = np.zeros_like(self.outputs)
            g[batch] = minibatches.g(step, self._sum(rows)[batch])
            moved, (averaged, average) = self._move(rows, Update(g, still)), minibatches.kept(step)
            if average is not None:
                average.follow(moved.neurons, self._weight[moved.neurons], moved.weights, averaged)
            flips += self._carry_out(moved)
        self._flips += flips
        self._refresh()
        return flips

    def patterns(self) -> Sequence[FirePattern]:
        if self._patterns is None:
            self._patterns = self._pack(self._rows(self._all_samples()))
        return self._patterns

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        if out is not self._weight:
            out[...] = self._weight

    def finish(self) -> None:
        """Nothing is left to do: every commit writes the weights."""

    def state(self) -> dict[str, np.ndarray]:
        """The sums that steps changed by differences; keys are the same whenever they are computed."""
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
        """`work(first, last)` over ranges of `step` up to `count`, in threads where that pays."""
        ranges = [(first, min(first + step, count)) for first in range(0, count, step)]
        threads = self._threads if operations > _WORTH_THREADS else 1
        return list(ordered_map(lambda edges: work(*edges), ranges, threads))

    def _sum(self, rows: Rows) -> Float[np.ndarray, "n k"]:
        """f from the keys, right for the samples of the rows."""
        outputs = np.tile(self._silent, (self._inputs.shape[0], 1))
        steps.sum_rows(
            self._keys, rows.neurons, rows.start, rows.samples, self._threshold, self._coefficients, self._output_of,
            outputs,
        )  # fmt: skip
        return outputs

    def _pack(self, rows: Rows) -> list[FirePattern]:
        samples = self._inputs.shape[0]
        packed = []
        for chunk in self._chunks:
            row = steps.pack_rows(rows.neurons, rows.start, rows.samples, samples, chunk.first, chunk.last)
            packed.append(FirePattern(chunk, samples, *row))
        return packed

    def _move(self, rows: Rows, update: Update) -> Moved:
        """Weights and keys after an update whose g is 0 but on the samples of the rows."""
        rows = self._concerned(rows, update)
        weights = np.empty((rows.neurons.size, self._inputs.shape[1]), self._weight.dtype)
        anchor = self._anchor if self._anchor is not None else np.empty((0, weights.shape[1]), weights.dtype)
        shrink = update.shrink.astype(weights.dtype)

        def work(first: int, last: int) -> None:
            steps.step_rows(
                self._weight, anchor, shrink, self._coefficients, self._output_of, update.g, self._inputs,
                rows.neurons[first:last], rows.start[first : last + 1], rows.samples, weights[first:last],
            )  # fmt: skip

        self._in_ranges(work, rows.neurons.size, 16 * NEURONS_A_TASK, 2.0 * rows.samples.size * weights.shape[1])
        self._pairs += weights.shape[0] * self._inputs.shape[0]
        return Moved(rows.neurons, weights, self._products(weights))

    def _concerned(self, rows: Rows, update: Update) -> Rows:
        """The rows of neurons that an update moves: without those where g is 0, with all those that shrink."""
        shrinks, counts = update.shrink != 0, np.diff(rows.start)
        if shrinks.any() and self._anchor is None:
            raise ValueError("update.shrink: start the run with anchor=W₀ to shrink towards it")
        output_of = self._output_of[rows.neurons]
        pushed = update.g[rows.samples, np.repeat(output_of, counts)] != 0
        if pushed.all() and not shrinks.any():
            return rows
        kept = (np.diff(np.concatenate([[0], np.cumsum(pushed)])[rows.start]) > 0) | shrinks[output_of]
        neurons, samples, counts = rows.neurons[kept], rows.samples[np.repeat(kept, counts)], counts[kept]
        if shrinks.any():
            every = np.zeros(self._weight.shape[0], np.int64)
            every[neurons] = counts
            neurons = np.flatnonzero(shrinks[self._output_of] | (every > 0))
            counts = every[neurons]
        return Rows(neurons, np.concatenate([[0], np.cumsum(counts)]), samples)

    def _listed(self, flips: Sequence[np.ndarray]) -> Flips:
        """Flips 2 (r n + i) + fires in any order, as pairs ordered by neuron and sample."""
        codes = np.sort(np.concatenate(list(flips) or [np.empty(0, np.int64)]))
        neurons, samples = np.divmod(codes >> 1, self._inputs.shape[0])
        return Flips(neurons, samples, (codes & 1).astype(np.bool_))

    def _displaced(self, moved: Moved, update: Update, anew: np.ndarray) -> Displacement | None:
        """J (W − W₀) and ‖W − W₀‖² after some neurons have moved."""
        if self._anchor is None or self.displacement is None:
            return None
        anchor, rest = self._anchor[moved.neurons], update.shrink != 0
        before, after = self._weight[moved.neurons] - anchor, moved.weights - anchor
        response = np.where(anew, 0.0, self.displacement.response)
        squared_norm = np.where(rest, 0.0, self.displacement.squared_norm)
        none = np.zeros_like(anew)
        self._respond(self._keys, moved.neurons, moved.neurons, anew, before, -1.0, response)
        self._respond(
            self._by_neuron(moved.keys), np.arange(moved.neurons.size), moved.neurons, none, after, 1.0, response
        )
        steps.squared_norms(before, moved.neurons, self._output_of, -1.0, rest, squared_norm)
        steps.squared_norms(after, moved.neurons, self._output_of, 1.0, none, squared_norm)
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
        def work(first: int, last: int) -> None:
            steps.respond(
                keys, rows, neurons, self._threshold, self._coefficients, self._output_of, left_out, offsets,
                self._inputs, sign, first, last, response,
            )  # fmt: skip

        self._in_ranges(work, self._inputs.shape[0], SAMPLES_A_TASK, 8.0 * neurons.size * self._inputs.shape[0])

    def _carry_out(self, moved: Moved) -> int:
        """Write weights and keys; returns the number of flips."""
        self._weight[moved.neurons] = moved.weights
        self._updated += moved.keys.size
        return self._write(moved)

    def _refresh(self) -> None:
        """Pattern, outputs and displacement from the keys alone."""
        rows = self._rows(self._all_samples())
        self._patterns: list[FirePattern] | None = self._pack(rows)
        self.outputs = self._sum(rows)
        self.displacement = None
        if self._anchor is None:
            return
        width, outputs = self._weight.shape[0], self._silent.size
        displacement = Displacement(np.zeros_like(self.outputs), np.zeros(outputs))
        none = np.zeros(outputs, np.bool_)
        for first in range(0, width, 16 * NEURONS_A_TASK):
            neurons = np.arange(first, min(first + 16 * NEURONS_A_TASK, width))
            offsets = self._weight[neurons] - self._anchor[neurons]
            self._respond(self._keys, neurons, neurons, none, offsets, 1.0, displacement.response)
            steps.squared_norms(offsets, neurons, self._output_of, 1.0, none, displacement.squared_norm)
        self.displacement = displacement


def _supported(g: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " b"]:
    """Samples with g ≠ 0, ascending."""
    return np.flatnonzero(np.any(g != 0, axis=1)).astype(np.int32)


class SearchTree(Tracker):
    """A tracker with a search tree for each sample, or for each neuron."""

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
        """See `Tracker.start`.

        Raises
        ------
        MemoryError
            The keys exceed what is free; said before they are allocated.
        """
        refuse_what_cannot_fit(self.name, network, inputs.shape[0], anchor is not None)
        return self.tracking(self.name, network, inputs, anchor, threads, state)
