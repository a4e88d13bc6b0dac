"""Products in tiles against NumPy's, and masks against comparisons."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widefit.kernels import products
from widefit.kernels.bits import positions


@settings(max_examples=20)
@given(
    st.integers(1, 150), st.integers(1, 20), st.integers(1, products.BLOCK), st.sampled_from(["f4", "f8"]),
    st.integers(0, 10**6),
)  # fmt: skip
def test_products_are_those_of_numpy(samples, features, rows, dtype, seed):
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((samples, features)).astype(dtype)
    panels = products.panels_of(inputs)
    z = products.block_for(panels)
    weights = np.zeros((products.whole_tiles(rows), features), dtype)
    weights[:rows] = generator.standard_normal((rows, features))
    products.multiply(weights, panels, z)
    expected = weights[:rows].astype(np.float64) @ inputs.astype(np.float64).T
    sizes = np.abs(weights[:rows].astype(np.float64)) @ np.abs(inputs.astype(np.float64)).T
    assert np.all(np.abs(z[:rows, :samples] - expected) <= (features + 2) * np.finfo(dtype).eps * sizes)


@pytest.mark.skipif(not products.INTEGERS, reason="the processor has no such instruction")
@settings(max_examples=20)
@given(st.integers(1, 150), st.integers(1, 20), st.integers(1, products.BLOCK), st.integers(0, 10**6))
def test_products_of_integers_are_exact(samples, features, rows, seed):
    generator = np.random.default_rng(seed)
    inputs = generator.integers(-5000, 5001, (samples, features)).astype(np.int16)
    panels = products.panels_of(inputs)
    z = products.block_for(panels)
    weights = np.zeros((products.whole_tiles(rows), features + features % 2), np.int16)
    weights[:rows, :features] = generator.integers(-5000, 5001, (rows, features))
    products.multiply(weights, panels, z)
    assert np.array_equal(z[:rows, :samples], weights[:rows, :features].astype(np.int64) @ inputs.T.astype(np.int64))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_masks_find_what_is_at_least(dtype, size):
    row = np.random.default_rng(size).integers(-2, 3, 256).astype(dtype)
    cuts: list[float] = [-3, 0, 1, 5]
    if row.dtype.kind == "f":
        row[: size // 3 : 3] = np.nan
        cuts.append(np.inf)
    bits, out = np.empty((size + 63) // 64, np.uint64), np.empty(size, np.int32)
    for cut in cuts:
        k = products.find_at_least(row, row.dtype.type(cut), size, bits)
        assert positions(bits, bits.size, out) == k
        assert np.array_equal(out[:k], np.flatnonzero(row[:size] >= cut))
