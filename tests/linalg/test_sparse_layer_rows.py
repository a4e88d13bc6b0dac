"""What rows of J are made of, in blocks of samples and in one, held against J written out in float64."""

from dataclasses import replace

import numpy as np
import pytest

from widefit.linalg import packed, sparse_rows
from widefit.linalg.sparse_layer_rows import SparseLayerRows, along_step, combined
from widefit.nn import SparseRows

SAMPLES, NEURONS, SEEN = 41, 23, 9


def sparse(part: float, seed: int, dtype, columns: int = NEURONS) -> SparseRows:
    generator = np.random.default_rng(seed)
    mask = generator.random((SAMPLES, columns)) < part
    mask[3] = False
    return SparseRows.from_dense(np.where(mask, generator.standard_normal(mask.shape), 0).astype(dtype))


@pytest.fixture(params=[1 << 18, 12], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(sparse_rows, "_BLOCK_ENTRIES", request.param)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.6])
@pytest.mark.usefixtures("blocks")
def test_a_layer_is_its_rows_of_the_jacobian(part, outputs, dtype):
    generator = np.random.default_rng(1)
    pattern, seen = sparse(part, 0, dtype), generator.standard_normal((SAMPLES, SEEN))
    signals = generator.standard_normal((pattern.index.size, outputs)).astype(dtype)
    layer = SparseLayerRows(pattern, signals, seen @ seen.T, threads=2)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 1e-5, "atol": 1e-5}

    delta = layer.signal_rows().dense().astype(np.float64)
    for c, column in enumerate(signals.T):
        np.testing.assert_array_equal(delta[c::outputs], pattern.with_values(column).dense())
    jacobian = np.einsum("ir,ic->irc", delta, np.repeat(seen, outputs, axis=0)).reshape(len(delta), -1)
    gram = jacobian @ jacobian.T
    by_output = gram.reshape(SAMPLES, outputs, SAMPLES, outputs)
    at = np.arange(SAMPLES)
    np.testing.assert_allclose(layer.block_products(), by_output[at, :, at], **close)
    np.testing.assert_allclose(layer.output_gram(), np.einsum("icjc->ij", by_output), **close)
    np.testing.assert_array_equal(layer.output_gram(), replace(layer, threads=1).output_gram())
    np.testing.assert_allclose(layer.gram(), gram, **close)

    weights = generator.standard_normal((SAMPLES, outputs))
    value = combined(pattern, signals, weights, 2)
    image = np.ones((SAMPLES, outputs))
    along_step(pattern, signals, layer.similarity, pattern, value, image, 2)
    np.testing.assert_allclose(image.reshape(-1) - 1, gram @ weights.reshape(-1), **close)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("part", [0.1, 0.6])
def test_a_step_of_another_pattern_is_followed(part):
    generator = np.random.default_rng(2)
    pattern, step = sparse(part, 0, np.float64), sparse(part, 5, np.float64)
    signals, similarity = generator.standard_normal((pattern.index.size, 2)), generator.standard_normal((SAMPLES,) * 2)
    image = np.zeros((SAMPLES, 2))
    along_step(pattern, signals, similarity, step, 2 * step.value, image)
    reached = similarity @ (2 * step.dense())
    for c, column in enumerate(signals.T):
        expected = (pattern.with_values(column).dense() * reached).sum(1)
        np.testing.assert_allclose(image[:, c], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("panel", [7, 2048])
def test_signals_are_pulled_back_panel_by_panel(panel, monkeypatch):
    monkeypatch.setattr(packed, "_PANEL", panel)
    generator = np.random.default_rng(3)
    above, below = sparse(0.2, 0, np.float64), sparse(0.3, 1, np.float64, 70)
    signals, weight = generator.standard_normal((above.index.size, 2)), generator.standard_normal((NEURONS, 70))
    found = packed.Packed(weight).pull_back(above, signals, below, threads=2)
    for own, column in zip(signals.T, found.T, strict=True):
        expected = np.where(below.dense() != 0, above.with_values(own).dense() @ weight, 0)
        np.testing.assert_allclose(below.with_values(column).dense(), expected, rtol=1e-12, atol=1e-12)
