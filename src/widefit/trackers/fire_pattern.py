"""Fire pattern of a chunk of neurons: which samples each fires on, each row stored the cheaper way."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int, Integer

from widefit.kernels import fire_rows as kernels
from widefit.kernels.fire_rows import FireRows


@dataclass(frozen=True)
class Chunk:
    """Neurons `first` to `last` (half open), all of which feed `output`."""

    first: int
    last: int
    output: int

    @property
    def rows(self) -> slice:
        """Rows of these neurons in an array with a row for every neuron."""
        return slice(self.first, self.last)


@dataclass(frozen=True)
class FirePattern:
    """S of a chunk: for each neuron the samples it fires on (see `widefit.kernels.fire_rows` for the layout).

    Attributes
    ----------
    chunk
        The neurons.
    samples
        n.
    counts
        k_r.
    places, words
        Row r stands in words from places[r] on: k_r ascending indices, or a bitset when k_r > ⌈n/w⌉ for words of w
        bits. Without places each row stands right behind the one before.
    neurons
        The neuron of each row, counted from the first of the chunk, ascending; the others fire on nothing. None: there
        is a row for every neuron.
    """

    chunk: Chunk
    samples: int
    counts: Integer[np.ndarray, " rows"]
    places: Int[np.ndarray, " places"] | None
    words: Integer[np.ndarray, " words"]
    neurons: Integer[np.ndarray, " rows"] | None = None

    @classmethod
    def of(
        cls, chunk: Chunk, fires: Bool[np.ndarray, "rows n"], neurons: Int[np.ndarray, " rows"] | None = None
    ) -> "FirePattern":
        """Return the pattern of a boolean matrix.

        Parameters
        ----------
        chunk
            The neurons.
        fires
            True where the neuron of a row fires on a sample.
        neurons
            The neuron of each row, as in the attributes.
        """
        rows, samples = fires.shape
        bitsets = np.zeros((rows, -(-samples // 32) * 32), np.bool_)
        bitsets[:, :samples] = fires
        counts = np.count_nonzero(fires, axis=1).astype(np.int32)
        limit = bitsets.shape[1] // 32
        heavy = counts > limit
        start = np.zeros(rows + 1, np.int64)
        np.cumsum(np.minimum(counts, limit), out=start[1:])
        words = np.empty(start[-1], np.uint32)
        in_bitset = np.repeat(heavy, np.diff(start))
        words[in_bitset] = np.packbits(bitsets[heavy], axis=1, bitorder="little").view("<u4").ravel()
        words[~in_bitset] = np.nonzero(fires[~heavy])[1]
        return cls(chunk, samples, counts, start, words, neurons)

    @property
    def start(self) -> Int[np.ndarray, " places"]:
        """First word of each row; summed up where that is not kept."""
        if self.places is not None:
            return self.places
        sizes = np.minimum(self.counts, self.limit)
        start = np.zeros(sizes.size + 1, fitting(self.words.size))
        np.cumsum(sizes, dtype=start.dtype, out=start[1:])
        return start

    @property
    def rows(self) -> FireRows:
        """The rows, for the kernels."""
        return FireRows(self.counts, self.start, self.words)

    @property
    def nbytes(self) -> int:
        held = (self.counts, self.places, self.words, self.neurons)
        return sum(array.nbytes for array in held if array is not None)

    @property
    def limit(self) -> int:
        """Samples that an index row holds at most."""
        bits = 8 * self.words.itemsize
        return (self.samples + bits - 1) // bits

    @property
    def heavy(self) -> Bool[np.ndarray, " rows"]:
        """Rows stored as bitsets."""
        return self.counts > self.limit

    def fired(self, neuron: int) -> Int[np.ndarray, " k_r"]:
        """Return the ascending indices of the samples that a neuron of this chunk fires on."""
        row = neuron - self.chunk.first
        if self.neurons is not None:
            place = int(np.searchsorted(self.neurons, row))
            if place == self.neurons.size or self.neurons[place] != row:
                return np.empty(0, np.int32)
            row = place
        out = np.empty(self.samples + 1, np.int32)
        k = kernels.list_fired(self.rows, row, self.samples, out)
        return out[:k]

    def rows_of(self, neurons: Int[np.ndarray, " q"]) -> Int[np.ndarray, " q"]:
        """Return the rows of neurons of the network that have one."""
        local = neurons - self.chunk.first
        return local if self.neurons is None else np.searchsorted(self.neurons, local)

    def dense(self) -> Bool[np.ndarray, "neurons n"]:
        """Return S as a boolean matrix."""
        out = np.empty((self.counts.size, self.samples), np.float32)
        kernels.unpack_rows(self.rows, 0, self.counts.size, np.ones(self.counts.size), out)
        if self.neurons is None:
            return out > 0
        whole = np.zeros((self.chunk.last - self.chunk.first, self.samples), np.bool_)
        whole[self.neurons] = out > 0
        return whole


def fitting(largest: int) -> type[np.signedinteger]:
    """Return the shorter dtype of indices up to `largest`."""
    return np.int32 if largest < 1 << 31 else np.int64


def word_dtype(samples: int) -> type[np.unsignedinteger]:
    """Return the shortest words of fire rows: each must hold any sample, and a count of them."""
    return np.uint16 if samples < 1 << 16 else np.uint32


# Chunks a network is cut into, whatever the number of threads: enough to keep many cores busy, few enough to combine.
_CHUNKS = 64
# Neurons of a chunk at most: their working memory is next to nothing then, and their numbers take two bytes.
_LONGEST = 1 << 16


def partition(neurons_of: list[tuple[int, int]]) -> list[Chunk]:
    """Cut the neurons of every output into equal chunks, about `_CHUNKS` in all and none below 512 neurons or
    above `_LONGEST`."""
    chunks = []
    for output, (first, last) in enumerate(neurons_of):
        pieces = min(max(1, _CHUNKS // len(neurons_of)), max(1, (last - first) // 512))
        pieces = max(pieces, -(-(last - first) // _LONGEST))
        edges = [first + piece * (last - first) // pieces for piece in range(pieces + 1)]
        chunks += [Chunk(low, high, output) for low, high in pairwise(edges)]
    return chunks
