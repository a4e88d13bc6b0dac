"""The visits of an epoch, and what neurons know of them (see `widefit.trackers.verlet.epochs`)."""

import numpy as np
from jaxtyping import Float

from widefit.kernels import minibatch
from widefit.kernels.verlet import list_epochs as kernels
from widefit.trackers.fire_pattern import Chunk, word_dtype
from widefit.trackers.layer import Layer
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.verlet.near_lists import Lists


class Visits:
    """Samples that are visited batch by batch, none twice, and g as it becomes known.

    Attributes
    ----------
    edges
        Visits low to high = edges[t], edges[t + 1] are those of batch t.
    all_inputs, inputs
        X, and its rows in the order of the visits.
    lengths
        ‖x_v‖, rounded up.
    position, batch
        When each sample comes, by visits and by batches, -1 for never.
    g
        Shape (k, visits + 1), float64; nothing comes at the last.
    """

    def __init__(
        self,
        minibatches: Minibatches,
        inputs: Float[np.ndarray, "n d"],
        norms: Float[np.ndarray, " n"],
        outputs: int,
    ):
        self._minibatches, self.edges, samples = minibatches, minibatches.edges, minibatches.samples
        self.all_inputs, self.inputs = inputs, inputs[samples]
        self.lengths = norms[samples].astype(np.float64)
        self.position, self.batch = np.full((2, inputs.shape[0]), -1)
        self.position[samples] = np.arange(samples.size)
        self.batch[samples] = np.repeat(np.arange(len(minibatches)), np.diff(minibatches.edges))
        self.g = np.zeros((outputs, samples.size + 1))
        self._similarity = np.zeros((samples.size, 1))
        if len(minibatches) > 1:
            exact = np.vstack([self.inputs, np.zeros_like(self.inputs[:1])]).astype(np.float64)
            self._similarity = exact[:-1] @ exact.T

    def __len__(self) -> int:
        return self.lengths.size

    def span(self, batch: int) -> tuple[int, int]:
        """Visits of a batch."""
        low, high = self.edges[batch : batch + 2]
        return int(low), int(high)

    def size(self, batch: int) -> int:
        low, high = self.span(batch)
        return high - low

    def moves(self, batch: int) -> Float[np.ndarray, "k b visits_plus_one"]:
        """g_v ⟨x_v, x⟩ for every output, sample x of a batch and visit v; 0 for visits to come."""
        low, high = self.span(batch)
        return self.g[:, None, -self._similarity.shape[1] :] * self._similarity[low:high]

    def take(self, batch: int, outputs: Float[np.ndarray, "b k"]) -> None:
        """Find g of a batch from its outputs."""
        low, high = self.span(batch)
        self.g[:, low:high] = self._minibatches.g(batch, outputs).T


class NeuronVisits:
    """Some neurons of one output: their listed pairs in the order of the visits, and the visits at which they fired.

    Attributes
    ----------
    output
        What they feed.
    outputs
        What they add to it on the samples of the last batch.
    path
        How far each can be from where its list was made; infinite for those that are followed by products.
    sampled
        Pre-activations looked at.
    """

    def __init__(
        self,
        layer: Layer,
        reference: Float[np.ndarray, "m d"],
        blocks: list[tuple[int, Chunk]],
        lists: list[Lists],
        margins: list[np.ndarray],
    ):
        own = slice(blocks[0][1].first, blocks[-1][1].last)
        self.output, self.outputs, self.sampled = blocks[0][1].output, np.empty(0), 0
        self._weights, self._reference = layer.weight[own], reference[own]
        self._coefficients, self._threshold = layer.coefficients[own], layer.threshold
        self._blocks = [(block.first - own.start, lists[number], margins[number]) for number, block in blocks]
        self._skin = np.concatenate([one.skin for _, one, _ in self._blocks])
        self.path = np.concatenate([one.path for _, one, _ in self._blocks])
        self._bound = self.path.copy()
        room = np.concatenate([np.diff(one.start) for _, one, _ in self._blocks])
        room = (room + kernels.ROOM - 1) // kernels.ROOM * kernels.ROOM
        self._first, self._room, self._count = np.cumsum(room) - room, int(room.sum()), np.zeros(room.size, np.int32)
        self._left = np.empty(room.size, np.int64)
        self._loose, self._freed = self._left[:0], self._weights[:0]

    def begin(self, visits: Visits, anew: bool) -> None:
        """Put the listed pairs into the order of the visits.

        Parameters
        ----------
        visits
            What comes.
        anew
            True where the weights have moved since the margins were found.
        """
        self._visits, self._last = visits, None
        words = word_dtype(len(visits))
        self._rows = self._first, self._count, np.full(self._room, len(visits), words)
        counts = np.zeros(visits.edges.size, np.int64)
        for _, lists, _ in self._blocks:
            kernels.count_pairs(lists.samples, visits.batch, counts)
        counts[0] = 0
        self._start = np.cumsum(counts)
        cursor, total = self._start.copy(), int(self._start[-1])
        self._pairs = (
            np.empty(total, word_dtype(self.path.size)), np.empty(total, words),
            np.empty(total, self._weights.dtype),
        )  # fmt: skip
        for first, lists, margins in self._blocks:
            if anew:
                kernels.margins_of(
                    self._weights[first : first + lists.path.size], visits.all_inputs, self._threshold, lists.start,
                    lists.samples, visits.position, margins,
                )  # fmt: skip
            kernels.collect(
                lists.start, lists.samples, margins, visits.position, visits.batch, first, cursor, self._pairs
            )
        self.sampled += total

    def visit(self, batch: int, moves: Float[np.ndarray, "k b visits_plus_one"]) -> None:
        """Take the step of the batch before, and find what the neurons add to the outputs of this one."""
        self._step()
        low, high = self._visits.span(batch)
        self.outputs = np.zeros(high - low)
        own = slice(self._start[batch], self._start[batch + 1])
        neurons, positions, margins = (array[own] for array in self._pairs)
        pairs, firing = (neurons, positions, margins), np.empty(neurons.size, np.int32)
        count = kernels.visit(pairs, self._rows, self._coefficients, low, moves[self.output], self.outputs, firing)
        bits = np.empty((self._loose.size, (high - low + 31) // 32), np.uint32)
        if self._loose.size:
            z = self._freed @ self._visits.inputs[low:high].T
            minibatch.fire_batch(z, self._threshold, self._coefficients[self._loose], bits, self.outputs)
            self.sampled += z.size
        self._last = low, high, firing[:count], pairs, bits

    def end(self) -> None:
        """Take the last step, and bring the weights to where they are."""
        self._step()
        left = kernels.fold(
            self._visits.g[self.output], self._visits.inputs, self._rows, (self.path, self._skin),
            self._coefficients, self._weights, self._reference, self._left,
        )  # fmt: skip
        self._free(left)
        self._weights[self._loose] = self._freed
        self.path[self._loose] = np.inf
        self._bound = self.path.copy()

    def _step(self) -> None:
        """Take the step of the batch that was visited last."""
        if self._last is None:
            return
        (low, high, firing, pairs, bits), visits = self._last, self._visits
        g = visits.g[self.output]
        if self._loose.size:
            own = self._coefficients[self._loose]
            minibatch.step_batch(self._freed, own, g[low:high], visits.inputs[low:high], bits)
        left = kernels.append(
            firing, pairs, g, visits.lengths, visits.inputs, self._rows, (self._bound, self._skin),
            self._coefficients, self._weights, self._reference, self._left,
        )  # fmt: skip
        self._free(left)
        self._last = None

    def _free(self, count: int) -> None:
        """From now on the neurons that have left their skins are followed by products."""
        if count:
            self._loose = np.append(self._loose, self._left[:count])
            self._freed = np.concatenate([self._freed, self._weights[self._left[:count]]])
