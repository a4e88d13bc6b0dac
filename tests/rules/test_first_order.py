"""Gradient descent and SGD against autograd on the network: steps, schedules, line search, losses, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import NAMES, DenseReference, digits_parity, make

import widefit
from widefit.callbacks import Callback
from widefit.nn import TwoLayer
from widefit.rules import SGD, GradientDescent, NetworkProblem, Objective
from widefit.trackers import Dense, Tracking
from widefit.trackers.dense import DenseTracking
from widefit.training.train import Training

LOSSES = {
    "squared": lambda f, y: 0.5 * (f - y).square().sum(1),
    "logistic": lambda f, y: torch.nn.functional.softplus(-y * f).sum(1),
    "softmax": lambda f, y: torch.nn.functional.cross_entropy(f, y, reduction="none"),
}


def encoded(targets: np.ndarray, loss: str) -> np.ndarray:
    if loss == "logistic":
        return np.where(targets > 0, 1.0, -1.0)
    return np.eye(targets.shape[1])[targets.argmax(axis=1)] if loss == "softmax" else targets


def descend(network, x, y, weight, loss, lr, alpha=0.0, anchor=None, part=1.0):
    """One step of plain autograd: W ← W − lr ∇ [Σ ω ℓ + α part / 2 ‖W − W₀‖²]."""
    network.weight.grad = None
    objective = (weight * LOSSES[loss](network(x), y)).sum()
    if alpha:
        objective = objective + alpha * part / 2 * (network.weight - anchor).square().sum()
    objective.backward()
    with torch.no_grad():
        network.weight -= lr * network.weight.grad


CASES = [(name, "squared") for name in NAMES]
CASES += [(name, "logistic") for name in ("random", "three outputs", "floored", "duplicates", "nothing fires")]
CASES += [("three outputs", "softmax")]


@pytest.mark.parametrize(("name", "loss"), CASES, ids=str)
def test_epochs_are_steps_of_autograd(name, loss):
    """Three epochs with sample weights, ridge, a short last batch and a rate that falls."""
    problem, alpha = make(name, torch.float64), 0.1
    samples = problem.inputs.shape[0]
    size = 0.5 / max(1.0, float(np.abs(problem.inputs).max())) ** 2
    rule = SGD(size, batch_size=max(1, samples // 3 + 1), schedule="inverse", decay=0.7, loss=loss, seed=4)
    weights = np.random.default_rng(1).uniform(0.5, 1.5, samples)
    targets, network, expected = encoded(problem.targets, loss), problem.fresh(), problem.fresh()
    x, y, weight = torch.from_numpy(problem.inputs), torch.from_numpy(targets), torch.from_numpy(weights)
    losses = [LOSSES[loss](expected(x), y).detach()]
    for epoch in range(3):
        order = np.random.Generator(np.random.Philox(key=np.array([4, epoch], np.uint64))).permutation(samples)
        batches = [order[first : first + rule.batch_size] for first in range(0, samples, rule.batch_size)]
        for step, batch in enumerate(batches):
            lr = size / (1 + 0.7 * (epoch + step / len(batches)))
            part = len(batch) / samples
            descend(expected, x[batch], y[batch], weight[batch], loss, lr, alpha, problem.network.weight.detach(), part)
        losses.append(LOSSES[loss](expected(x), y).detach())
    history = widefit.train(network, x, y, rule=rule, sample_weight=weights, alpha=alpha, max_iter=3, tol=0)
    scale = float(expected.weight.detach().abs().max())
    torch.testing.assert_close(network.weight, expected.weight, rtol=1e-8, atol=1e-9 * scale)
    factor = 2 if loss == "squared" else 1
    wanted = [factor * float((weight * values).sum()) / weights.sum() for values in losses]
    np.testing.assert_allclose(history.losses, wanted, rtol=1e-7, atol=1e-12)
    assert [info.rebased for info in history[1:]] == [True] * (len(history) - 1)


@settings(max_examples=25)
@given(
    st.integers(1, 70), st.integers(1, 80), st.integers(0, 5), st.integers(0, 2**64 - 1),
    st.sampled_from(["constant", "inverse", "cosine"]), st.booleans(),
)  # fmt: skip
def test_an_epoch_visits_every_sample_once(samples, batch, number, seed, schedule, shuffle):
    rule = SGD(0.5, batch, schedule, seed=seed, shuffle=shuffle, period=3)
    objective = Objective(np.zeros((samples, 1)), np.ones(samples), 0.25)
    epoch = rule.epoch(objective, number, 0.5)
    assert sorted(epoch.samples) == list(range(samples))
    assert shuffle or list(epoch.samples) == list(range(samples))
    sizes = [epoch.batch(step).size for step in range(len(epoch))]
    assert sizes[:-1] == [min(batch, samples)] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= batch
    again = rule.epoch(objective, number, 0.5)
    assert np.array_equal(epoch.samples, again.samples)
    for step, size in enumerate(sizes):
        time = number + step / len(sizes)
        wanted = {
            "constant": 0.5,
            "inverse": 0.5 / (1 + 0.1 * time),
            "cosine": 0.25 * (1 + math.cos(math.pi * math.fmod(time, 3) / 3)),
        }[schedule]
        assert epoch.rates[step] == pytest.approx(wanted, rel=1e-12)
        assert epoch.pull(step) == pytest.approx(wanted * 0.25 * size / samples, rel=1e-12)


def test_epochs_differ_from_each_other():
    objective = Objective(np.zeros((50, 1)), np.ones(50), 0.0)
    orders = {tuple(SGD(seed=seed).epoch(objective, epoch, 1.0).samples) for seed in (0, 1) for epoch in range(4)}
    assert len(orders) == 8


class StepByStep(Dense):
    """A tracker that takes every minibatch step with all samples in view."""

    def start(self, network, inputs, *, anchor=None, threads=1, state=None, expected=None):
        return StepByStepTracking(network, inputs, anchor, threads)


class StepByStepTracking(DenseTracking):
    descend = Tracking.descend


def test_the_tracker_does_not_matter():
    problem = make("digits", torch.float64)
    weights, losses = [], []
    for tracker in (Dense(), StepByStep()):
        network = problem.fresh()
        history = widefit.train(
            network, problem.inputs, problem.targets, rule="sgd", tracker=tracker, alpha=0.01, max_iter=2, tol=0
        )
        weights.append(network.weight.detach())
        losses.append(history.losses)
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(*losses, rtol=1e-9)


def test_threads_do_not_change_a_bit():
    problem = make("digits", torch.float32)
    networks = [problem.fresh() for _ in range(3)]
    for network, threads in zip(networks, (1, 2, 3), strict=True):
        widefit.train(
            network, problem.inputs, problem.targets, rule="sgd", threads=threads, alpha=0.01, max_iter=3, tol=0
        )
    assert torch.equal(networks[0].weight, networks[1].weight)
    assert torch.equal(networks[0].weight, networks[2].weight)


class KeepState(Callback):
    """The state after a step."""

    def __init__(self, at: int):
        self.at, self.kept = at, None

    def step(self, run, info):
        if info.step == self.at:
            tensors, document = run.state()
            self.kept = ({name: tensor.clone() for name, tensor in tensors.items()}, document)


@pytest.mark.parametrize(
    "rule", [SGD(schedule="cosine", period=3), GradientDescent(schedule="inverse"), GradientDescent(4.0, "line-search")]
)
def test_resuming_continues_to_the_same_bits(rule):
    problem = make("digits", torch.float32)
    whole, resumed, keep = problem.fresh(), problem.fresh(), KeepState(2)
    arguments = {"rule": rule, "alpha": 0.01, "max_iter": 5, "tol": 0}
    history = widefit.train(whole, problem.inputs, problem.targets, callbacks=[keep], **arguments)
    again = widefit.train(resumed, problem.inputs, problem.targets, resume=keep.kept, **arguments)
    assert torch.equal(whole.weight, resumed.weight)
    assert again.losses == history.losses
    assert len(history) == 6


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nothing fires"])
def test_the_automatic_rate_descends(name):
    problem = make(name, torch.float32)
    for rule in (SGD(batch_size=8), SGD(batch_size=10**9)):
        history = widefit.train(problem.fresh(), problem.inputs, problem.targets, rule=rule, max_iter=3, tol=0)
        assert min(history.losses[-2:]) < history.losses[0]
        assert history.stop_reason == "max_iter"


def linearization(problem, weights, alpha, kind="squared"):
    reference = DenseReference.of(problem)
    outputs = range(problem.network.out_features)
    grams = [widefit.gram.DenseGram(torch.from_numpy(reference.gram(k))) for k in outputs]
    objective = Objective(encoded(problem.targets, kind), weights, alpha, kind)
    return reference, NetworkProblem(objective, reference.outputs(), None, grams.__getitem__)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_the_automatic_rate_is_the_one_of_the_paper(kind, batch):
    problem = make("three outputs", torch.float64, width=60)
    weights = np.random.default_rng(0).uniform(0.5, 2, 40)
    reference, view = linearization(problem, weights, 0.3, kind)
    root = np.sqrt(weights)
    grams = [root[:, None] * reference.gram(k) * root for k in range(3)]
    largest = max(np.linalg.eigvalsh(gram)[-1] for gram in grams)
    diagonal = max(gram.diagonal().max() for gram in grams)
    curvature = {"squared": 1, "logistic": 0.25, "softmax": 0.5}[kind]
    exact = 1 / (curvature * (diagonal + (batch - 1) * largest / 40) + 0.3 * batch / 40)
    assert SGD(batch_size=batch, loss=kind).start(view).lr == pytest.approx(exact, rel=0.011)
    exact = 1 / (curvature * largest + 0.3)
    assert GradientDescent(loss=kind).start(view).lr == pytest.approx(exact, rel=0.011)


def test_some_of_many_samples_stand_for_all_in_the_automatic_rate(monkeypatch):
    problem = make("digits", torch.float64, width=256)
    weights = np.random.default_rng(0).uniform(0.5, 2, len(problem.inputs))

    def rate() -> float:
        settings = {"rule": "sgd", "sample_weight": weights, "alpha": 0.3, "max_iter": 0}
        run = Training(problem.fresh(), problem.inputs, problem.targets, **settings)
        run.run()
        return run.state()[1]["state"]["lr"]

    whole = rate()
    monkeypatch.setattr("widefit.training.two_layer.ESTIMATE_SAMPLES", len(problem.inputs) // 3)
    assert rate() == pytest.approx(whole, rel=0.3)
    assert rate() != whole


def test_minibatches_of_many_samples_need_no_square_matrices():
    X = torch.nn.functional.normalize(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)))
    network = widefit.nn.TwoLayer(3, 64, seed=0)
    history = widefit.train(network, X, X[:, 0], rule=SGD(batch_size=100), max_iter=1, memory=10**9)
    assert history.losses[-1] < history.losses[0]
    with pytest.raises(MemoryError, match="train_stream"):
        widefit.train(network, X, X[:, 0], rule="sgd", memory=10**7)


def test_nothing_to_descend():
    problem = make("nothing fires", torch.float64)
    network = problem.fresh()
    for rule in ("sgd", GradientDescent(schedule="inverse"), GradientDescent(schedule="line-search")):
        history = widefit.train(network, problem.inputs, problem.targets, rule=rule, max_iter=3, tol=0)
        assert history.losses == [history.losses[0]] * len(history)
        assert torch.equal(network.weight, problem.network.weight)
    assert history.stop_reason == "converged"


def test_classification_with_the_losses_of_classification():
    inputs, parity = digits_parity(300)
    targets = {"logistic": parity[:, None], "softmax": np.stack([parity > 0, parity < 0], axis=1).astype(float)}
    for loss, y in targets.items():
        network = TwoLayer(64, 2048, y.shape[1])
        history = widefit.train(network, inputs, y, rule=SGD(loss=loss, batch_size=16), max_iter=15, tol=0)
        outputs = network(torch.from_numpy(inputs).float()).detach().numpy()
        predicted = np.sign(outputs[:, 0] if loss == "logistic" else outputs[:, 0] - outputs[:, 1])
        assert np.mean(predicted == parity) > 0.97
        assert history.losses[-1] < 0.3 * history.losses[0]
        exact = LOSSES[loss](torch.from_numpy(outputs).double(), torch.from_numpy(y)).mean()
        assert history.losses[-1] == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "inverse", "cosine"])
@pytest.mark.parametrize(
    ("name", "loss"), [("three outputs", "softmax"), ("floored", "logistic"), ("random", "squared")]
)
def test_schedules_of_gradient_descent(name, loss, schedule):
    problem = make(name, torch.float64)
    targets, network, expected = encoded(problem.targets, loss), problem.fresh(), problem.fresh()
    x, y, ones = torch.from_numpy(problem.inputs), torch.from_numpy(targets), torch.ones(problem.inputs.shape[0])
    for step in range(5):
        lr = {
            "constant": 0.2,
            "inverse": 0.2 / (1 + 0.3 * step),
            "cosine": 0.1 * (1 + math.cos(math.pi * (step % 4) / 4)),
        }[schedule]
        descend(expected, x, y, ones, loss, lr, 0.1, problem.network.weight.detach())
    rule = GradientDescent(0.2, schedule, loss, decay=0.3, period=4)
    widefit.train(network, x, y, rule=rule, alpha=0.1, max_iter=5, tol=0)
    torch.testing.assert_close(network.weight, expected.weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "lr", "alpha"), [("squared", "auto", 0.2), ("squared", 300.0, 0.0), ("logistic", 1e-2, 0.2)]
)
def test_line_search_is_armijo_on_the_network(alpha, lr, loss):
    """The same search by autograd on the whole network takes the same steps."""
    problem = make("random", torch.float64)
    targets, network, expected = encoded(problem.targets, loss), problem.fresh(), problem.fresh()
    x, y, anchor = torch.from_numpy(problem.inputs), torch.from_numpy(targets), problem.network.weight.detach()
    losses, flips = [], []

    def value(weight):
        f = torch.relu(x @ weight.T - network.threshold) @ network.readout / math.sqrt(network.width)
        return LOSSES[loss](f, y).sum() + alpha / 2 * (weight - anchor).square().sum()

    rule = GradientDescent(lr, "line-search", loss)
    history = widefit.train(network, x, y, rule=rule, alpha=alpha, max_iter=6, tol=0)
    rate = rule.start(linearization(problem, np.ones(40), alpha, loss)[1]).lr
    for _ in range(6):
        weight = expected.weight.detach().clone().requires_grad_()
        before = value(weight)
        before.backward()
        slope, first = float(weight.grad.square().sum()), True
        while float(value(weight.detach() - rate * weight.grad)) > float(before.detach()) - 0.3 * rate * slope:
            rate, first = rate / 2, False
        moved = weight.detach() - rate * weight.grad
        fires = [w.detach() @ x.T > network.threshold for w in (weight, moved)]
        flips.append(int((fires[0] != fires[1]).sum()))
        expected.weight.data = moved
        rate = 2 * rate if first else rate
        losses.append(float(value(moved)))
    torch.testing.assert_close(network.weight, expected.weight, rtol=1e-9, atol=1e-9)
    assert [info.flips for info in history[1:]] == flips
    assert all(info.accepted for info in history)
    assert losses == sorted(losses, reverse=True)


def test_a_line_search_that_finds_nothing_stalls():
    problem = make("one sample", torch.float64)
    network = problem.fresh()
    rule = GradientDescent(1e30, "line-search")
    history = widefit.train(network, problem.inputs, problem.targets, rule=rule, alpha=0.5, max_iter=30, tol=0)
    assert (history.stop_reason, len(history)) == ("stalled", 2)
    assert not history[-1].accepted
    assert history.losses[1] == history.losses[0]
    assert torch.equal(network.weight, problem.network.weight)


def test_a_line_search_ends_at_the_minimum():
    problem = make("one sample", torch.float64)
    network = problem.fresh()
    rule = GradientDescent(schedule="line-search")
    history = widefit.train(network, problem.inputs, problem.targets, rule=rule, alpha=0.5, max_iter=50, tol=0)
    assert history.stop_reason in ("stalled", "converged")
    assert not history[-1].accepted
    assert history.losses[-1] == history.losses[-2]
    weight = network.weight.detach().clone().requires_grad_()
    f = torch.relu(torch.from_numpy(problem.inputs) @ weight.T - network.threshold) @ network.readout
    residual = f / math.sqrt(network.width) - torch.from_numpy(problem.targets)
    (residual.square().sum() + 0.5 * (weight - problem.network.weight.detach()).square().sum()).backward()
    assert float(weight.grad.abs().max()) < 1e-6


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lr", [1e4, 1e30, 1e300])
def test_divergence_is_noticed(lr):
    problem = make("digits", torch.float32)
    for rule in (SGD(lr), GradientDescent(lr)):
        network = problem.fresh()
        history = widefit.train(network, problem.inputs, problem.targets, rule=rule, max_iter=30)
        assert history.stop_reason == "diverged"
        assert len(history) <= 30
    assert torch.isfinite(network.weight).all()
    history = widefit.train(
        problem.fresh(), problem.inputs, problem.targets, rule=GradientDescent(1e4, "line-search"), max_iter=3
    )
    assert history.losses[-1] < history.losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, 'lr must be a positive number or "auto", got 0.0'),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": "fast"}, "lr must be"),
        ({"lr": True}, "lr must be"),
        ({"schedule": "linear"}, "schedule must be one of 'constant', 'inverse', 'cosine'"),
        ({"loss": "hinge"}, r"loss must be one of 'squared', 'logistic', .*, got 'hinge'"),
        ({"decay": -1.0}, "decay must be a finite number ≥ 0"),
        ({"period": 0}, "period must be an integer ≥ 1"),
        ({"batch_size": 0}, "batch_size must be an integer ≥ 1, got 0"),
        ({"seed": -1}, "seed must be an integer ≥ 0 and below"),
        ({"seed": 2**64}, "seed must be"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        SGD(**change)
    if not change.keys() & {"batch_size", "seed"}:
        with pytest.raises(ValueError, match=message):
            GradientDescent(**change)


def test_sgd_has_no_line_search():
    with pytest.raises(ValueError, match="schedule must be one of"):
        SGD(schedule="line-search")


@pytest.mark.parametrize(
    ("loss", "message"),
    [("logistic", r'y must be ±1 for loss="logistic", got \[.*\] in row 0'), ("softmax", "class probabilities")],
)
def test_targets_that_a_loss_cannot_take(loss, message):
    problem = make("three outputs", torch.float32)
    with pytest.raises(ValueError, match=message):
        widefit.train(problem.fresh(), problem.inputs, problem.targets, rule=SGD(loss=loss))


def test_gauss_newton_takes_the_logistic_loss_output_by_output():
    problem = make("three outputs", torch.float64)
    signs = np.where(problem.targets > 0, 1.0, -1.0)
    history = widefit.train(problem.fresh(), problem.inputs, signs, loss="logistic", max_iter=6)
    assert history.losses == sorted(history.losses, reverse=True)
    assert history.losses[-1] < 0.5 * history.losses[0]


@pytest.mark.parametrize("rule", [SGD, GradientDescent])
def test_a_loss_without_a_largest_curvature_takes_a_rate(rule) -> None:
    with pytest.raises(ValueError, match=r"'poisson' has no largest second derivative.*give lr a number"):
        rule(loss="poisson")
    x = np.random.default_rng(0).standard_normal((40, 3))
    y = np.random.default_rng(1).poisson(np.exp(x[:, 0])).astype(float)
    losses = widefit.train(
        TwoLayer(3, 64, seed=0), x, y, rule=rule(loss="poisson", lr=0.01), max_iter=3, tol=0.0
    ).losses
    assert losses[-1] < 0.9 * losses[0]
