"""Outputs and gradients without torch's threads against the plain formulas in float64."""

import numpy as np
import pytest
import torch

from widefit.nn import TwoLayer
from widefit.nn.evaluation import evaluate, input_gradients

SHAPES = [(3, 2, 1, 1), (5, 4200, 1, 7), (4, 4099, 3, 5), (2, 2050, 2, 1)]


def dense(network, x):
    """Return φ(X Wᵀ) A / √m and every gradient, (k, q, d), by one product each."""
    weight = network.rows(0, network.width).astype(np.float64)
    readout = network.readout_rows(0, network.width).astype(np.float64) / np.sqrt(network.width)
    z = x @ weight.T
    b = network.threshold
    outputs = (np.maximum(z, b) if network.activation.convention == "floor" else np.maximum(z - b, 0)) @ readout
    return outputs, np.einsum("qr,rk,rd->kqd", z > b, readout, weight)


@pytest.mark.parametrize("store", ["array", "regenerate"])
@pytest.mark.parametrize("convention", ["zero", "floor"])
@pytest.mark.parametrize(("d", "width", "k", "q"), SHAPES)
def test_outputs_and_gradients(d, width, k, q, convention, store):
    network = TwoLayer(d, width, k, convention=convention, store=store, readout_scale=3.0)
    x = np.random.default_rng(width).normal(size=(q, d))
    outputs, gradients = dense(network, x)
    np.testing.assert_allclose(evaluate(network, x), outputs, rtol=1e-10, atol=1e-12)
    for output in range(k):
        np.testing.assert_allclose(input_gradients(network, x, output), gradients[output], rtol=1e-10, atol=1e-12)


def test_outputs_are_those_of_the_module():
    network = TwoLayer(6, 5000, 2, threshold=0.5)
    x = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(evaluate(network, x), expected, rtol=1e-4, atol=1e-5)


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    network = TwoLayer(3, 20_000, 2)
    x = np.random.default_rng(1).normal(size=(50, 3))
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append((evaluate(network, x), input_gradients(network, x, 1)))
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, three)
