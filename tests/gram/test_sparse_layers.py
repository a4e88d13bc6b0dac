"""H from sparse factors, held against J Jᵀ with J written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from widefit.gram import CoupledGram, DenseGram, WeightedGram
from widefit.linalg.sparse_layer_rows import SparseLayerRows
from widefit.nn import Deep, SparseRows
from widefit.trackers.deep.sparse import SparseTracking
from widefit.tuning.limit_kernel import deep_limit_gram, limit_gram


def sparse(rows: int, columns: int, part: float, seed: int, dtype=np.float64) -> SparseRows:
    generator = np.random.default_rng(seed)
    mask = generator.random((rows, columns)) < part
    return SparseRows.from_dense(np.where(mask, generator.standard_normal((rows, columns)), 0).astype(dtype))


def layer(samples: int, outputs: int, part: float, seed: int, dtype=np.float64) -> tuple[SparseLayerRows, np.ndarray]:
    """A layer and its rows of J."""
    pattern, seen = sparse(samples, 11, part, seed, dtype), sparse(samples, 7, part, seed + 10, dtype)
    signals = np.random.default_rng(seed).standard_normal((pattern.index.size, outputs)).astype(dtype)
    rows = SparseLayerRows(pattern, signals, seen.dense().astype(np.float64) @ seen.dense().T, threads=2)
    delta, h = rows.signal_rows().dense().astype(np.float64), seen.dense().astype(np.float64)
    return rows, np.einsum("ir,ic->irc", delta, np.repeat(h, outputs, axis=0)).reshape(samples * outputs, -1)


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.floats(0, 1), st.integers(0, 99))
def test_equals_the_product_of_jacobians(samples, outputs, layers, part, seed):
    made = [layer(samples, outputs, part, seed + 20 * number) for number in range(layers)]
    jacobian = np.concatenate([rows for _, rows in made], axis=1)
    gram = CoupledGram([rows for rows, _ in made]).dense()
    np.testing.assert_allclose(gram.numpy(), jacobian @ jacobian.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_float32_factors_of_any_size_lose_nothing_in_the_sums(scale):
    signals, inputs = sparse(130, 400, 0.1, 0, np.float32), sparse(130, 300, 0.1, 1, np.float32)
    signals, inputs = signals.scaled(np.full(130, scale)), inputs.scaled(np.full(130, 1 / scale))
    gram = CoupledGram([SparseLayerRows(signals, signals.value[:, None], inputs.gram())]).dense().numpy()
    delta, h = signals.dense().astype(np.float64), inputs.dense().astype(np.float64)
    np.testing.assert_allclose(gram, (delta @ delta.T) * (h @ h.T), rtol=1e-10, atol=1e-12)
    assert np.array_equal(gram, gram.T)


def test_duplicates_and_empty_rows():
    dense = np.zeros((6, 5))
    dense[::2] = [0, 1.0, 0, -2.0, 0]
    rows = SparseRows.from_dense(dense)
    gram = CoupledGram([SparseLayerRows(rows, rows.value[:, None], np.ones((6, 6)))]).dense().numpy()
    np.testing.assert_array_equal(gram, 5.0 * np.outer([1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 1, 0]))


def test_refuses_layers_that_do_not_belong_together():
    one, other, wider = layer(3, 2, 0.5, 0)[0], layer(4, 2, 0.5, 0)[0], layer(3, 1, 0.5, 0)[0]
    for layers in ([], [one, other], [one, wider]):
        with pytest.raises(ValueError, match="same samples and outputs"):
            CoupledGram(layers)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_a_weighted_gram_is_the_product_of_its_factors(blocks, size, seed):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(blocks * size, 4, generator=generator, dtype=torch.float64)
    root = torch.randn(blocks, size, size, generator=generator, dtype=torch.float64)
    matrix, whole = factor @ factor.T, torch.block_diag(*root)
    found, expected = WeightedGram(DenseGram(matrix), root), whole.T @ matrix @ whole
    torch.testing.assert_close(found.dense(), expected)
    torch.testing.assert_close(found.diagonal(), expected.diagonal())
    torch.testing.assert_close(found.matvec(factor), expected @ factor)
    torch.testing.assert_close(found.columns(torch.tensor([0])), expected[:, :1])


def test_a_weighted_gram_refuses_blocks_of_another_size():
    with pytest.raises(ValueError, match="root must have blocks of 4 rows"):
        WeightedGram(DenseGram(torch.eye(4, dtype=torch.float64)), torch.ones(3, 1, 1, dtype=torch.float64))


def test_one_layer_has_the_limit_of_the_two_layer_network():
    inputs = np.random.default_rng(0).standard_normal((9, 4))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    np.testing.assert_allclose(deep_limit_gram(inputs, (1.3,), 0.5), limit_gram(inputs, 1.3), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("thresholds", "share"), [((1.0, 1.2), 0.5), ((0.0, 1.0, 0.5), 0.2), ((0.5, 0.0), 0.0)])
def test_wide_layers_tend_to_the_limit(thresholds, share):
    inputs = np.random.default_rng(1).standard_normal((6, 5))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    grams = []
    for seed in range(8):
        network = Deep(
            5, (1500,) * len(thresholds), threshold=thresholds, input_share=share, seed=seed, dtype=torch.float64
        )
        run = SparseTracking(network, inputs)
        grams.append(CoupledGram(run.factors()).dense().numpy())
    # In the units of one layer.
    found = np.mean(grams, axis=0) * (network.scales[0] ** -2 / 1500)
    expected = deep_limit_gram(inputs, thresholds, share)
    assert np.abs(found - expected).max() < 0.15 * expected.max()
    assert np.abs(found - expected).mean() < 0.03 * expected.max()
