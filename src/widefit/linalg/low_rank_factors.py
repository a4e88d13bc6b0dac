"""Products U Vᵀ with dense or sparse factors: queries and folds, and the cost of each."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from widefit.kernels.sparse import rows as sparse
from widefit.kernels.threads import for_ranges
from widefit.linalg import dense_blocks
from widefit.linalg.sparse_rows import SparseRows

# Cost of a pass over W₀ for an entry, in operations of a matrix product: it is read, written, and waits for memory.
PASS = 32.0
# Cost of an operation on a single active entry, in the same unit.
_SCATTERED = 16.0
# Rows or outputs a task, whatever the number of threads.
_CHUNKS = 16


@dataclass(frozen=True)
class DenseFactors:
    """Product U Vᵀ with dense factors."""

    U: Float[Tensor, "outputs r"]
    V: Float[Tensor, "inputs r"]

    @property
    def rank(self) -> int:
        return self.U.shape[1]

    @property
    def nbytes(self) -> int:
        return self.U.nbytes + self.V.nbytes

    def query_cost(self, samples: float, density: float) -> float:
        return 2.0 * samples * self.rank * (density * len(self.V) + len(self.U))

    def fold_cost(self) -> float:
        return len(self.U) * len(self.V) * (2.0 * self.rank + PASS)

    def apply(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        return (x @ self.V.to(x.dtype)) @ self.U.to(x.dtype).T

    def add_query(self, rows: SparseRows, z: Float[np.ndarray, "n outputs"], threads: int) -> None:
        z += rows.times(self.V.numpy()).astype(z.dtype) @ self.U.numpy().T

    def add_to(self, weight: Float[Tensor, "outputs inputs"], threads: int) -> None:
        dense_blocks.add(weight.numpy(), self.U.numpy(), self.V.numpy(), threads)


@dataclass(frozen=True)
class SparseFactors:
    """Product Uᵀ V with sparse rows."""

    U: SparseRows
    V: SparseRows

    @property
    def rank(self) -> int:
        return self.U.rows

    @property
    def pairs(self) -> int:
        """Products of active outputs and active inputs."""
        return int(np.diff(self.U.start) @ np.diff(self.V.start))

    @property
    def nbytes(self) -> int:
        return self.U.nbytes + self.V.nbytes

    def query_cost(self, samples: float, density: float) -> float:
        shared = density * self.V.density * self.V.columns
        return _SCATTERED * samples * (self.rank * shared + self.U.index.size)

    def fold_cost(self) -> float:
        return _SCATTERED * self.pairs

    def apply(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        U, V = (torch.from_numpy(rows.dense()).to(x.dtype) for rows in (self.U, self.V))
        return (x @ V.T) @ U

    def add_query(self, rows: SparseRows, z: Float[np.ndarray, "n outputs"], threads: int) -> None:
        factors = rows.products(self.V, threads).astype(z.dtype)

        def add(first: int, last: int) -> None:
            sparse.add_combinations(factors, self.U.start, self.U.index, self.U.value, first, last, z)

        for_ranges(add, rows.rows, _step(rows.rows), threads)

    def add_to(self, weight: Float[Tensor, "outputs inputs"], threads: int) -> None:
        columns = self.U.by_column
        array = weight.numpy()

        def add(first: int, last: int) -> None:
            sparse.add_to_rows(
                array, columns.start, columns.row, columns.value, self.V.start, self.V.index, self.V.value, first, last
            )

        for_ranges(add, len(array), _step(len(array)), threads)


def _step(size: int) -> int:
    """Return the length of a range when `size` rows are cut into `_CHUNKS`."""
    return max(1, math.ceil(size / _CHUNKS))
