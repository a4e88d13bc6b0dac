"""What a deep layer's rows of J are made of, and products with them: δ ⊗ a is never formed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.kernels import coupled
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn.sparse_rows import SparseRows

# Samples or neurons a task, whatever the number of threads.
_SAMPLES = 64
_NEURONS = 256
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
        δ: n k rows, that of sample i and output c in row i k + c with the entries of row i of the pattern.
    similarity
        A Aᵀ, the inner products of what the layer sees, float64.
    """

    pattern: SparseRows
    signals: SparseRows
    similarity: Float[np.ndarray, "n n"]


def combined(
    signals: SparseRows, weights: Float[np.ndarray, " rows"], pattern: SparseRows, threads: int = 1
) -> Float[np.ndarray, " entries"]:
    """Σ_c weight_ic δ_ic at the entries of the pattern, in float64."""
    out = np.empty(pattern.index.size)
    _each(
        lambda first, last: coupled.combine_signals(
            pattern.start, signals.start, signals.value, weights, first, last, out
        ),
        pattern.rows, _SAMPLES, threads,
    )  # fmt: skip
    return out


def along_step(
    pattern: SparseRows,
    signals: SparseRows,
    similarity: Float[np.ndarray, "n others"],
    step: SparseRows,
    value: Float[np.ndarray, " entries_of_step"],
    out: Float[np.ndarray, " rows"],
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
        mine, other = pattern.by_column, step.by_column
        _each(
            lambda first, last: coupled.sum_over_samples(
                similarity, mine.start, mine.row, mine.entry, other.start, other.row, other.entry, value, first, last,
                reached,
            ),
            pattern.columns, _NEURONS, threads,
        )  # fmt: skip
    _each(
        lambda first, last: coupled.spread_signals(
            pattern.start, signals.start, signals.value, reached, first, last, out
        ),
        pattern.rows, _SAMPLES, threads,
    )  # fmt: skip


def sample_blocks(layer: LayerFactors, threads: int = 1) -> Float[np.ndarray, "n k k"]:
    """J Jᵀ of a layer between the outputs of every sample."""
    pattern, signals = layer.pattern, layer.signals
    outputs = signals.rows // pattern.rows
    blocks = np.zeros((pattern.rows, outputs, outputs))
    _each(
        lambda first, last: coupled.signal_products(
            pattern.start, signals.start, signals.value, layer.similarity, first, last, blocks
        ),
        pattern.rows, _SAMPLES, threads,
    )  # fmt: skip
    return blocks


def _each(work: Callable[[int, int], None], size: int, step: int, threads: int) -> None:
    edges = ((first, min(first + step, size)) for first in range(0, size, step))
    for _ in ordered_map(lambda edge: work(*edge), edges, threads):
        pass
