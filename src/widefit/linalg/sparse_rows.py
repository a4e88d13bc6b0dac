"""Rows of which few entries are not zero: activations and backward signals of sparse layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.sparse import packed
from widefit.kernels.sparse import rows as sparse
from widefit.kernels.threads import for_ranges, serial_blas
from widefit.records import FileError, array, offsets

# Rows a task, whatever the number of threads.
_ROWS = 64
# Part of the entries from which on inner products of dense rows win.
_DENSE = 1 / 8
# Numbers of dense rows at most: half a gigabyte.
_DENSE_NUMBERS = 1 << 26
# Entries of a block of rows whose columns are gone through for every row of another matrix: three megabytes, some
# dozens a column.
_BLOCK_ENTRIES = 1 << 18


@dataclass(frozen=True)
class SparseColumns:
    """Sparse matrix column by column.

    Attributes
    ----------
    start
        Column c has the entries start[c] to start[c + 1].
    row
        int32, ascending within a column.
    value
        In the dtype of the rows.
    entry
        Index of each entry among the rows.
    place
        The inverse of `entry`.
    """

    start: Int[np.ndarray, " columns_plus_one"]
    row: Int[np.ndarray, " entries"]
    value: Float[np.ndarray, " entries"]
    entry: Int[np.ndarray, " entries"]
    place: Int[np.ndarray, " entries"]


@dataclass(frozen=True)
class SparseBlocks:
    """Sparse matrix in blocks of columns: block by block, and row by row within a block.

    Attributes
    ----------
    edges
        Row i has the entries edges[b, i] to edges[b, i + 1] in block b.
    place
        int32 columns within the block.
    value
        In the dtype of the rows.
    entry
        Index of each entry among the rows.
    width
        Columns a block.
    """

    edges: Int[np.ndarray, "blocks rows_plus_one"]
    place: Int[np.ndarray, " entries"]
    value: Float[np.ndarray, " entries"]
    entry: Int[np.ndarray, " entries"]
    width: int


@dataclass(frozen=True)
class SparseRows:
    """Matrix in compressed sparse rows (see `widefit.kernels.sparse.rows`).

    Attributes
    ----------
    columns
        Number of columns.
    start
        int64; row i has the entries start[i] to start[i + 1].
    index
        int32 columns, ascending within a row.
    value
        float32 or float64.
    """

    columns: int
    start: Int[np.ndarray, " rows_plus_one"]
    index: Int[np.ndarray, " entries"]
    value: Float[np.ndarray, " entries"]

    @classmethod
    def above(
        cls, z: Float[np.ndarray, "rows columns"], threshold: float, scale: float = 1.0, threads: int = 1
    ) -> "SparseRows":
        """Return scale · max(z − threshold, 0), with an entry wherever z > threshold."""
        rows = z.shape[0]
        low = z.dtype.type(threshold)
        factor = z.dtype.type(scale)
        start = np.zeros(rows + 1, np.int64)

        def count(first: int, last: int) -> None:
            sparse.count_above(z, low, first, last, start[1:])

        def take(first: int, last: int) -> None:
            sparse.take_above(z, low, factor, start, first, last, index, value)

        for_ranges(count, rows, _ROWS, threads)
        np.cumsum(start, out=start)
        index = np.empty(start[-1], np.int32)
        value = np.empty(start[-1], z.dtype)
        for_ranges(take, rows, _ROWS, threads)
        return cls(z.shape[1], start, index, value)

    @classmethod
    def read(cls, found: Mapping[str, np.ndarray], prefix: str, rows: int, columns: int) -> "SparseRows":
        """Return the matrix whose arrays have the names `prefix` and "start", "index" and "value".

        Raises
        ------
        FileError
            An array is absent, of another dtype or shape; columns that are not there, or do not ascend within a row.
        """
        index = array(found, f"{prefix}index", np.int32, (None,), least=0, below=columns)
        start = offsets(found, f"{prefix}start", np.int64, rows, index.size)
        value = array(found, f"{prefix}value", (np.float32, np.float64), (index.size,))
        begins = np.zeros(index.size + 1, np.bool_)
        begins[start] = True
        if np.any((index[1:] <= index[:-1]) & ~begins[1:-1]):
            raise FileError(f"'{prefix}index' must ascend within every row")
        return cls(columns, start, index, value)

    @classmethod
    def from_dense(cls, matrix: Float[np.ndarray, "rows columns"]) -> "SparseRows":
        """Return the entries of a matrix that are not zero."""
        row, column = np.nonzero(matrix)
        start = np.zeros(matrix.shape[0] + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=matrix.shape[0]), out=start[1:])
        return cls(matrix.shape[1], start, column.astype(np.int32), np.ascontiguousarray(matrix[row, column]))

    @classmethod
    def stacked(cls, parts: "Sequence[SparseRows]") -> "SparseRows":
        """Stack the rows of several matrices with the same columns, one below the other."""
        sizes = np.concatenate([np.diff(part.start) for part in parts])
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        index, value = (np.concatenate([getattr(part, name) for part in parts]) for name in ("index", "value"))
        return cls(parts[0].columns, start, index, value)

    @property
    def rows(self) -> int:
        return self.start.size - 1

    @property
    def nbytes(self) -> int:
        return self.start.nbytes + self.index.nbytes + self.value.nbytes

    @property
    def density(self) -> float:
        """Part of the entries that are stored."""
        return self.index.size / max(1, self.rows * self.columns)

    def dense(self) -> Float[np.ndarray, "rows columns"]:
        out = np.zeros((self.rows, self.columns), self.value.dtype)
        out[np.repeat(np.arange(self.rows), np.diff(self.start)), self.index] = self.value
        return out

    def between(self, first: int, last: int) -> "SparseRows":
        """Return rows `first` to `last` (half open)."""
        start = self.start[first : last + 1]
        chosen = slice(start[0], start[-1])
        return SparseRows(self.columns, start - start[0], self.index[chosen], self.value[chosen])

    def with_values(self, value: Float[np.ndarray, " entries"]) -> "SparseRows":
        """Return other numbers in the same places."""
        return SparseRows(self.columns, self.start, self.index, value)

    def repeated(self, times: int) -> "SparseRows":
        """Every row `times` times, one copy after the other: (row, copy) becomes row · times + copy."""
        if times == 1:
            return self
        counts = np.repeat(np.diff(self.start), times)
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        origin = np.repeat(self.start[:-1], times) - start[:-1]
        entry = np.arange(start[-1]) + np.repeat(origin, counts)
        return SparseRows(self.columns, start, self.index[entry], self.value[entry])

    def scaled(self, factor: Float[np.ndarray, " rows"]) -> "SparseRows":
        """Return diag(factor) times the matrix, in its dtype."""
        return self.with_values((np.repeat(factor, np.diff(self.start)) * self.value).astype(self.value.dtype))

    def in_blocks(self, columns: int) -> SparseBlocks:
        """Return the matrix in blocks of so many columns."""
        size = self.index.size
        edges = np.empty((max(1, -(-self.columns // columns)), self.rows + 1), np.int64)
        entry = np.empty(size, np.int64)
        place = np.empty(size, np.int32)
        sparse.order_by_block(self.start, self.index, columns, edges, entry, place)
        return SparseBlocks(edges, place, self.value[entry], entry, columns)

    @cached_property
    def packed_blocks(self) -> SparseBlocks:
        """The matrix in the blocks that packed products work on."""
        return self.in_blocks(packed.BLOCK_INPUTS)

    @cached_property
    def by_column(self) -> SparseColumns:
        """The matrix in compressed sparse columns."""
        start = np.empty(self.columns + 1, np.int64)
        size = self.index.size
        row = np.empty(size, np.int32)
        entry = np.empty(size, np.int64)
        place = np.empty(size, np.int64)
        sparse.turn_around(self.start, self.index, start, row, entry, place)
        return SparseColumns(start, row, self.value[entry], entry, place)

    @cached_property
    def sample_blocks(self) -> SparseBlocks:
        """The transpose in blocks of rows of this matrix, of about as many entries as a cache holds."""
        turned = self.by_column
        width = max(1, self.rows * _BLOCK_ENTRIES // max(1, self.index.size))
        blocks = SparseRows(self.rows, turned.start, turned.row, turned.value).in_blocks(min(width, max(1, self.rows)))
        return replace(blocks, entry=turned.entry[blocks.entry])

    def times(self, matrix: Float[np.ndarray, "columns k"]) -> Float[np.ndarray, "rows k"]:
        """Return the product with a dense matrix of few columns, in float64."""
        out = np.zeros((self.rows, matrix.shape[1]))
        sparse.rows_times_dense(self.start, self.index, self.value, matrix, out)
        return out

    def gram(self, threads: int = 1) -> Float[np.ndarray, "rows rows"]:
        """Return A Aᵀ in float64: half the squared entries of every column in additions, if those are few."""
        rows = self.rows
        out = np.empty((rows, rows))
        if self.density > _DENSE and rows * self.columns <= _DENSE_NUMBERS:
            wide = self.dense().astype(np.float64)

            def fill(first: int, last: int) -> None:
                out[first:last, first:] = wide[first:last] @ wide[first:].T
        else:
            columns = self.by_column

            def fill(first: int, last: int) -> None:
                sparse.inner_products(
                    self.start, self.index, self.value, columns.start, columns.row, columns.value, columns.place,
                    first, last, out,
                )  # fmt: skip

        with serial_blas():
            for_ranges(fill, rows, _ROWS, threads)
            for_ranges(lambda first, last: sparse.mirror(first, last, out), rows, _ROWS, threads)
        return out

    def products(self, other: "SparseRows", threads: int = 1) -> Float[np.ndarray, "rows others"]:
        """Return A Bᵀ in float64."""
        columns = other.by_column
        out = np.empty((self.rows, other.rows))

        def fill(first: int, last: int) -> None:
            sparse.cross_products(
                self.start, self.index, self.value, columns.start, columns.row, columns.value, first, last, out
            )

        for_ranges(fill, self.rows, _ROWS, threads)
        return out

    def flips(self, other: "SparseRows") -> int:
        """Count the places where one of the two has an entry and the other has none."""
        return int(sparse.count_flips(self.start, self.index, other.start, other.index))
