"""Products of sparse rows with a weight matrix as dense blocks: faster where a good part of the entries is not zero.

The blocks are fixed and each is multiplied by one thread, so no result depends on the number of threads.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from widefit.kernels.threads import for_ranges, serial_blas
from widefit.linalg.sparse_rows import SparseRows

# Samples, or outputs, a block.
_ROWS = 64
# Part of the entries from which on dense blocks win: they take all pairs at ten times the speed of active pairs, and
# all columns at three times the speed of active columns.
DENSE = 1 / 8

Factors = tuple[np.ndarray, np.ndarray]


def products(
    rows: SparseRows, weight: Float[np.ndarray, "outputs inputs"], factors: Sequence[Factors], threads: int
) -> Float[np.ndarray, "n outputs"]:
    """Return A (W + Σ U Vᵀ)ᵀ for sparse rows A and factors (U, V)."""
    z = np.empty((rows.rows, weight.shape[0]), weight.dtype)

    def fill(first: int, last: int) -> None:
        dense = rows.between(first, last).dense()
        np.matmul(dense, weight.T, out=z[first:last])
        for U, V in factors:
            z[first:last] += (dense @ V) @ U.T

    with serial_blas():
        for_ranges(fill, rows.rows, _ROWS, threads)
    return z


def pull_back(
    above: SparseRows,
    signals: Float[np.ndarray, "active k"],
    below: SparseRows,
    weight: Float[np.ndarray, "outputs inputs"],
    threads: int,
) -> Float[np.ndarray, "entries k"]:
    """Return D_c W for the numbers D_c at the entries of `above`, where `below` has entries."""
    value = np.empty((below.index.size, signals.shape[1]), weight.dtype)

    def fill(first: int, last: int) -> None:
        active = above.between(first, last)
        index = slice(*below.start[[first, last]])
        owner = np.repeat(np.arange(last - first), np.diff(below.start[first : last + 1]))
        for c, column in enumerate(signals[above.start[first] : above.start[last]].T):
            dense = active.with_values(column).dense() @ weight
            value[index, c] = dense[owner, below.index[index]]

    with serial_blas():
        for_ranges(fill, above.rows, _ROWS, threads)
    return value


def add(
    weight: Float[np.ndarray, "outputs inputs"],
    U: Float[np.ndarray, "outputs r"],
    V: Float[np.ndarray, "inputs r"],
    threads: int,
) -> None:
    """Add U Vᵀ to W."""

    def fill(first: int, last: int) -> None:
        weight[first:last] += U[first:last] @ V.T

    with serial_blas():
        for_ranges(fill, weight.shape[0], _ROWS, threads)
