"""Visits of an epoch, and the visits at which neurons have fired (see `widefit.trackers.verlet.epochs`)."""

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
        Batch t has the visits edges[t] to edges[t + 1].
    all_inputs, inputs
        X, and its rows in the order of the visits.
    lengths
        ‖x_v‖, rounded up.
    position, batch
        Visit and batch of each sample, -1 for never.
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
        samples = minibatches.samples
        self._minibatches = minibatches
        self.edges = minibatches.edges
        self.all_inputs = inputs
        self.inputs = inputs[samples]
        self.lengths = norms[samples].astype(np.float64)
        self.position = np.full(inputs.shape[0], -1)
        self.batch = np.full(inputs.shape[0], -1)
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
        """Return the half-open range of the visits of a batch."""
        low, high = self.edges[batch : batch + 2]
        return int(low), int(high)

    def size(self, batch: int) -> int:
        """Return the number of visits of a batch."""
        low, high = self.span(batch)
        return high - low

    def moves(self, batch: int) -> Float[np.ndarray, "k b visits_plus_one"]:
        """Return g_v ⟨x_v, x⟩ for every output, sample x of a batch and visit v; 0 for visits to come."""
        low, high = self.span(batch)
        return self.g[:, None, -self._similarity.shape[1] :] * self._similarity[low:high]

    def take(self, batch: int, outputs: Float[np.ndarray, "b k"]) -> None:
        """Compute g of a batch from its outputs."""
        low, high = self.span(batch)
        self.g[:, low:high] = self._minibatches.g(batch, outputs).T


class NeuronVisits:
    """Neurons of one output: their listed pairs in the order of the visits, and the visits at which they fired.

    Attributes
    ----------
    output
        The output that they feed.
    outputs
        Their terms in it on the samples of the last batch.
    path
        Largest distance of each from where its list was made; infinite for those that are followed by products.
    sampled
        Pre-activations computed.
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
        self.output = blocks[0][1].output
        self.outputs = np.empty(0)
        self.sampled = 0
        self._weights = layer.weight[own]
        self._reference = reference[own]
        self._coefficients = layer.coefficients[own]
        self._threshold = layer.threshold
        self._blocks = [(block.first - own.start, lists[number], margins[number]) for number, block in blocks]
        self._skin = np.concatenate([one.skin for _, one, _ in self._blocks])
        self.path = np.concatenate([one.path for _, one, _ in self._blocks])
        # Grows with every visit, where `path` is brought up to date at the end.
        self._bound = self.path.copy()
        room = np.concatenate([np.diff(one.start) for _, one, _ in self._blocks])
        room = (room + kernels.ROOM - 1) // kernels.ROOM * kernels.ROOM
        self._first = np.cumsum(room) - room
        self._room = int(room.sum())
        self._count = np.zeros(room.size, np.int32)
        # Neurons that have left their skins, and their weights, which products follow.
        self._escaped = np.empty(0, np.int64)
        self._escaped_weights = self._weights[:0]
        self._escaping = np.empty(room.size, np.int64)

    def begin(self, visits: Visits, anew: bool) -> None:
        """Put the listed pairs into the order of the visits.

        Parameters
        ----------
        visits
            The visits to come.
        anew
            True where the weights have moved since the margins were found.
        """
        self._visits = visits
        self._last = None
        words = word_dtype(len(visits))
        self._rows = kernels.FiredVisits(self._first, self._count, np.full(self._room, len(visits), words))
        counts = np.zeros(visits.edges.size, np.int64)
        for _, lists, _ in self._blocks:
            kernels.count_pairs(lists.samples, visits.batch, counts)
        counts[0] = 0
        self._start = np.cumsum(counts)
        total = int(self._start[-1])
        self._pairs = kernels.VisitedPairs(
            np.empty(total, word_dtype(self.path.size)), np.empty(total, words), np.empty(total, self._weights.dtype)
        )
        cursor = self._start.copy()
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
        """Take the step of the batch before, and compute the terms of the neurons in the outputs of this one."""
        self._step()
        low, high = self._visits.span(batch)
        self.outputs = np.zeros(high - low)
        own = slice(self._start[batch], self._start[batch + 1])
        pairs = kernels.VisitedPairs(*(array[own] for array in self._pairs))
        firing = np.empty(pairs.neurons.size, np.int32)
        count = kernels.visit(pairs, self._rows, self._coefficients, low, moves[self.output], self.outputs, firing)
        bits = np.empty((self._escaped.size, (high - low + 31) // 32), np.uint32)
        if self._escaped.size:
            z = self._escaped_weights @ self._visits.inputs[low:high].T
            minibatch.fire_batch(z, self._threshold, self._coefficients[self._escaped], bits, self.outputs)
            self.sampled += z.size
        self._last = low, high, firing[:count], pairs, bits

    def end(self) -> None:
        """Take the last step, and bring the weights to where they are."""
        self._step()
        visits = self._visits
        g = visits.g[self.output]
        count = kernels.fold(g, visits.inputs, self._rows, self._moving(self.path), self._escaping)
        self._follow_by_products(count)
        self._weights[self._escaped] = self._escaped_weights
        self.path[self._escaped] = np.inf
        self._bound = self.path.copy()

    def _step(self) -> None:
        """Take the step of the batch that was visited last."""
        if self._last is None:
            return
        low, high, firing, pairs, bits = self._last
        visits = self._visits
        g = visits.g[self.output]
        if self._escaped.size:
            coefficients = self._coefficients[self._escaped]
            minibatch.step_batch(self._escaped_weights, coefficients, g[low:high], visits.inputs[low:high], bits)
        count = kernels.append(
            firing, pairs, g, visits.lengths, visits.inputs, self._rows, self._moving(self._bound), self._escaping
        )
        self._follow_by_products(count)
        self._last = None

    def _moving(self, path: Float[np.ndarray, " rows"]) -> kernels.MovingRows:
        """Return the neurons, for the kernels."""
        return kernels.MovingRows(self._coefficients, self._weights, self._reference, path, self._skin)

    def _follow_by_products(self, count: int) -> None:
        """Follow the neurons that have just left their skins by products from now on."""
        if count:
            own = self._escaping[:count]
            self._escaped = np.append(self._escaped, own)
            self._escaped_weights = np.concatenate([self._escaped_weights, self._weights[own]])
