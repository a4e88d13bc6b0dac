"""Runs that know which neurons move: those that fire on a sample with g ≠ 0 get new weights and new fire rows."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels import changed_rows as kernels
from widefit.kernels.threads import ordered_map
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Flips, Grams, TrackerReport, Tracking, Trial, Update
from widefit.trackers.counters import Counters
from widefit.trackers.fire_pattern import Chunk, FirePattern, partition
from widefit.trackers.layer import Layer


@dataclass(frozen=True)
class Moved:
    """Neurons of a chunk that an update moves.

    Attributes
    ----------
    chunk
        The chunk.
    rows
        The neurons, ascending, counted from the chunk's first.
    weights
        Their weights after the update, shape (q, d).
    """

    chunk: Chunk
    rows: Int[np.ndarray, " q"]
    weights: Float[np.ndarray, "q d"]


class FollowedRows(Tracking):
    """Step, sums over firing pairs, flips, commit and report of such runs; a subclass answers the queries.

    The outputs are summed over the firing pairs in the order of the neurons: they do not depend on how the pairs were
    found. The network's weights are up to date after every commit.
    """

    def __init__(
        self,
        name: str,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        anchor: Float[np.ndarray, "m d"] | None,
        threads: int,
    ):
        self._name = name
        self._layer = Layer.trained_by(name, network, anchor)
        self._chunks = partition(list(self._layer.groups))
        self._inputs = inputs
        self._threads = threads
        self._counters = Counters()
        self._flips = 0
        self._patterns: list[FirePattern] = []

    @abstractmethod
    def _evaluate(self, moved: list[Moved]) -> list[FirePattern]:
        """Find the fire pattern when some neurons have moved; the state of the run stays as it is."""

    @abstractmethod
    def _adopt_weights(self, moved: list[Moved]) -> None:
        """Move neurons for good."""

    @abstractmethod
    def _structure_bytes(self) -> int:
        """Return the memory of the structure that answers queries."""

    def propose(self, update: Update, gram: Grams) -> Trial:
        moved = list(ordered_map(lambda pattern: self._move(update, pattern), self._patterns, self._threads))
        patterns = self._evaluate(moved)
        outputs, displacement = self._sums(patterns, moved)
        changes = self._changes(patterns)
        return Trial(
            update=update,
            outputs=outputs,
            flips=len(changes),
            rebased=False,
            displacement=displacement,
            payload=(moved, patterns),
            changes=changes,
        )

    def commit(self, trial: Trial) -> None:
        moved, patterns = trial.payload
        for part in moved:
            self._layer.weight[part.chunk.first + part.rows] = part.weights
        self._adopt_weights(moved)
        self._patterns = patterns
        self.outputs = trial.outputs
        self.displacement = trial.displacement
        self._flips += trial.flips

    def patterns(self) -> Sequence[FirePattern]:
        return self._patterns

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        if out is not self._layer.weight:
            out[...] = self._layer.weight

    def finish(self) -> None:
        """End the run; every commit has written the weights."""

    def report(self) -> TrackerReport:
        spent = self._spent()
        return TrackerReport(
            tracker=self._name,
            full_passes=spent.full_passes,
            pairs_evaluated=spent.pairs_evaluated,
            flips=self._flips,
            firing_pairs=_pairs(self._patterns),
            bytes_held=sum(pattern.nbytes for pattern in self._patterns) + self._structure_bytes(),
            nodes_visited=spent.nodes_visited,
            keys_updated=spent.keys_updated,
        )

    def _spent(self) -> Counters:
        """Return the operations so far."""
        return self._counters

    def _adopt_patterns(self, patterns: list[FirePattern]) -> None:
        """Make the patterns at the network's weights the current ones."""
        self._patterns = patterns
        self.outputs, self.displacement = self._sums(patterns, [self._none_moved(chunk) for chunk in self._chunks])

    def _adopt_descent(self, patterns: list[FirePattern], gram: Grams) -> int:
        """Adopt the patterns after stochastic steps, which the network's weights have taken; return the flips."""
        changes = self._changes(patterns)
        gram.follow(changes)
        self._adopt_patterns(patterns)
        self._flips += len(changes)
        return len(changes)

    def _none_moved(self, chunk: Chunk) -> Moved:
        weight = self._layer.weight
        return Moved(chunk, np.empty(0, np.int32), np.empty((0, weight.shape[1]), weight.dtype))

    def _neurons(self, chunk: Chunk) -> kernels.Neurons:
        """Return the neurons of a chunk, for the kernels."""
        layer = self._layer
        return kernels.Neurons(
            layer.weight[chunk.rows],
            layer.anchor_of(chunk.rows),
            layer.coefficients[chunk.rows],
            layer.threshold,
            self._inputs,
        )

    def _move(self, update: Update, pattern: FirePattern) -> Moved:
        """Compute the weights after an update of the neurons of a chunk that it moves."""
        chunk = pattern.chunk
        weight = self._layer.weight
        g = np.ascontiguousarray(update.g[:, chunk.output])
        shrink = update.shrink[chunk.output]
        if shrink != 0:
            rows = np.arange(chunk.last - chunk.first, dtype=np.int32)
        else:
            rows = kernels.rows_on(pattern.rows, g != 0)
        weights = np.empty((rows.size, weight.shape[1]), weight.dtype)
        kernels.step_rows(self._neurons(chunk), shrink, g, pattern.rows, rows, weights)
        return Moved(chunk, rows, weights)

    def _sums(self, patterns: list[FirePattern], moved: list[Moved]) -> tuple[np.ndarray, Displacement | None]:
        """Return f and the displacement with some neurons moved."""
        samples = self._inputs.shape[0]
        outputs = np.tile(self._layer.silent, (samples, 1))
        displacement = Displacement.none(samples, self._layer.silent.size)

        def sum_chunk(item: tuple[FirePattern, Moved]) -> tuple[np.ndarray, np.ndarray, float]:
            pattern, part = item
            f = np.zeros(samples)
            response = np.zeros(samples)
            neurons = self._neurons(pattern.chunk)
            norm = kernels.row_outputs(neurons, part.rows, part.weights, pattern.rows, f, response)
            return f, response, norm

        items = zip(patterns, moved, strict=True)
        for chunk, (f, response, norm) in zip(self._chunks, ordered_map(sum_chunk, items, self._threads), strict=True):
            outputs[:, chunk.output] += f
            displacement.response[:, chunk.output] += response
            displacement.squared_norm[chunk.output] += norm
        self._counters += Counters(pairs_evaluated=_pairs(patterns))
        return outputs, displacement if self._layer.anchor is not None else None

    def _changes(self, patterns: list[FirePattern]) -> Flips:
        """Return the pairs in which patterns differ from the current ones."""

        def compare(item: tuple[FirePattern, FirePattern]) -> Flips:
            before, after = item
            return Flips(*kernels.changed_pairs(before.rows, after.rows, after.samples, after.chunk.first))

        parts = list(ordered_map(compare, zip(self._patterns, patterns, strict=True), self._threads))
        return Flips(
            np.concatenate([part.neurons for part in parts]),
            np.concatenate([part.samples for part in parts]),
            np.concatenate([part.fires for part in parts]),
        )


def _pairs(patterns: Sequence[FirePattern]) -> int:
    return int(sum(int(pattern.counts.sum(dtype=np.int64)) for pattern in patterns))
