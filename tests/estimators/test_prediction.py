"""Predictions from trees are those of the network."""

import numpy as np
import pytest
import torch
from problems import make, sphere

from widefit.estimators.prediction import Predictor
from widefit.nn import TwoLayer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["random", "three outputs", "plain relu", "floored", "one feature", "nothing fires"])
def test_trees_give_what_the_network_gives(name, dtype):
    problem = make(name, dtype)
    network, predictor = problem.fresh(), Predictor(problem.network)
    predictor = Predictor(network)
    predictor.rows = 1
    x = sphere(np.random.default_rng(0).standard_normal((50, network.in_features)))
    for _ in range(2):
        with torch.no_grad():
            expected = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(predictor(x), expected, rtol=1e-11, atol=1e-11 * max(1, np.abs(expected).max()))
        assert predictor._trees is not None
        with torch.no_grad():
            network.weight.mul_(1.5)


def test_few_rows_are_not_worth_a_tree():
    network = make("one feature", torch.float32).fresh()
    predictor = Predictor(network)
    predictor.rows = 10
    x = np.ones((9, network.in_features))
    assert predictor(x).shape == (9, 1)
    assert predictor._trees is None


def test_neurons_that_cancel_are_passed_over():
    generator = np.random.default_rng(0)
    network = TwoLayer(5, 64, 2, threshold=0.5, paired=True, seed=0)
    x = sphere(generator.standard_normal((20, 5)))
    predictor = Predictor(network)
    predictor.rows = None
    for moved in (6, 20):
        with torch.no_grad():
            network.weight[:moved] += 0.1 * torch.randn(moved, 5)
            expected = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(predictor(x), expected, rtol=1e-11, atol=1e-12)
        assert predictor._left is not None
        assert predictor._left.width == moved
    with torch.no_grad():
        network.weight += torch.randn(64, 5)
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(predictor(x), expected, rtol=1e-11, atol=1e-12)
    assert predictor._left is None
