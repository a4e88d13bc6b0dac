"""Verlet lists where they are hard: skins of any width, jumps, trials that come to nothing, weights that overflow."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DenseReference, digits_parity, sphere

import widefit
from widefit.gram import CurrentGrams
from widefit.nn import TwoLayer
from widefit.rules import GradientDescent
from widefit.trackers import Tracking, Update, VerletList
from widefit.training.train import Training

# Lists of the pairs that fire alone; lists that pay; lists of almost all pairs.
PRICES = [0.0, 0.1, 1e6]


def fires(run: Tracking) -> np.ndarray:
    return np.concatenate([pattern.dense() for pattern in run.patterns()])


def start(network: TwoLayer, inputs: np.ndarray, tracker: VerletList, threads: int = 1) -> tuple:
    """A run on a copy of the network, and its H."""
    own = copy.deepcopy(network)
    run = tracker.start(own, inputs, anchor=own.weight.detach().numpy().copy(), threads=threads)
    return run, CurrentGrams(run, inputs @ inputs.T, own.coefficients, held=own.out_features), own


def problem(generator: np.random.Generator) -> tuple[TwoLayer, np.ndarray]:
    """Plain and shifted ReLU, one output and three, duplicates and rows of zeros, lines and balls, any size."""
    samples, features = int(generator.integers(1, 40)), int(generator.integers(1, 6))
    outputs = int(generator.choice([1, 3]))
    inputs = sphere(generator.standard_normal((samples, features))) * generator.choice([1.0, 1e3])
    inputs[generator.random(samples) < 0.2] = inputs[0]
    inputs[generator.random(samples) < 0.05] = 0
    threshold = float(generator.choice([0.0, generator.uniform(-0.5, 1.5)]))
    width = outputs * int(generator.integers(2, 150))
    network = TwoLayer(features, width, outputs, threshold=threshold, seed=1, dtype=torch.float64)
    with torch.no_grad():
        network.weight.mul_(float(generator.choice([0.0, 1e-3, 1.0])))
    return network, inputs


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(PRICES))
def test_steps_of_any_size_follow_dense_matrices(seed, price):
    generator = np.random.default_rng(seed)
    network, inputs = problem(generator)
    run, gram, own = start(network, inputs, VerletList(price))
    weight = network.weight.detach().numpy()
    reference = DenseReference(
        weight.copy(), weight.copy(), network.readout.detach().numpy(), network.threshold, 0.0, inputs
    )
    size = 10.0 ** generator.uniform(-3, 0) * np.sqrt(network.width) / (1 + (inputs**2).sum(1).max())
    for step in range(12):
        g = size * (20 if step == 8 else 1) * generator.standard_normal(run.outputs.shape) / (1 + step)
        update = Update(g, np.full(g.shape[1], 0.1 if step % 5 == 3 else 0.0))
        trial = run.propose(update, gram)
        if step % 3 == 0:
            other = run.propose(Update(-3 * g, update.shrink), gram)
            assert other.flips >= 0
        before = fires(run)
        run.commit(trial)
        reference.step(g, update.shrink)
        z = reference.preactivations()
        clear = np.abs(z - reference.threshold) > 1e-11 * (1 + np.abs(z).max())
        assert np.array_equal(fires(run)[clear], reference.fires()[clear])
        assert trial.flips == np.count_nonzero(before != fires(run))
        offset = (reference.weight - reference.initial).ravel()
        scale = 1 + np.abs(z).max()
        np.testing.assert_allclose(run.outputs, reference.outputs(), atol=1e-10 * scale)
        for output in range(g.shape[1]):
            response = reference.jacobian(output) @ offset
            np.testing.assert_allclose(run.displacement.response[:, output], response, atol=1e-9 * scale)
    offset = (reference.weight - reference.initial).ravel()
    np.testing.assert_allclose(run.displacement.squared_norm.sum(), offset @ offset, rtol=1e-9)
    np.testing.assert_allclose(own.weight.detach().numpy(), reference.weight, atol=1e-10 * (1 + np.abs(offset).max()))


def test_skins_and_threads_change_no_bit():
    inputs, targets = digits_parity(150)
    inputs = inputs.astype(np.float32)
    results = []
    for price, threads in [(0.1, 1), (0.1, 3), *((price, 1) for price in PRICES)]:
        network = TwoLayer(64, 2500, seed=4)
        training = Training(
            network, inputs, targets, rule=GradientDescent(), tracker=VerletList(price), max_iter=25, tol=0,
            threads=threads,
        )  # fmt: skip
        results.append((training.run().losses, network.weight.detach().numpy(), training.tracker_report))
    for losses, weight, _ in results[1:]:
        assert losses == results[0][0]
        assert np.array_equal(weight, results[0][1])
    evaluated = [report.pairs_evaluated for *_, report in results]
    assert evaluated[0] == evaluated[1] < 0.3 * 26 * 2500 * 150
    # No list but that of the skin that pays makes do with so little.
    assert evaluated[1] < min(evaluated[2], evaluated[4])


@pytest.mark.parametrize("threshold", ["auto", 0.0], ids=["shifted", "plain"])
def test_many_small_steps_follow_the_dense_tracker(threshold):
    inputs, targets = digits_parity(100)
    networks = [TwoLayer(64, 1 << 11, threshold=threshold, seed=4, dtype=torch.float64) for _ in range(2)]
    runs = []
    for network, tracker in zip(networks, ("verlet-list", "dense"), strict=True):
        training = Training(network, inputs, targets, rule=GradientDescent(), tracker=tracker, max_iter=120, tol=0)
        runs.append((training.run(), training.model._tracking))
    (mine, run), (theirs, dense) = runs
    np.testing.assert_allclose(mine.losses, theirs.losses, rtol=1e-9)
    assert np.count_nonzero(fires(run) != fires(dense)) <= 2
    assert run.report().flips == pytest.approx(dense.report().flips, rel=1e-3)
    torch.testing.assert_close(networks[0].weight, networks[1].weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1e200, np.inf, np.nan])
def test_an_overflow_shows_in_the_outputs(size):
    network, inputs = TwoLayer(4, 64, threshold=0.0, seed=1, dtype=torch.float64), np.eye(4)
    run, gram, _ = start(network, inputs, VerletList())
    with np.errstate(all="ignore"):
        for _ in range(2):
            run.commit(run.propose(Update(np.full((4, 1), size), np.zeros(1)), gram))
    assert not np.any(np.abs(run.outputs) < 1e100)


def test_the_second_layer_is_trained_too():
    inputs, targets = digits_parity(60)
    losses = []
    for tracker in ("verlet-list", "dense"):
        network = TwoLayer(64, 512, seed=4, dtype=torch.float64)
        rule = widefit.rules.SGD(batch_size=20, train_readout=True)
        losses.append(widefit.train(network, inputs, targets, rule=rule, tracker=tracker, max_iter=4, tol=0).losses)
    np.testing.assert_allclose(*losses, rtol=1e-9)
