"""Benches keep what a run of widefit leaves, and their peers do the same work, or a bench would measure nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from problems import digits_parity

import widefit
from widefit.cli.benches import load
from widefit.nn import TwoLayer
from widefit.rules import SGD, GradientDescent

BENCHES = Path(__file__).parents[1] / "bench"
peers = load(BENCHES / "two_layer_peers.py")
problems = load(BENCHES / "two_layer_problems.py")
runs = load(BENCHES / "two_layer_runs.py")


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


def test_a_fit_keeps_what_the_run_leaves():
    network = TwoLayer(64, 1000, seed=3)
    found = runs.fit(network, problems.digits_parity(200))
    assert found.steps[-1].loss < 1e-10
    assert not found.cut
    assert [what for what, _, _ in found.plan.rows()] == ["tracker", "solver"]
    assert found.report.bytes_held > 0


def test_a_limit_ends_a_fit():
    found = runs.fit(TwoLayer(64, 1000, seed=3), problems.digits_parity(200), limit=0.0)
    assert found.cut
    assert len(found.steps) == 2
    assert found.seconds_for(3) == pytest.approx(found.seconds + 2 * found.loop_seconds)


def test_a_recording_rule_gives_the_batches_that_it_took():
    rule, seen = runs.recording(SGD, lr=1e-3, batch_size=32)
    runs.fit(TwoLayer(64, 1000, seed=3), problems.digits_parity(200), rule=rule, max_iter=2)
    batches = runs.batches_of(seen)
    assert [len(batch) for batch in batches] == 2 * [32, 32, 32, 32, 32, 32, 8]
    assert torch.equal(torch.cat(batches[:7]).sort().values, torch.arange(200))
