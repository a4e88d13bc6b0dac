"""Products from fire rows: those of few samples are walked along, those of many multiplied behind a mask."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from widefit.gram.twins import twins_of
from widefit.kernels import dense_rows as masks
from widefit.kernels import fire_lists as lists
from widefit.kernels import twins as differences
from widefit.kernels.fire_lists import Twins
from widefit.kernels.fire_rows import FireRows
from widefit.trackers.fire_pattern import FirePattern

# Neurons of a task: so many that reading all samples once is little work beside their pairs, and their sums are few.
_TASK = 1024
# And of one behind masks, whose sums over all columns stay in a second-level cache.
_MASKED_TASK = 256
_MASKED_BYTES = 1 << 18
# Part of the samples from which on a neuron is multiplied behind a mask (measured: 0.8 ns a sample, 9.5 ns a pair).
_MANY = 0.1
# Samples that are counted at a time, and different weights up to which neurons are counted and not added up.
_COUNTED = 1 << 14
_KINDS = 4


@dataclass(frozen=True)
class Samples:
    """X as products from fire lists read it.

    Attributes
    ----------
    inputs
        X; its dtype is that of products and of sums over the samples of a tile.
    blocks
        X once more, see `widefit.kernels.fire_lists.blocks_of`.
    summed
        Dtype of the sums over tiles: float64 for very many samples, whatever the dtype of X.
    """

    inputs: Float[np.ndarray, "n d"]
    blocks: Float[np.ndarray, "blocks n lanes"] = field(repr=False)
    summed: np.dtype

    @classmethod
    def of(cls, inputs: Float[np.ndarray, "n d"], summed: np.dtype | None = None) -> "Samples":
        """Lay the samples out; sums are taken in their own dtype unless told otherwise."""
        return cls(inputs, lists.blocks_of(inputs), inputs.dtype if summed is None else summed)

    @cached_property
    def panels(self) -> Float[np.ndarray, "panels d word"]:
        """X once more, see `widefit.kernels.dense_rows.panels_of`."""
        return masks.panels_of(self.inputs)

    @cached_property
    def squared_norms(self) -> Float[np.ndarray, " n"]:
        """‖x_i‖²."""
        return np.einsum("ij,ij->i", self.inputs, self.inputs, dtype=np.float64)


@dataclass(frozen=True)
class ListedRows:
    """Neurons each of which fires on few samples."""

    twins: Twins

    def apply(self, samples: Samples, vectors: Float[np.ndarray, "c n"]) -> Float[np.ndarray, "c n"]:
        """Return Σ_r w_r D_r X (Xᵀ D_r v) for every vector."""
        twins = self.twins
        blocks = samples.blocks
        numbers = len(vectors) * twins.weights.size * blocks.shape[2]
        sums = np.empty(numbers, samples.summed)
        others = np.empty(numbers if twins.samples.size else 0, samples.summed)
        out = np.zeros(vectors.shape)
        lists.apply_rows(
            twins, blocks, vectors, -vectors, lists.tile_of(blocks), lists.width_of(blocks), sums, others, out
        )  # fmt: skip
        return out

    def add_weights(self, out: Float[np.ndarray, " n"]) -> None:
        """Add the diagonal of Sᵀ diag(w) S."""
        lists.add_weights(self.twins, out)

    def add_columns(self, chosen: Int[np.ndarray, " r"], out: Float[np.ndarray, "r n"]) -> None:
        """Add columns of Sᵀ diag(w) S, one below the other."""
        lists.add_columns(self.twins, _places(chosen, out.shape[1]), False, out)

    def add_block(self, chosen: Int[np.ndarray, " r"], out: Float[np.ndarray, "r r"], samples: int) -> None:
        """Add rows and columns of Sᵀ diag(w) S."""
        lists.add_columns(self.twins, _places(chosen, samples), True, out)


@dataclass(frozen=True)
class MaskedRows(ListedRows):
    """Neurons each of which fires on a good part of all samples: eight rows at a time, of bits in words of uint32."""

    def apply(self, samples: Samples, vectors: Float[np.ndarray, "c n"]) -> Float[np.ndarray, "c n"]:
        twins = self.twins
        blocks = samples.blocks
        features = samples.inputs.shape[1]
        _, start, words = twins.rows
        padded = np.zeros((-(-vectors.shape[1] // masks.WORD) * masks.WORD), vectors.dtype)
        out = np.zeros(vectors.shape)
        for vector, found in zip(vectors, out, strict=True):
            padded[: vector.size] = vector
            sums = np.zeros((start.size, blocks.shape[0] * blocks.shape[2]), samples.summed)
            masks.collect(start, words, blocks, padded, lists.width_of(blocks), sums)
            if twins.samples.size == 0:
                sums *= (twins.weights + twins.others)[:, None]
            else:
                seconds = sums[:, :features].copy()
                differences.collect_differences(twins, samples.inputs, vector, seconds)
                seconds *= twins.others[:, None]
                sums *= twins.weights[:, None]
                sums[:, :features] += seconds
                differences.spread_differences(twins, samples.inputs, seconds, found)
            masks.spread(start, words, samples.panels, sums.astype(blocks.dtype, copy=False), found)
        return out

    def add_columns(self, chosen: Int[np.ndarray, " r"], out: Float[np.ndarray, "r n"]) -> None:
        twins = self.twins
        both = twins.weights + twins.others
        weights = np.unique(both)
        if weights.size > _KINDS:
            super().add_columns(chosen, out)
            return
        _, start, words = twins.rows
        # Rows that fill the last eight up weigh nothing.
        for weight in weights[weights > 0]:
            own = start[both == weight]
            fired = np.zeros((chosen.size, -(-own.size // 64)), np.uint64)
            masks.rows_that_fire(own, words, chosen, fired)
            for first in range(0, out.shape[1], _COUNTED):
                masks.count_together(own, words, fired, weight, first, min(first + _COUNTED, out.shape[1]), out)
        if twins.samples.size:
            place = _places(chosen, out.shape[1])
            differences.add_columns_of_differences(twins, place, chosen, out)


def _places(chosen: Int[np.ndarray, " r"], samples: int) -> Int[np.ndarray, " n"]:
    place = np.full(samples, -1, np.int32)
    place[chosen] = np.arange(chosen.size, dtype=np.int32)
    return place


def fired_rows(
    pattern: FirePattern, coefficients: Callable[[int, int], Float[np.ndarray, " rows"]], features: int
) -> Iterator[ListedRows]:
    """Cut the rows of a chunk, whatever the number of threads.

    Parameters
    ----------
    pattern
        The chunk.
    coefficients
        Gives √w of a range of neurons.
    features
        d.
    """
    weights = coefficients(pattern.chunk.first, pattern.chunk.last) ** 2
    whole = twins_of(pattern, weights if pattern.neurons is None else weights[pattern.neurons])
    counts = whole.rows.counts
    many = counts > max(pattern.limit, int(_MANY * pattern.samples))
    for own in _pieces(np.flatnonzero(~many), _TASK):
        yield ListedRows(_part(whole, own))
    size = max(64, min(_MASKED_TASK, _MASKED_BYTES // (4 * features) // masks.GROUP * masks.GROUP))
    for own in _pieces(np.flatnonzero(many), size):
        yield MaskedRows(_filled_up(_part(whole, own), pattern.samples))


def _pieces(rows: Int[np.ndarray, " q"], size: int) -> Iterator[Int[np.ndarray, " p"]]:
    pieces = max(1, round(rows.size / size))
    for piece in range(pieces if rows.size else 0):
        yield rows[piece * rows.size // pieces : (piece + 1) * rows.size // pieces]


def _part(whole: Twins, own: Int[np.ndarray, " p"]) -> Twins:
    """Some of the rows."""
    counts, start, words = whole.rows
    sizes = whole.start[own + 1] - whole.start[own]
    edges = np.append(0, np.cumsum(sizes))
    places = np.repeat(whole.start[own] - edges[:-1], sizes) + np.arange(edges[-1])
    rows = FireRows(counts[own], start[own], words)
    return Twins(rows, whole.weights[own], whole.others[own], edges, whole.samples[places], whole.gained[places])


def _filled_up(twins: Twins, samples: int) -> Twins:
    """The same rows in words of 32 bits, and some that weigh nothing to make their number a multiple of eight."""
    counts, start, words = twins.rows
    start = start.astype(np.int64)
    if words.itemsize < 4:
        held = -(-samples // 16)
        wide = np.zeros((start.size, held + held % 2), np.uint16)
        wide[:, :held] = words[start[:, None] + np.arange(held)]
        words = wide.view(np.uint32).reshape(-1)
        start = np.arange(start.size) * (wide.shape[1] // 2)
    more = -start.size % masks.GROUP
    return Twins(
        FireRows(np.append(counts, counts[:1].repeat(more)), np.append(start, start[:1].repeat(more)), words),
        np.append(twins.weights, np.zeros(more)),
        np.append(twins.others, np.zeros(more)),
        np.append(twins.start, twins.start[-1:].repeat(more)),
        twins.samples,
        twins.gained,
    )
