"""What a deep layer's rows of J are made of, and products with them: δ ⊗ a is never formed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.kernels.sparse import coupled
from widefit.kernels.sparse import rows as sparse
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.linalg.sparse_rows import SparseRows

# Samples a task, whatever the number of threads; of those that stream by blocks of others.
_SAMPLES, _STREAMED = 64, 256
# Part of the entries from which on dense products win: they take all pairs at twenty times the speed.
_DENSE = 1 / 8


@dataclass(frozen=True)
class LayerFactors:
    """What a layer's rows of J, δ ⊗ a, are made of.

    Attributes
    ----------
    pattern
        Which neurons fire on which samples, n rows.
    signals
        δ of every output at the entries of the pattern; it is 0 elsewhere.
    similarity
        A Aᵀ, the inner products of what the layer sees, float64.
    """

    pattern: SparseRows
    signals: Float[np.ndarray, "entries k"]
    similarity: Float[np.ndarray, "n n"]

    def signal_rows(self) -> SparseRows:
        """δ as n k rows, that of sample i and output c in row i k + c."""
        outputs = self.signals.shape[1]
        rows = self.pattern.repeated(outputs)
        if outputs == 1:
            return rows.with_values(self.signals[:, 0])
        counts = np.diff(self.pattern.start)
        value = np.empty(rows.index.size, self.signals.dtype)
        for own, first, count in zip(rows.start[:-1:outputs], self.pattern.start, counts, strict=False):
            value[own : own + outputs * count] = self.signals[first : first + count].T.reshape(-1)
        return rows.with_values(value)


def combined(
    pattern: SparseRows, signals: Float[np.ndarray, "entries k"], weights: Float[np.ndarray, "n k"], threads: int = 1
) -> Float[np.ndarray, " entries"]:
    """Σ_c weight_ic δ_ic at the entries of the pattern, in float64."""
    out = np.empty(pattern.index.size)
    _each(
        lambda first, last: coupled.combine_signals(pattern.start, signals, weights, first, last, out),
        pattern.rows, _SAMPLES, threads,
    )  # fmt: skip
    return out


def along_step(
    pattern: SparseRows,
    signals: Float[np.ndarray, "entries k"],
    similarity: Float[np.ndarray, "n others"],
    step: SparseRows,
    value: Float[np.ndarray, " entries_of_step"],
    out: Float[np.ndarray, "n k"],
    threads: int = 1,
) -> None:
    """out += J vec(Uᵀ V) of a layer, with the values of U at the places of `step` and A Vᵀ in `similarity`.

    About p² m n² additions for m neurons that fire with probability p: only pairs of samples on which a neuron fires,
    unless p is so large that dense products take less.
    """
    reached = np.empty(pattern.index.size)
    if min(pattern.density, step.density) > _DENSE:
        moved = step.with_values(value).dense()

        def reach(first: int, last: int) -> None:
            whole, start = similarity[first:last] @ moved, pattern.start[first : last + 1]
            owner = np.repeat(np.arange(last - first), np.diff(start))
            reached[start[0] : start[-1]] = whole[owner, pattern.index[start[0] : start[-1]]]

        with serial_blas():
            _each(reach, pattern.rows, _SAMPLES, threads)
    else:
        others = step.sample_blocks
        u = value[others.entry]
        _each(
            lambda first, last: coupled.sum_over_samples(
                similarity, pattern.start, pattern.index, others.edges, others.place, others.width, u, first, last,
                reached,
            ),
            pattern.rows, _STREAMED, threads,
        )  # fmt: skip
    _each(
        lambda first, last: coupled.spread_signals(pattern.start, signals, reached, first, last, out),
        pattern.rows, _SAMPLES, threads,
    )  # fmt: skip


def block_products(layer: LayerFactors, threads: int = 1) -> Float[np.ndarray, "n k k"]:
    """J Jᵀ of a layer between the outputs of every sample."""
    pattern, outputs = layer.pattern, layer.signals.shape[1]
    blocks = np.zeros((pattern.rows, outputs, outputs))
    _each(
        lambda first, last: coupled.signal_products(
            pattern.start, layer.signals, layer.similarity, first, last, blocks
        ),
        pattern.rows, _SAMPLES, threads,
    )  # fmt: skip
    return blocks


def output_gram(layer: LayerFactors, threads: int = 1) -> Float[np.ndarray, "n n"]:
    """Σ_c of J_c J_cᵀ of a layer, J_c its rows of output c: about k p² m n² / 2 products."""
    pattern, signals = layer.pattern, layer.signals
    samples = pattern.rows
    total = np.empty((samples, samples))
    if pattern.density > _DENSE:
        total[:] = 0
        for column in signals.T:
            total += pattern.with_values(np.ascontiguousarray(column)).gram(threads)
    else:
        others = pattern.sample_blocks
        own = np.ascontiguousarray(signals)
        ordered = own[others.entry]
        _each(
            lambda first, last: coupled.signal_gram(
                pattern.start, pattern.index, own, others.edges, others.place, others.width, ordered, first, last, total
            ),
            samples, _STREAMED, threads,
        )  # fmt: skip
        _each(lambda first, last: sparse.mirror(first, last, total), samples, _SAMPLES, threads)
    total *= layer.similarity
    return total


def _each(work: Callable[[int, int], None], size: int, step: int, threads: int) -> None:
    edges = ((first, min(first + step, size)) for first in range(0, size, step))
    for _ in ordered_map(lambda edge: work(*edge), edges, threads):
        pass
