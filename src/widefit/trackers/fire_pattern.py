"""Who fires: the fire rows of a chunk of neurons, each stored the cheaper way."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int, Integer

from widefit.kernels import cpu


@dataclass(frozen=True)
class Chunk:
    """Neurons `first` to `last` (half open), all of which feed `output`."""

    first: int
    last: int
    output: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.last)


@dataclass(frozen=True)
class FirePattern:
    """S of a chunk: for each neuron the samples it fires on (see `widefit.kernels.cpu` for the layout).

    Attributes
    ----------
    chunk
        The neurons.
    samples
        n.
    counts
        k_r.
    start, words
        Row r stands in words from start[r] on: k_r ascending indices, or a bitset when k_r > ⌈n/32⌉.
    neurons
        The neuron of each row, counted from the first of the chunk, ascending; the others fire on nothing. None: a row
        for every neuron.
    """

    chunk: Chunk
    samples: int
    counts: Integer[np.ndarray, " rows"]
    start: Int[np.ndarray, " rows_plus_one"]
    words: Integer[np.ndarray, " words"]
    neurons: Int[np.ndarray, " rows"] | None = None

    @property
    def nbytes(self) -> int:
        neurons = 0 if self.neurons is None else self.neurons.nbytes
        return self.counts.nbytes + self.start.nbytes + self.words.nbytes + neurons

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
        """Ascending indices of the samples that a neuron of this chunk fires on."""
        row = neuron - self.chunk.first
        if self.neurons is not None:
            place = int(np.searchsorted(self.neurons, row))
            if place == self.neurons.size or self.neurons[place] != row:
                return np.empty(0, np.int32)
            row = place
        out = np.empty(self.samples + 1, np.int32)
        k = cpu.fired_samples(self.counts, self.start, self.words, row, self.samples, out)
        return out[:k]

    def rows_of(self, neurons: Int[np.ndarray, " q"]) -> Int[np.ndarray, " q"]:
        """Rows of neurons of the network that have one."""
        local = neurons - self.chunk.first
        return local if self.neurons is None else np.searchsorted(self.neurons, local)

    def dense(self) -> Bool[np.ndarray, "neurons n"]:
        """S as a boolean matrix."""
        out = np.empty((self.counts.size, self.samples), np.float32)
        cpu.unpack_rows(self.counts, self.start, self.words, 0, self.counts.size, np.ones(self.counts.size), out)
        if self.neurons is None:
            return out > 0
        whole = np.zeros((self.chunk.last - self.chunk.first, self.samples), np.bool_)
        whole[self.neurons] = out > 0
        return whole


def word_dtype(samples: int) -> type[np.unsignedinteger]:
    """The shortest words of fire rows: each must hold any sample, and a count of them."""
    return np.uint16 if samples < 1 << 16 else np.uint32


# Chunks a network is cut into, whatever the number of threads: enough to keep many cores busy, few enough to combine.
_CHUNKS = 64
# Neurons of a chunk at most: what is in memory for each of them while a chunk is looked at is next to nothing then.
_LONGEST = 1 << 20


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
