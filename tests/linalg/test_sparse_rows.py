"""Sparse rows and packed weights, held against dense float64 matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widefit.linalg.packed import Packed
from widefit.linalg.sparse_rows import SparseRows

# rows, columns, outputs, part of the entries that are stored: beyond a block of inputs, a panel of samples and a tile
# of outputs, and down to nothing.
SHAPES = [
    (3, 7, 5, 0.4),
    (40, 1100, 130, 0.1),
    (1050, 30, 70, 0.1),
    (1, 1, 1, 1.0),
    (6, 64, 64, 1.0),
    (5, 20, 33, 0.0),
    (2, 2049, 65, 0.02),
]
DTYPES = [np.float64, np.float32]


def sparse_matrix(rows: int, columns: int, part: float, dtype, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mask = generator.random((rows, columns)) < part
    return np.where(mask, generator.standard_normal((rows, columns)), 0).astype(dtype)


def tolerance(dtype) -> dict:
    return {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 2e-5, "atol": 2e-5}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestProducts:
    def test_packed_products(self, shape, dtype):
        rows, columns, outputs, part = shape
        dense = sparse_matrix(rows, columns, part, dtype)
        weight = np.random.default_rng(1).standard_normal((outputs, columns)).astype(dtype)
        start = np.random.default_rng(2).standard_normal((rows, outputs)).astype(dtype)
        results = []
        for threads in (1, 3):
            z = start.copy()
            Packed(weight, threads).add_products(SparseRows.from_dense(dense), z, threads)
            results.append(z)
        expected = start + dense.astype(np.float64) @ weight.astype(np.float64).T
        np.testing.assert_allclose(results[0], expected, **tolerance(dtype))
        np.testing.assert_array_equal(results[0], results[1])

    def test_adding_to_packed_weights(self, shape, dtype):
        rows, columns, outputs, part = shape
        U, V = sparse_matrix(rows, outputs, part, dtype, 3), sparse_matrix(rows, columns, part, dtype, 4)
        weight = np.random.default_rng(1).standard_normal((outputs, columns)).astype(dtype)
        packed = Packed(weight)
        packed.add(SparseRows.from_dense(U), SparseRows.from_dense(V), threads=2)
        z = np.zeros((columns, outputs), dtype)
        packed.add_products(SparseRows.from_dense(np.eye(columns, dtype=dtype)), z)
        expected = weight.astype(np.float64) + U.T.astype(np.float64) @ V
        np.testing.assert_allclose(z.T, expected, **tolerance(dtype))

    def test_inner_products(self, shape, dtype):
        rows, columns, outputs, part = shape
        a, b = sparse_matrix(rows, columns, part, dtype, 5), sparse_matrix(outputs, columns, part, dtype, 6)
        left, right = SparseRows.from_dense(a), SparseRows.from_dense(b)
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        # Float32 entries are multiplied and summed in float64.
        np.testing.assert_allclose(left.gram(2), wide_a @ wide_a.T, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(left.products(right, 2), wide_a @ wide_b.T, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(left.gram(2), left.gram(1))
        np.testing.assert_allclose(left.times(b.T), wide_a @ wide_b.T, **tolerance(dtype))

    def test_forms(self, shape, dtype):
        rows, columns, _, part = shape
        dense = sparse_matrix(rows, columns, part, dtype, 7)
        sparse = SparseRows.from_dense(dense)
        np.testing.assert_array_equal(sparse.dense(), dense)
        np.testing.assert_array_equal(sparse.repeated(3).dense(), np.repeat(dense, 3, axis=0))
        factor = np.arange(rows) - 1.0
        np.testing.assert_array_equal(sparse.scaled(factor).dense(), (factor[:, None] * dense).astype(dtype))
        turned = sparse.by_column
        back = SparseRows(rows, turned.start, turned.row, turned.value)
        np.testing.assert_array_equal(back.dense(), dense.T)
        np.testing.assert_array_equal(turned.place[turned.entry], np.arange(sparse.index.size))


@given(st.integers(1, 70), st.integers(1, 40), st.floats(-2, 2), st.integers(0, 100))
def test_above_keeps_what_fires(rows, columns, threshold, seed):
    z = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    z[z < -1] = threshold  # on the threshold is not above it
    sparse = SparseRows.above(z, threshold, 0.5, threads=2)
    low = np.float32(threshold)
    np.testing.assert_array_equal(sparse.dense(), np.where(z > low, np.float32(0.5) * (z - low), 0))
    assert sparse.index.size == np.count_nonzero(z > low)
    assert np.all(np.diff(sparse.start) == np.count_nonzero(z > low, axis=1))


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_flips_count_places(seed, part_a, part_b):
    a, b = sparse_matrix(9, 13, part_a, np.float64, seed), sparse_matrix(9, 13, part_b, np.float64, seed + 1)
    assert SparseRows.from_dense(a).flips(SparseRows.from_dense(b)) == np.count_nonzero((a != 0) != (b != 0))
