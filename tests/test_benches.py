"""The peers that benches hold beside widefit do the same work as widefit, or a bench would measure nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from problems import digits_parity

import widefit
from widefit.cli.benches import load
from widefit.nn import TwoLayer
from widefit.rules import GradientDescent

peers = load(Path(__file__).parents[1] / "bench" / "two_layer_peers.py")


@pytest.fixture
def problem():
    inputs, targets = digits_parity(200)
    return TwoLayer(64, 1000, seed=3), torch.from_numpy(inputs).float(), torch.from_numpy(targets)


def dense(network: TwoLayer):
    coefficients = torch.from_numpy(network.coefficients()).float()
    return peers.DenseNetwork(network.weight.detach().clone(), coefficients, network.threshold)


def test_dense_gauss_newton_is_widefits(problem):
    network, inputs, targets = problem
    found = peers.gauss_newton(dense(network), inputs, targets, tol=1e-10, max_iter=20, limit=60.0)
    history = widefit.train(network, inputs, targets, tracker="dense", tol=1e-10)
    assert len(found.steps) == len(history) - 1 > 2
    for peer, ours in zip(found.losses, history.losses, strict=True):
        assert peer == pytest.approx(ours, rel=1e-3) or ours < 1e-10


def test_dense_gradient_descent_is_widefits(problem):
    network, inputs, targets = problem
    lr = 1 / peers.largest_eigenvalue(dense(network), inputs)
    found = peers.gradient_descent(dense(network), inputs, targets, lr=lr, steps=10, limit=60.0)
    history = widefit.train(network, inputs, targets, rule=GradientDescent(lr), tracker="dense", tol=0, max_iter=10)
    assert found.losses == pytest.approx(history.losses, rel=1e-4)
    assert found.losses[-1] < 0.5 * found.losses[0]


def test_dense_sgd_is_that_of_autograd(problem):
    network, inputs, targets = problem
    batches = torch.arange(70).split(32)
    lr = 1 / peers.largest_eigenvalue(dense(network), inputs, 32)
    found = peers.sgd(dense(network), inputs, targets, batches, lr=lr)
    exact = network.double()
    for batch in batches:
        loss = 0.5 * (exact(inputs[batch].double())[:, 0] - targets[batch]).square().sum()
        (slope,) = torch.autograd.grad(loss, exact.weight)
        exact.weight.data -= lr * slope
    outputs = exact(inputs.double()).detach().numpy()[:, 0]
    assert found.losses[-1] == pytest.approx(np.mean((outputs - targets.numpy()) ** 2), rel=1e-4)
    assert found.losses[-1] < found.losses[0]
