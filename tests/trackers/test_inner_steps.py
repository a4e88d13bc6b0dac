"""Steps in sample space between two looks at the weights: the same pairs at every step, whatever is looked at."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DenseReference, digits_parity, sphere

import widefit
from widefit.callbacks import Callback
from widefit.gram import CurrentGrams
from widefit.nn import TwoLayer
from widefit.rules import GradientDescent
from widefit.trackers import Tracking, Update, VerletList
from widefit.trackers.verlet.block_forecast import BlockForecast
from widefit.trackers.verlet.forecast import Forecast
from widefit.trackers.verlet.near_lists import Lists


def fires(run: Tracking) -> np.ndarray:
    return np.concatenate([pattern.dense() for pattern in run.patterns()])


def dense(network: TwoLayer, inputs: np.ndarray) -> DenseReference:
    """The network in dense float64 matrices."""
    weight = network.weight.detach().numpy().astype(np.float64)
    readout, threshold = (
        network.readout.detach().numpy(),
        float(network.weight.detach().numpy().dtype.type(network.threshold)),
    )
    return DenseReference(weight.copy(), weight, readout.astype(np.float64), threshold, 0.0, inputs.astype(np.float64))


class Compare(Callback):
    """Every step against dense matrices."""

    def __init__(self, reference: DenseReference, targets: np.ndarray):
        self.reference, self.targets, self.inner = reference, targets, 0

    def start(self, run: Any):
        self.steps = run.stepper
        self.lr = self.steps._state.lr

    def step(self, run: Any, info):
        self.reference.step(self.lr * (self.reference.outputs() - self.targets), np.zeros(self.targets.shape[1]))
        assert np.array_equal(fires(self.steps.model._tracking), self.reference.fires())
        assert info.loss == pytest.approx(
            float(((self.reference.outputs() - self.targets) ** 2).sum(1).mean()), rel=1e-9
        )
        self.inner += self.steps.model._tracking._inner_steps.active


@pytest.mark.parametrize(
    ("dtype", "threshold", "outputs"),
    [(torch.float32, "auto", 1), (torch.float64, 0.0, 1), (torch.float64, "auto", 2)],
    ids=["float32", "plain", "two-outputs"],
)
def test_every_step_of_descent_has_the_pattern_of_dense_weights(dtype, threshold, outputs):
    inputs, targets = digits_parity(60)
    inputs = inputs.astype(np.float32 if dtype == torch.float32 else np.float64)
    targets = np.asarray(targets).reshape(-1, 1) * np.arange(1.0, outputs + 1)
    network = TwoLayer(64, 1 << 9, outputs, threshold=threshold, seed=4, dtype=dtype)
    compare = Compare(dense(network, inputs), targets)
    widefit.train(
        network,
        inputs,
        targets,
        rule=GradientDescent(),
        tracker="verlet-list",
        max_iter=110,
        tol=0,
        callbacks=[compare],
    )
    assert compare.inner > 50
    error = np.abs(network.weight.detach().numpy() - compare.reference.weight)
    assert error.max() < (1e-6 if dtype == torch.float32 else 1e-12)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_steps_that_wander_off_follow_dense_matrices(seed):
    """Steps along a line that jitter, turn, stop and jump; trials that come to nothing; readouts of any size."""
    generator = np.random.default_rng(seed)
    samples, width = int(generator.integers(1, 40)), 2 * int(generator.integers(2, 100))
    inputs = sphere(generator.standard_normal((samples, 3))) * generator.choice([1.0, 30.0])
    inputs[generator.random(samples) < 0.2] = inputs[0]
    inputs[generator.random(samples) < 0.05] = 0
    network = TwoLayer(3, width, threshold=float(generator.choice([0.0, 0.7])), seed=seed, dtype=torch.float64)
    if generator.random() < 0.5:
        with torch.no_grad():
            network.readout.mul_(torch.from_numpy(generator.uniform(0.5, 2, network.readout.shape)))
    reference = dense(network, inputs)
    run = VerletList().start(network, inputs, threads=2)
    grams = CurrentGrams(run, inputs @ inputs.T, network.coefficients, held=1)
    size = 10.0 ** generator.uniform(-5, -1.5) * np.sqrt(width) / (1 + (inputs**2).sum(1).max())
    line, flips = generator.standard_normal((samples, 1)), 0
    for step in range(30):
        if step % 13 == 12:
            line = generator.standard_normal((samples, 1)) * generator.choice([0.0, 0.1, 20.0])
        g = size * (line + 10.0 ** generator.uniform(-3, 0) * generator.standard_normal((samples, 1)) * (step % 3 == 0))
        trial = run.propose(Update(g, np.zeros(1)), grams)
        if step % 7 == 3:
            run.propose(Update(-100 * g, np.zeros(1)), grams)
        before = fires(run)
        grams.follow(trial.changes)
        run.commit(trial)
        reference.step(g, np.zeros(1))
        z = reference.preactivations()
        clear = np.abs(z - reference.threshold) > 1e-11 * (1 + np.abs(z).max())
        assert np.array_equal(fires(run)[clear], reference.fires()[clear])
        assert trial.flips == np.count_nonzero(before != fires(run))
        scale = 1 + np.abs(z).max()
        np.testing.assert_allclose(run.outputs, reference.outputs(), atol=1e-10 * scale)
        flips += trial.flips
    assert run.report().flips == flips
    run.finish()
    np.testing.assert_allclose(network.weight.detach().numpy(), reference.weight, atol=1e-10 * scale)


class Keep(Callback):
    """The state after a step, if any, and the weights that others see."""

    def __init__(self, at: int | None):
        self.at, self.seen = at, []

    def step(self, run: Any, info):
        if info.step == self.at:
            tensors, document = run.state()
            self.kept = {name: tensor.clone() for name, tensor in tensors.items()}, document
            self.inner = run.stepper.model._tracking._inner_steps.active


@pytest.mark.parametrize("at", [3, 110], ids=["before", "between-looks"])
def test_resuming_goes_on_to_the_same_bits(at):
    inputs, targets = digits_parity(60)
    inputs = inputs.astype(np.float32)
    ends, arguments = [], {"rule": GradientDescent(), "tracker": "verlet-list", "max_iter": 130, "tol": 0}
    for kept in (None, at):
        network, keep = TwoLayer(64, 1 << 9, seed=4), Keep(kept)
        history = widefit.train(network, inputs, targets, callbacks=[keep], metric=lambda network: 0.0, **arguments)
        ends.append((history.losses, network.weight.detach().numpy()))
    assert keep.inner == (at == 110)
    network = TwoLayer(64, 1 << 9, seed=4)
    history = widefit.train(network, inputs, targets, resume=keep.kept, metric=lambda network: 0.0, **arguments)
    ends.append((history.losses, network.weight.detach().numpy()))
    for losses, weight in ends[1:]:
        assert losses == ends[0][0]
        assert np.array_equal(weight, ends[0][1])


def test_others_see_the_weights_between_looks():
    inputs, targets = digits_parity(60)
    network = TwoLayer(64, 1 << 9, seed=4, dtype=torch.float64)

    def metric(seen: TwoLayer) -> float:
        with torch.no_grad():
            return float(((seen(torch.from_numpy(inputs))[:, 0].numpy() - np.asarray(targets)) ** 2).mean())

    history = widefit.train(
        network, inputs, targets, rule=GradientDescent(), tracker="verlet-list", max_iter=120, tol=0, metric=metric
    )
    assert max(abs((info.metric or 0) / info.loss - 1) for info in history) < 1e-9


@given(st.integers(0, 10**6))
def test_a_forecast_that_holds_bounds_every_row(seed):
    """The sum s stays as near to the line as it says, for any samples that fire."""
    generator = np.random.default_rng(seed)
    samples = int(generator.integers(1, 30))
    norms = generator.uniform(0, 2, samples)
    first = generator.standard_normal(samples)
    forecast = Forecast.of(first, 8.0, None, norms, 1e-9)
    total, path = np.zeros(samples), np.zeros(samples)
    for _ in range(10):
        g = first + generator.uniform(0, 0.5) * generator.standard_normal(samples)
        total, path = total + g, path + np.abs(g)
        if not forecast.holds(total, path):
            break
        theta, _ = forecast.along(total)
        assert 0 <= theta <= forecast.stretch
        row = generator.random(samples) < 0.5
        off = np.abs(total - theta * first) * norms
        assert off[row].sum() <= forecast.deviation[row.sum()] * (1 + 1e-12)
        assert np.all(path * norms <= forecast.swing * (1 + 1e-9))


@given(st.integers(0, 10**6), st.sampled_from([-1, 1]))
def test_no_pair_but_the_near_ones_can_be_driven_over_the_threshold(seed, sign):
    """The worst steps that the forecast covers do not, nor the worst that the near pairs can do meanwhile."""
    generator = np.random.default_rng(seed)
    samples, rows = int(generator.integers(2, 30)), 20
    # Nearly one direction: bounds on norms are nearly attained.
    inputs = np.column_stack([np.ones(samples), 0.1 * generator.standard_normal(samples)]) * generator.uniform(0.5, 2)
    weights = np.column_stack([0.3 * generator.standard_normal(rows), generator.standard_normal(rows)])
    norms, coefficients = np.linalg.norm(inputs, axis=1), generator.choice([-0.1, 0.1], rows)
    first = generator.standard_normal(samples) * 0.03
    forecast = Forecast.of(first, 4.0, None, norms, 0.0)
    z = weights @ inputs.T
    lists = Lists(
        samples * np.arange(rows + 1), np.tile(np.arange(samples, dtype=np.uint16), rows), (z > 0).ravel(),
        *np.zeros((3, rows)),
    )  # fmt: skip
    ahead = BlockForecast.of(forecast, weights, coefficients, inputs, lists)
    near, reached = ahead.near(lists, z.ravel(), norms, np.full(rows, 1e-13))
    if near is None:
        return
    similarity, near = inputs @ inputs.T, near.reshape(z.shape)
    for r in range(rows):
        fired = z[r] > 0
        if not fired.any():
            continue
        off = sign * fired * forecast.deviation[fired.sum()] / fired.sum() / norms
        off = off + sign * near[r] * forecast.swing / norms
        for theta in (0.0, forecast.stretch):
            moved = z[r] - coefficients[r] * (theta * first * fired + off) @ similarity
            assert np.all(near[r] | ((moved > 0) == fired))
            assert np.all(np.abs(moved - z[r]) <= reached[r] * norms * (1 + 1e-9))
