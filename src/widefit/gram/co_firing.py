"""H = K ∘ N / m for a two-layer network, from its fire pattern; J is never formed (section 3 of arXiv 2208.04508)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from widefit.gram.base import DenseGram
from widefit.kernels import co_firing as kernels
from widefit.kernels import fire_rows as cpu
from widefit.kernels.threads import ordered_map
from widefit.trackers.base import Flips
from widefit.trackers.fire_pattern import FirePattern

# Rows of N that a task fills: small enough to spread the triangle evenly over the threads.
_TILE = 64
# Firing pairs turned around at a time, up to 20 bytes each.
_WAVE_PAIRS = 1 << 21
# A row that fires on fewer samples is counted pair by pair: from there on a bit a sample is cheaper (measured).
_LIGHT = 10
# Flips from which their changes are summed up first, n² operations more (measured).
_MANY_FLIPS = 1000
# Chunks whose rows are summed up together: where each row begins takes memory meanwhile.
_PARTS = 256

_FlippedRows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def co_firing_counts(
    patterns: Sequence[FirePattern], weights: Float[np.ndarray, " rows"] | None, threads: int
) -> np.ndarray:
    """Upper triangle of N = Sᵀ diag(weights) S.

    Parameters
    ----------
    patterns
        Chunks of neurons, in order.
    weights
        One weight a neuron of the chunks, or None for plain counts.
    threads
        Cores to use; the result does not depend on it.

    Returns
    -------
    ndarray of shape (n, n), int32 for plain counts and float64 otherwise; entries below the diagonal mean nothing.
    """
    samples = patterns[0].samples
    counts = np.zeros((samples, samples), np.int32 if weights is None else np.float64)
    tiles = [(first, min(first + _TILE, samples)) for first in range(0, samples, _TILE)]
    for wave in _waves(patterns):
        _add_wave(counts, wave, weights, patterns[0].chunk.first, tiles, threads)
    return counts


def fill_gram(
    counts: np.ndarray, similarity: Float[np.ndarray, "n n"], scale: float, threads: int, out: Float[np.ndarray, "n n"]
) -> None:
    """Write scale · K ∘ N into `out`, from the upper triangle of N."""

    def fill(first: int) -> None:
        kernels.gram_rows(counts, similarity, scale, first, min(first + _TILE, len(out)), out)

    for _ in ordered_map(fill, range(0, len(out), _TILE), threads):
        pass


class CoFiringGram(DenseGram):
    """H = K ∘ N with N kept, so that single flips can be followed.

    Attributes
    ----------
    counts
        Upper triangle of N: int32 counts, or float64 sums of squared coefficients where those differ.
    scale
        Factor of N in H: the square of all coefficients, or 1.
    """

    def __init__(
        self,
        patterns: Sequence[FirePattern],
        similarity: Float[np.ndarray, "n n"],
        scale: float,
        squares: Float[np.ndarray, " m"] | None,
        threads: int,
    ):
        self._first, self._similarity, self._threads = patterns[0].chunk.first, similarity, threads
        self.scale, self._squares = scale, squares
        self._recount(patterns)

    def _recount(self, patterns: Sequence[FirePattern]) -> None:
        self.counts = co_firing_counts(patterns, self._squares, self._threads)
        super().__init__(torch.from_numpy(np.empty(self._similarity.shape)))
        self._fill()

    def _fill(self) -> None:
        """H from N."""
        fill_gram(self.counts, self._similarity, self.scale, self._threads, self.matrix.numpy())

    def flip(self, patterns: Sequence[FirePattern], flips: Flips) -> None:
        """Follow flips of these neurons: 2 k_r entries of H a flip of neuron r.

        Parameters
        ----------
        patterns
            The chunks that feed the output, in order, before the flips.
        flips
            Those of the network; other outputs' are passed over.
        """
        edges = np.searchsorted(
            flips.neurons, [pattern.chunk.first for pattern in patterns] + [patterns[-1].chunk.last]
        )
        parts = [
            (pattern, slice(low, high))
            for pattern, low, high in zip(patterns, edges[:-1].tolist(), edges[1:].tolist(), strict=True)
            if low < high
        ]
        if edges[-1] - edges[0] >= _MANY_FLIPS:
            self._flip_many(parts, flips)
            return
        for pattern, own in parts:
            kernels.co_firing_flips(
                *self._rows_of(pattern, flips, own), self.scale, self._similarity, self.counts, self.matrix.numpy()
            )

    def _flip_many(self, parts: list[tuple[FirePattern, slice]], flips: Flips) -> None:
        """Sum up what the flips change N by, tile by tile of their samples."""
        change, samples = np.zeros_like(self.counts), self._similarity.shape[0]
        for low in range(0, len(parts), _PARTS):
            self._sum_up(parts[low : low + _PARTS], flips, change)

        def add(first: int) -> None:
            kernels.add_changes(change, first, min(first + _TILE, samples), self.counts)

        for _ in ordered_map(add, range(0, samples, _TILE), self._threads):
            pass
        self._fill()

    def _sum_up(self, parts: list[tuple[FirePattern, slice]], flips: Flips, change: np.ndarray) -> None:
        """Add to `change` what flips of some chunks change N by."""
        arrays = list(ordered_map(lambda part: self._rows_of(part[0], flips, part[1]), parts, self._threads))
        orders = [np.argsort(own[4], kind="stable").astype(np.int32) for own in arrays]
        edges = range(0, len(change) + _TILE, _TILE)
        cuts = [np.searchsorted(own[4][order], edges) for own, order in zip(arrays, orders, strict=True)]

        def collect(tile: int) -> None:
            for own, order, cut in zip(arrays, orders, cuts, strict=True):
                kernels.flip_changes(*own, order[cut[tile] : cut[tile + 1]], change)

        for _ in ordered_map(collect, range(len(edges) - 1), self._threads):
            pass

    def _rows_of(self, pattern: FirePattern, flips: Flips, own: slice) -> _FlippedRows:
        """Fire rows, and flips of them: row, sample, whether it fires, what its co-firings count."""
        neurons = flips.neurons[own]
        if self._squares is None:
            weight = np.ones(neurons.size, np.int32)
        else:
            weight = self._squares[neurons - self._first]
        rows = pattern.rows_of(neurons)
        return pattern.counts, pattern.start, pattern.words, rows, flips.samples[own], flips.fires[own], weight


def co_firing(
    patterns: Sequence[FirePattern],
    similarity: Float[np.ndarray, "n n"],
    coefficients: Float[np.ndarray, " m"],
    threads: int = 1,
) -> CoFiringGram:
    """H of the neurons of one output.

    Parameters
    ----------
    patterns
        The chunks that feed the output, in order.
    similarity
        K = X Xᵀ, float64.
    coefficients
        a_r / √m of every neuron of the network.
    threads
        Cores to use; the result does not depend on it.

    Returns
    -------
    H_ij = K_ij Σ_r (a_r² / m) s_ri s_rj in float64; Σ k_r² / 2 additions and n² products.
    """
    scale, squares = squared_coefficients(coefficients[patterns[0].chunk.first : patterns[-1].chunk.last])
    return CoFiringGram(patterns, similarity, scale, squares, threads)


def squared_coefficients(coefficients: Float[np.ndarray, " m"]) -> tuple[float, Float[np.ndarray, " m"] | None]:
    """The scale and the weights of co-firings: 1 and the squares, or where they are all equal, that and None.

    With readouts of ±a the counts are exact integers, and bitset rows count 64 neurons at a time.
    """
    squares = coefficients**2
    return (float(squares[0]), None) if np.all(squares == squares[0]) else (1.0, squares)


def _waves(patterns: Sequence[FirePattern]) -> list[list[FirePattern]]:
    """Consecutive chunks that fit in memory turned around."""
    waves: list[list[FirePattern]] = [[]]
    size = 0
    for pattern in patterns:
        pairs = int(pattern.counts.sum(dtype=np.int64))
        if waves[-1] and size + pairs > _WAVE_PAIRS:
            waves.append([])
            size = 0
        waves[-1].append(pattern)
        size += pairs
    return waves


def _add_wave(
    counts: np.ndarray,
    wave: list[FirePattern],
    weights: np.ndarray | None,
    origin: int,
    tiles: list[tuple[int, int]],
    threads: int,
) -> None:
    samples = wave[0].samples
    # Sums of squares are products of whole rows: bits cannot count them.
    most = [min(_LIGHT, pattern.limit) if weights is None else pattern.limit for pattern in wave]
    light = [pattern.counts <= few for pattern, few in zip(wave, most, strict=True)]
    # The bits of a chunk begin at a word of their own, so that chunks can be turned around in parallel.
    bases, total = [], 0
    for few in light:
        bases.append(64 * total)
        total += -(-int(np.count_nonzero(~few)) // 64)
    bits = np.zeros((_multiple(samples, kernels.SQUARE), _multiple(total, kernels.LANES)), np.uint64)

    def turn(item: tuple[FirePattern, np.ndarray, int]) -> tuple[np.ndarray, ...]:
        pattern, few, base = item
        pairs = int(pattern.counts[few].sum(dtype=np.int64))
        sample_start, owner = np.empty(samples + 1, np.int64), np.empty(pairs, np.int32)
        position, stop = np.empty(pairs, np.int64), np.empty(pairs, np.int64)
        kernels.split_by_sample(
            pattern.counts,
            pattern.start,
            pattern.words,
            samples,
            most[0],
            sample_start,
            position,
            stop,
            owner,
            bits,
            base,
        )
        return pattern.words, sample_start, position, stop, owner

    turned = list(ordered_map(turn, zip(wave, light, bases, strict=True), threads))
    none = np.empty(0)

    def fill(tile: tuple[int, int]) -> None:
        first, last = tile
        for pattern, arrays in zip(wave, turned, strict=True):
            own = none if weights is None else _weights_of(pattern, weights, origin)
            words, sample_start, position, stop, owner = arrays
            kernels.co_firing_light(words, sample_start, position, stop, owner, own, first, last, counts)
        if weights is None:
            kernels.co_firing_heavy(bits, first, last, counts)

    for _ in ordered_map(fill, tiles, threads):
        pass
    if weights is not None:
        for pattern in wave:
            _add_heavy_products(counts, pattern, _weights_of(pattern, weights, origin))


def _multiple(size: int, of: int) -> int:
    """At least `size`, a multiple of `of`."""
    return -(-size // of) * of


def _weights_of(pattern: FirePattern, weights: np.ndarray, origin: int) -> np.ndarray:
    """The weights of a pattern's rows, out of those of all neurons from `origin` on."""
    own = weights[pattern.chunk.first - origin : pattern.chunk.last - origin]
    return own if pattern.neurons is None else own[pattern.neurons]


def _add_heavy_products(counts: np.ndarray, pattern: FirePattern, weights: np.ndarray) -> None:
    """counts += Sᵀ diag(weights) S over the bitset rows, as matrix products of blocks."""
    rows = np.where(pattern.heavy, np.sqrt(weights), 0.0)
    step = max(64, (1 << 21) // pattern.samples)
    for first in range(0, rows.size, step):
        last = min(first + step, rows.size)
        block = np.empty((last - first, pattern.samples))
        cpu.unpack_rows(pattern.rows, first, last, rows, block)
        counts += block.T @ block
