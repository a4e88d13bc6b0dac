"""Rows of J over a layer of sparse signals, and products with them: δ ⊗ a is never formed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.kernels.sparse import coupled
from widefit.kernels.sparse import rows as sparse
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.linalg.sparse_rows import SparseRows

# Samples a task, whatever the number of threads; of those that stream by blocks of others.
_SAMPLES, _STREAMED = 64, 256
# Part of the entries from which on dense products win: they take all pairs at twenty times the speed.
_DENSE = 1 / 8


@dataclass(frozen=True)
class SparseLayerRows:
    """The rows of J over a layer whose signals are sparse, δ ⊗ a; output c of sample i has row i k + c.

    The sparse counterpart of `widefit.gram.layer_rows.LayerRows`, in float64.

    Attributes
    ----------
    pattern
        The neurons that fire on each sample, n rows.
    signals
        δ of every output at the entries of the pattern; it is 0 elsewhere.
    similarity
        A Aᵀ, the inner products of what the layer sees, float64.
    threads
        Cores to use; no result depends on it.
    """

    pattern: SparseRows
    signals: Float[np.ndarray, "entries k"]
    similarity: Float[np.ndarray, "n n"]
    threads: int = 1

    @property
    def samples(self) -> int:
        """Number of samples, n."""
        return self.pattern.rows

    @property
    def outputs(self) -> int:
        """Outputs a sample, k."""
        return self.signals.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def product(self, vectors: Float[Tensor, "n k c"]) -> Float[Tensor, "n k c"]:
        """J Jᵀ v: about p² m n² + 4 n k p m additions a vector."""
        products = np.zeros(vectors.shape)
        for column in range(vectors.shape[2]):
            weights = np.ascontiguousarray(vectors[:, :, column].numpy())
            out = np.zeros(weights.shape)
            value = combined(self.pattern, self.signals, weights, self.threads)
            along_step(self.pattern, self.signals, self.similarity, self.pattern, value, out, self.threads)
            products[:, :, column] = out
        return torch.from_numpy(products)

    def columns(self, indices: Int[Tensor, " c"]) -> Float[Tensor, "r c"]:
        """(J Jᵀ)[:, indices], by products with unit vectors."""
        units = torch.zeros(self.samples * self.outputs, len(indices), dtype=self.dtype)
        units[indices, torch.arange(len(indices))] = 1
        return self.product(units.view(self.samples, self.outputs, -1)).flatten(0, 1)

    def gram(self) -> Float[Tensor, "r r"]:
        """J Jᵀ: about p² m (n k)² / 2 additions."""
        products = self.signal_rows().gram(self.threads)
        by_output = products.reshape(self.samples, self.outputs, self.samples, self.outputs)
        by_output *= self.similarity[:, None, :, None]
        return torch.from_numpy(products)

    def output_gram(self) -> Float[Tensor, "n n"]:
        """Σ_c J_c J_cᵀ, J_c the rows of output c: about k p² m n² / 2 products."""
        total = _signal_gram(self.pattern, self.signals, self.threads)
        total *= self.similarity
        return torch.from_numpy(total)

    def block_products(self) -> Float[Tensor, "n k k"]:
        """J Jᵀ between the outputs of every sample."""
        blocks = np.zeros((self.samples, self.outputs, self.outputs))

        def multiply(first: int, last: int) -> None:
            coupled.signal_products(self.pattern.start, self.signals, self.similarity, first, last, blocks)

        _each(multiply, self.samples, _SAMPLES, self.threads)
        return torch.from_numpy(blocks)

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

    def combine(first: int, last: int) -> None:
        coupled.combine_signals(pattern.start, signals, weights, first, last, out)

    _each(combine, pattern.rows, _SAMPLES, threads)
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
        start, index = pattern.start, pattern.index

        def add_up(first: int, last: int) -> None:
            coupled.sum_over_samples(
                similarity, start, index, others.edges, others.place, others.width, u, first, last, reached
            )

        _each(add_up, pattern.rows, _STREAMED, threads)

    def spread(first: int, last: int) -> None:
        coupled.spread_signals(pattern.start, signals, reached, first, last, out)

    _each(spread, pattern.rows, _SAMPLES, threads)


def _signal_gram(
    pattern: SparseRows, signals: Float[np.ndarray, "entries k"], threads: int
) -> Float[np.ndarray, "n n"]:
    """Σ_c Δ_c Δ_cᵀ."""
    samples = pattern.rows
    total = np.empty((samples, samples))
    if pattern.density > _DENSE:
        total[:] = 0
        for column in signals.T:
            total += pattern.with_values(np.ascontiguousarray(column)).gram(threads)
        return total
    others = pattern.sample_blocks
    own = np.ascontiguousarray(signals)
    ordered = own[others.entry]

    def multiply(first: int, last: int) -> None:
        coupled.signal_gram(
            pattern.start, pattern.index, own, others.edges, others.place, others.width, ordered, first, last, total
        )

    _each(multiply, samples, _STREAMED, threads)
    _each(lambda first, last: sparse.mirror(first, last, total), samples, _SAMPLES, threads)
    return total


def _each(work: Callable[[int, int], None], size: int, step: int, threads: int) -> None:
    edges = ((first, min(first + step, size)) for first in range(0, size, step))
    for _ in ordered_map(lambda edge: work(*edge), edges, threads):
        pass
