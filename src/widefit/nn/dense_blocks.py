"""Products of sparse rows with a weight matrix as dense blocks: faster where a good part of the entries is not zero.

The blocks are fixed and each is multiplied by one thread, so no result depends on the number of threads.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn.sparse_rows import SparseRows

# Samples, or outputs, a block.
_ROWS = 64
# Part of the entries from which on dense blocks win: they take all pairs at ten times the speed of active pairs, and
# all columns at three times the speed of active columns.
DENSE = 1 / 8

Factors = tuple[np.ndarray, np.ndarray]


def products(
    rows: SparseRows, weight: Float[np.ndarray, "outputs inputs"], factors: Sequence[Factors], threads: int
) -> Float[np.ndarray, "n outputs"]:
    """A (W + Σ U Vᵀ)ᵀ for sparse rows A and factors (U, V)."""
    z = np.empty((rows.rows, weight.shape[0]), weight.dtype)

    def fill(first: int, last: int) -> None:
        dense = rows.between(first, last).dense()
        np.matmul(dense, weight.T, out=z[first:last])
        for U, V in factors:
            z[first:last] += (dense @ V) @ U.T

    _each(fill, rows.rows, threads)
    return z


def pull_back(
    signals: SparseRows, pattern: SparseRows, weight: Float[np.ndarray, "outputs inputs"], threads: int
) -> Float[np.ndarray, " entries"]:
    """D W for sparse rows D, at the entries of the pattern."""
    value = np.empty(pattern.index.size, weight.dtype)

    def fill(first: int, last: int) -> None:
        dense = signals.between(first, last).dense() @ weight
        start = pattern.start[first : last + 1]
        owner = np.repeat(np.arange(last - first), np.diff(start))
        value[start[0] : start[-1]] = dense[owner, pattern.index[start[0] : start[-1]]]

    _each(fill, signals.rows, threads)
    return value


def add(
    weight: Float[np.ndarray, "outputs inputs"],
    U: Float[np.ndarray, "outputs r"],
    V: Float[np.ndarray, "inputs r"],
    threads: int,
) -> None:
    """W += U Vᵀ."""

    def fill(first: int, last: int) -> None:
        weight[first:last] += U[first:last] @ V.T

    _each(fill, weight.shape[0], threads)


def _each(work: Callable[[int, int], None], size: int, threads: int) -> None:
    edges = ((first, min(first + _ROWS, size)) for first in range(0, size, _ROWS))
    with serial_blas():
        for _ in ordered_map(lambda edge: work(*edge), edges, threads):
            pass
