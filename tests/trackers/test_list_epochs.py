"""Stochastic steps on lists of near pairs take the steps that products take: any skins, batches and threads."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import digits_parity, sphere

from widefit.gram import CurrentGrams
from widefit.nn import TwoLayer
from widefit.rules import SGD
from widefit.trackers import Dense, Minibatches, Tracker, Tracking, VerletList
from widefit.trackers.verlet import epochs as list_epochs
from widefit.training.train import Training

# Skins that nothing stays in, skins that pay, and skins that nothing leaves.
PRICES = [0.0, 0.1, 1e6]


def start(network: TwoLayer, inputs: np.ndarray, tracker: Tracker, threads: int = 1) -> tuple:
    """A run on a copy of the network, what it needs to descend, and the copy."""
    own = copy.deepcopy(network)
    run = tracker.start(own, inputs, threads=threads)
    return run, CurrentGrams(run, inputs @ inputs.T, own.coefficients, held=own.out_features), own


def problem(generator: np.random.Generator) -> tuple[TwoLayer, np.ndarray]:
    """Plain and shifted ReLU, one output and three, duplicates and rows of zeros, a sample or many."""
    samples = 1 if generator.random() < 0.2 else int(generator.integers(2, 50))
    features = int(generator.integers(1, 6))
    outputs = int(generator.choice([1, 3]))
    inputs = sphere(generator.standard_normal((samples, features))) * generator.choice([1.0, 1e3])
    inputs[generator.random(samples) < 0.2] = inputs[0]
    inputs[generator.random(samples) < 0.05] = 0
    threshold = float(generator.choice([0.0, generator.uniform(-0.5, 1.5)]))
    network = TwoLayer(
        features, outputs * int(generator.integers(2, 150)), outputs, threshold=threshold, seed=1, dtype=torch.float64
    )
    with torch.no_grad():
        network.weight.mul_(float(generator.choice([0.0, 1e-3, 1.0])))
    return network, inputs


def batches(generator: np.random.Generator, inputs: np.ndarray, outputs: int, rate: float) -> Minibatches:
    """Visits in any order: some samples several times, others never, the last batch short."""
    samples = len(inputs)
    size = int(generator.integers(1, samples + 1))
    order = [generator.permutation(samples)[:size] for _ in range(int(generator.integers(1, 5)))]
    short = generator.permutation(samples)[: generator.integers(1, size + 1)]
    edges = np.append(size * np.arange(len(order) + 1), size * len(order) + short.size)
    loss = str(generator.choice(["squared", "logistic", "softmax"])) if outputs > 1 else "squared"
    targets = generator.standard_normal((samples, outputs))
    if loss == "logistic":
        targets = np.sign(targets)
    if loss == "softmax":
        targets = np.eye(outputs)[targets.argmax(axis=1)]
    rates = rate * generator.uniform(0.1, 1.0, edges.size - 1)
    weight = generator.uniform(0.5, 1.5, samples)
    return Minibatches(np.concatenate([*order, short]), edges, rates, targets, weight, loss)


def weights(run: Tracking, network: TwoLayer) -> np.ndarray:
    out = np.empty((network.width, network.in_features))
    run.write_weights(out)
    return out


def fires(run: Tracking) -> np.ndarray:
    return np.concatenate([pattern.dense() for pattern in run.patterns()])


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(PRICES))
def test_steps_are_those_of_the_dense_tracker(seed, price):
    generator = np.random.default_rng(seed)
    network, inputs = problem(generator)
    run, gram, mine = start(network, inputs, VerletList(price))
    dense, other, theirs = start(network, inputs, Dense())
    # From steps within every skin to some that lead out in the middle of an epoch.
    rate = 10.0 ** generator.uniform(-2, 0) * network.out_features / (1 + (inputs**2).sum(1).max()) / len(inputs)
    for epoch in range(6):
        steps = batches(generator, inputs, network.out_features, rate * (5 if epoch == 3 else 1))
        before = fires(run)
        flips = run.descend(steps, gram)
        dense.descend(steps, other)
        assert flips == np.count_nonzero(before != fires(run))
        weight = weights(dense, theirs)
        z = weight @ inputs.T
        scale = 1 + np.abs(z).max()
        np.testing.assert_allclose(weights(run, mine), weight, atol=1e-10 * (1 + np.abs(weight).max()))
        np.testing.assert_allclose(run.outputs, dense.outputs, atol=1e-10 * scale)
        clear = np.abs(z - network.threshold) > 1e-10 * scale
        assert np.array_equal(fires(run)[clear], fires(dense)[clear])


def trained(tracker: Tracker, threads: int, dtype: torch.dtype, **settings) -> tuple[Training, TwoLayer]:
    inputs, targets = digits_parity(100)
    network = TwoLayer(64, 1500, seed=4, dtype=dtype)
    inputs = inputs.astype(network.weight.detach().numpy().dtype)
    training = Training(
        network, inputs, targets, rule=SGD(**settings), tracker=tracker, max_iter=10, tol=0, threads=threads
    )
    training.run()
    return training, network


@pytest.mark.parametrize("settings", [{"batch_size": 32}, {"batch_size": 1, "loss": "logistic", "schedule": "cosine"}])
def test_digits(settings):
    (mine, own), (dense, other) = (trained(kind, 1, torch.float64, **settings) for kind in (VerletList(), Dense()))
    np.testing.assert_allclose(mine.history.losses, dense.history.losses, rtol=1e-8)
    torch.testing.assert_close(own.weight, other.weight, rtol=0, atol=1e-8)
    assert mine.tracker_report.flips == pytest.approx(dense.tracker_report.flips, rel=1e-2)
    assert mine.tracker_report.pairs_evaluated < 0.5 * dense.tracker_report.pairs_evaluated
    assert mine.tracker_report.full_passes == 2


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(list_epochs, "_PART", 200)
    results = [trained(VerletList(), threads, torch.float32) for threads in (1, 3)]
    assert results[0][0].history.losses == results[1][0].history.losses
    assert torch.equal(results[0][1].weight, results[1][1].weight)


def test_weights_that_are_brought_up_to_date_in_between_change_nothing_but_rounding(monkeypatch):
    whole, own = trained(VerletList(), 1, torch.float64)
    monkeypatch.setattr(list_epochs, "_VISITS", 64)
    often, other = trained(VerletList(), 1, torch.float64)
    np.testing.assert_allclose(often.history.losses, whole.history.losses, rtol=1e-8)
    torch.testing.assert_close(own.weight, other.weight, rtol=0, atol=1e-8)


def test_neurons_that_leave_their_skins_are_followed_by_products():
    """After quiet epochs one that moves all: more is evaluated than the listed pairs, and less than everything."""
    generator = np.random.default_rng(0)
    inputs = sphere(generator.standard_normal((200, 20)))
    network = TwoLayer(20, 600, seed=2, dtype=torch.float64)
    (run, gram, mine), (dense, other, theirs) = (start(network, inputs, kind) for kind in (VerletList(), Dense()))
    evaluated = []
    for rate in (0.02, 0.02, 0.02, 4.0, 0.02):
        order, edges = generator.permutation(200), np.append(np.arange(0, 200, 32), 200)
        steps = Minibatches(order, edges, np.full(7, rate), np.ones((200, 1)), np.ones(200))
        before = run.report().pairs_evaluated
        run.descend(steps, gram)
        dense.descend(steps, other)
        evaluated.append(run.report().pairs_evaluated - before)
        np.testing.assert_allclose(weights(run, mine), weights(dense, theirs), rtol=0, atol=1e-10)
    assert evaluated[2] < 0.5 * 200 * 600 < evaluated[3]


def test_resumes_to_the_same_bits():
    inputs, targets = digits_parity(100)
    inputs = inputs.astype(np.float32)
    settings = {"rule": SGD(0.5), "tracker": VerletList(), "tol": 0}
    networks = [TwoLayer(64, 1000, seed=4) for _ in range(3)]
    history = Training(networks[0], inputs, targets, max_iter=9, **settings).run()
    part = Training(networks[1], inputs, targets, max_iter=4, **settings)
    part.run()
    again = Training(networks[2], inputs, targets, max_iter=9, **settings).run(resume=part.state())
    assert again.losses == history.losses
    assert torch.equal(networks[2].weight, networks[0].weight)


@pytest.mark.parametrize("scale", [1e150, np.nan])
def test_weights_that_overflow_are_seen(scale):
    inputs = sphere(np.random.default_rng(0).standard_normal((30, 4)))
    run, gram, _ = start(TwoLayer(4, 100, seed=0, dtype=torch.float64), inputs, VerletList())
    with np.errstate(all="ignore"):
        for rate in (1e-3, 1e-3, scale, scale, scale):
            steps = Minibatches(np.arange(30), np.array([0, 15, 30]), np.full(2, rate), np.ones((30, 1)), np.ones(30))
            run.descend(steps, gram)
    assert not np.all(np.isfinite(run.outputs))
