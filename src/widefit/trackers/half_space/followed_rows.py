"""Runs that know who moves: only neurons that fire on a sample with g ≠ 0 get new weights and new fire rows."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels import changed_rows as fire_rows
from widefit.kernels.threads import ordered_map
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Flips, Grams, TrackerReport, Tracking, Trial, Update
from widefit.trackers.counters import Counters
from widefit.trackers.fire_pattern import Chunk, FirePattern, partition


@dataclass(frozen=True)
class Moved:
    """Neurons of a chunk that an update moves.

    Attributes
    ----------
    chunk
        Theirs.
    rows
        Ascending, counted from the chunk's first.
    weights
        Where to, shape (q, d).
    """

    chunk: Chunk
    rows: Int[np.ndarray, " q"]
    weights: Float[np.ndarray, "q d"]


class FollowedRows(Tracking):
    """What is common to them: the step, the sums over firing pairs, the flips, commit and report.

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
        self._weight = network.weight.detach().numpy()
        self._coefficients = network.coefficients()
        self._threshold = self._weight.dtype.type(network.threshold)
        self._silent = network.silent_outputs()
        self._groups = [network.neurons_of(output) for output in range(network.out_features)]
        self._chunks = partition(self._groups)
        self._inputs, self._anchor, self._threads = inputs, anchor, threads
        self._counters, self._flips = Counters(), 0
        self._patterns: list[FirePattern] = []

    @abstractmethod
    def _look(self, moved: list[Moved]) -> list[FirePattern]:
        """The fire pattern when some neurons have moved; the state of the run stays as it is."""

    @abstractmethod
    def _settle(self, moved: list[Moved]) -> None:
        """Neurons have moved for good."""

    @abstractmethod
    def _structure_bytes(self) -> int:
        """Memory of what answers queries."""

    def propose(self, update: Update, gram: Grams) -> Trial:
        moved = list(ordered_map(lambda pattern: self._step(update, pattern), self._patterns, self._threads))
        patterns = self._look(moved)
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
            self._weight[part.chunk.first + part.rows] = part.weights
        self._settle(moved)
        self._patterns, self.outputs, self.displacement = patterns, trial.outputs, trial.displacement
        self._flips += trial.flips

    def patterns(self) -> Sequence[FirePattern]:
        return self._patterns

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        if out is not self._weight:
            out[...] = self._weight

    def finish(self) -> None:
        """Nothing is left to do: every commit writes the weights."""

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
        """Operations so far."""
        return self._counters

    def _adopt(self, patterns: list[FirePattern]) -> None:
        """Make the patterns at the network's weights the current ones."""
        self._patterns = patterns
        self.outputs, self.displacement = self._sums(patterns, [self._none_moved(chunk) for chunk in self._chunks])

    def _descended(self, patterns: list[FirePattern], gram: Grams) -> int:
        """The network's weights have taken stochastic steps to these patterns; returns the pairs that differ."""
        changes = self._changes(patterns)
        gram.follow(changes)
        self._adopt(patterns)
        self._flips += len(changes)
        return len(changes)

    def _none_moved(self, chunk: Chunk) -> Moved:
        return Moved(chunk, np.empty(0, np.int32), np.empty((0, self._weight.shape[1]), self._weight.dtype))

    def _step(self, update: Update, pattern: FirePattern) -> Moved:
        """Where an update takes the neurons of a chunk that it moves."""
        chunk = pattern.chunk
        g, shrink = np.ascontiguousarray(update.g[:, chunk.output]), update.shrink[chunk.output]
        if shrink != 0:
            rows = np.arange(chunk.last - chunk.first, dtype=np.int32)
        else:
            rows = fire_rows.rows_on(pattern.counts, pattern.start, pattern.words, g != 0)
        weights = np.empty((rows.size, self._weight.shape[1]), self._weight.dtype)
        fire_rows.step_rows(
            self._weight[chunk.rows], self._anchor_of(chunk), self._weight.dtype.type(shrink),
            self._coefficients[chunk.rows], g, self._inputs, pattern.counts, pattern.start, pattern.words, rows,
            weights,
        )  # fmt: skip
        return Moved(chunk, rows, weights)

    def _anchor_of(self, chunk: Chunk) -> np.ndarray:
        return self._anchor[chunk.rows] if self._anchor is not None else self._weight[:0]

    def _sums(self, patterns: list[FirePattern], moved: list[Moved]) -> tuple[np.ndarray, Displacement | None]:
        """f, and the displacement, with neurons moved."""
        samples, outputs = self._inputs.shape[0], self._silent.size
        result = np.tile(self._silent, (samples, 1))
        displacement = Displacement(np.zeros((samples, outputs)), np.zeros(outputs))

        def add(item: tuple[FirePattern, Moved]) -> tuple[np.ndarray, np.ndarray, float]:
            pattern, part = item
            chunk, f, response = pattern.chunk, np.zeros(samples), np.zeros(samples)
            squared_norm = fire_rows.row_outputs(
                self._weight[chunk.rows], part.rows, part.weights, self._anchor_of(chunk), self._threshold,
                self._coefficients[chunk.rows], self._inputs, pattern.counts, pattern.start, pattern.words, f, response,
            )  # fmt: skip
            return f, response, squared_norm

        items = zip(patterns, moved, strict=True)
        for chunk, (f, response, norm) in zip(self._chunks, ordered_map(add, items, self._threads), strict=True):
            result[:, chunk.output] += f
            displacement.response[:, chunk.output] += response
            displacement.squared_norm[chunk.output] += norm
        self._counters += Counters(pairs_evaluated=_pairs(patterns))
        return result, displacement if self._anchor is not None else None

    def _changes(self, patterns: list[FirePattern]) -> Flips:
        """How patterns differ from the current ones."""

        def compare(item: tuple[FirePattern, FirePattern]) -> Flips:
            before, after = item
            return Flips(
                *fire_rows.changed_pairs(
                    before.counts, before.start, before.words, after.counts, after.start, after.words,
                    after.samples, after.chunk.first,
                )
            )  # fmt: skip

        parts = list(ordered_map(compare, zip(self._patterns, patterns, strict=True), self._threads))
        return Flips(
            np.concatenate([part.neurons for part in parts]),
            np.concatenate([part.samples for part in parts]),
            np.concatenate([part.fires for part in parts]),
        )


def _pairs(patterns: Sequence[FirePattern]) -> int:
    return int(sum(int(pattern.counts.sum(dtype=np.int64)) for pattern in patterns))
