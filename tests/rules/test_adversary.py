"""Adversarial training against autograd on the network: the points, the steps, what is left of the accuracy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import digits_parity, make

import widefit
from widefit.callbacks import Callback
from widefit.nn import TwoLayer
from widefit.rules import PGD, SGD, RobustAccuracy
from widefit.trackers import Certificate, DataTree, Dense, HalfSpaceTree, WeightTree

LOSSES = {
    "squared": lambda f, y: 0.5 * (f - y).square().sum(),
    "logistic": lambda f, y: torch.nn.functional.softplus(-y * f).sum(),
    "softmax": lambda f, y: torch.nn.functional.cross_entropy(f, y, reduction="sum"),
}
TRACKERS = [Dense(), HalfSpaceTree(leaf_size=8)]


def encoded(targets: np.ndarray, loss: str) -> np.ndarray:
    if loss == "logistic":
        return np.where(targets > 0, 1.0, -1.0)
    return np.eye(targets.shape[1])[targets.argmax(axis=1)] if loss == "softmax" else targets


def attacked(network, x, y, loss, adversary):
    """Projected gradient ascent by autograd, row by row where the norm is that of a row."""
    length = 2.5 * adversary.radius / adversary.steps
    at = x.clone()
    for _ in range(adversary.steps):
        at.requires_grad_()
        (slope,) = torch.autograd.grad(LOSSES[loss](network(at), y), at)
        if adversary.norm == "linf":
            offset = (at.detach() + length * slope.sign() - x).clamp(-adversary.radius, adversary.radius)
        else:
            offset = at.detach() + length * torch.nn.functional.normalize(slope, eps=1e-300) - x
            offset = torch.stack([row * min(1.0, adversary.radius / max(float(row.norm()), 1e-300)) for row in offset])
        at = x + offset
    return at


CASES = [
    ("random", "squared", "linf"),
    ("random", "logistic", "l2"),
    ("three outputs", "softmax", "linf"),
    ("three outputs", "squared", "l2"),
    ("floored", "squared", "l2"),
    ("plain relu", "logistic", "linf"),
    ("duplicates", "squared", "linf"),
    ("zero rows", "squared", "l2"),
    ("one sample", "squared", "linf"),
    ("one feature", "squared", "l2"),
    ("nothing fires", "logistic", "l2"),
    ("huge", "squared", "l2"),
]


@pytest.mark.parametrize("tracker", TRACKERS, ids=lambda tracker: tracker.name)
@pytest.mark.parametrize(("name", "loss", "norm"), CASES)
def test_epochs_are_steps_of_autograd_at_the_perturbed_points(name, loss, norm, tracker):
    problem = make(name, torch.float64)
    scale, samples = float(np.abs(problem.inputs).max()), problem.inputs.shape[0]
    adversary = PGD(0.2 * scale, steps=3, norm=norm)
    lr = 0.5 / max(1.0, scale) ** 2
    rule = SGD(lr, batch_size=max(1, samples // 3 + 1), loss=loss, shuffle=False, adversary=adversary)
    targets, network, expected = encoded(problem.targets, loss), problem.fresh(), problem.fresh()
    x, y = torch.from_numpy(problem.inputs), torch.from_numpy(targets)
    for _ in range(2):
        for first in range(0, samples, rule.batch_size):
            batch = slice(first, first + rule.batch_size)
            at = attacked(expected, x[batch], y[batch], loss, adversary)
            (slope,) = torch.autograd.grad(LOSSES[loss](expected(at), y[batch]), expected.weight)
            expected.weight.data -= lr * slope
    history = widefit.train(network, x, y, rule=rule, tracker=tracker, max_iter=2, tol=0)
    size = float(expected.weight.detach().abs().max())
    torch.testing.assert_close(network.weight, expected.weight, rtol=1e-8, atol=1e-9 * size)
    final = float(LOSSES[loss](expected(x), y).detach()) * (2 if loss == "squared" else 1) / samples
    assert history.losses[-1] == pytest.approx(final, rel=1e-7)


def test_the_cost_of_the_adversary_is_counted():
    problem = make("random", torch.float64)
    counted = []
    for adversary in (None, PGD(0.1, steps=4)):
        watch = Watch()
        rule = SGD(0.1, adversary=adversary)
        widefit.train(problem.fresh(), problem.inputs, problem.targets, rule=rule, max_iter=1, tol=0, callbacks=[watch])
        counted.append(watch.report.pairs_evaluated)
    assert counted[1] - counted[0] == 4 * problem.network.width * problem.inputs.shape[0]


class Watch(Callback):
    """The tracker's report at the end."""

    def finish(self, run, history):
        self.report = run.stepper.model.report


@settings(max_examples=40)
@given(
    st.integers(1, 6), st.integers(1, 7), st.floats(0, 1e3), st.integers(1, 5), st.sampled_from(["linf", "l2"]),
    st.sampled_from([np.float32, np.float64]), st.floats(-200, 200),
)  # fmt: skip
def test_points_stay_in_the_ball_and_climb(rows, features, radius, steps, norm, dtype, exponent):
    """On a linear function each step is along the gradient, and the last one ends on the boundary."""
    generator = np.random.default_rng(rows)
    origin = generator.standard_normal((rows, features)).astype(dtype)
    slope = generator.standard_normal((rows, features))
    adversary, x = PGD(radius, steps, norm=norm), origin
    for _ in range(steps):
        x = adversary.move(origin, x, slope * 10.0**exponent)
    assert x.dtype == dtype
    offset = x.astype(np.float64) - origin
    order = {"linf": np.inf, "l2": 2}[norm]
    slack = 4 * np.finfo(dtype).eps * (np.abs(origin).max() + radius) * features
    lengths = np.linalg.norm(offset, ord=order, axis=1)
    np.testing.assert_allclose(lengths, radius, rtol=1e-6, atol=slack)
    unit = np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope, axis=1, keepdims=True)
    np.testing.assert_allclose(offset, radius * unit, rtol=1e-6, atol=slack)


def test_where_nothing_slopes_nothing_moves():
    x = np.ones((2, 3))
    for norm in ("linf", "l2"):
        assert np.array_equal(PGD(0.5, norm=norm).move(x, x, np.zeros_like(x)), x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_of_a_linear_network_is_known(norm):
    """With every neuron firing f is linear, and the worst point of a ball is f − ρ ‖∇f‖ with the dual norm."""
    generator = np.random.default_rng(0)
    network = TwoLayer(4, 50, threshold=-100.0, dtype=torch.float64)
    x, y = generator.standard_normal((200, 4)), np.where(generator.random(200) < 0.5, -1.0, 1.0)[:, None]
    slope = (network.readout.T @ network.weight).detach().numpy()[0] / np.sqrt(50)
    with torch.no_grad():
        margin = y[:, 0] * network(torch.from_numpy(x)).numpy()[:, 0]
    dual = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)
    for radius in (0.0, 0.1, 0.5):
        expected = np.mean(margin - radius * dual > 0)
        for loss in ("squared", "logistic"):
            # The squared loss of a point far on its side falls towards the threshold: only logistic is monotone.
            if loss == "logistic" or radius == 0:
                judge = RobustAccuracy(PGD(radius, 5, norm=norm), x, y, loss)
                assert judge(network) == pytest.approx(expected, abs=1e-12)


def test_the_history_has_the_robust_accuracy():
    problem = make("random", torch.float64)
    judge = RobustAccuracy(PGD(0.1, 2), problem.inputs, np.sign(problem.targets))
    network = problem.fresh()
    history = widefit.train(network, problem.inputs, problem.targets, rule="sgd", max_iter=2, tol=0, metric=judge)
    assert history[0].metric == judge(problem.network)
    assert history[-1].metric == judge(network)


def test_adversarial_training_pays():
    inputs, parity = digits_parity(400)
    inputs, targets = inputs.astype(np.float32), parity[:, None]
    judge = RobustAccuracy(PGD(0.05, 3), inputs[200:], targets[200:], "logistic")
    left = []
    for adversary in (None, PGD(0.05, 3)):
        rule = SGD(50.0, loss="logistic", adversary=adversary)
        network = TwoLayer(64, 1024)
        widefit.train(network, inputs[:200], targets[:200], rule=rule, max_iter=10, tol=0)
        left.append(judge(network))
    assert left[1] > left[0] + 0.05


@pytest.mark.parametrize("tracker", TRACKERS, ids=lambda tracker: tracker.name)
def test_threads_do_not_change_a_bit(tracker):
    problem = make("three outputs", torch.float32, width=12_000)
    rule, found = SGD(1.0, adversary=PGD(0.05, 2)), []
    for threads in (1, 3):
        network = problem.fresh()
        widefit.train(
            network, problem.inputs, problem.targets, rule=rule, tracker=tracker, max_iter=1, tol=0, threads=threads
        )
        found.append(network.weight)
    assert torch.equal(*found)


@pytest.mark.parametrize("tracker", [Certificate(), WeightTree(), DataTree(), HalfSpaceTree("data")])
def test_trackers_of_the_samples_alone_are_refused(tracker):
    problem = make("random", torch.float32)
    with pytest.raises(ValueError, match="follows the samples alone, and the adversary of the rule moves them"):
        widefit.train(
            problem.fresh(), problem.inputs, problem.targets, rule=SGD(adversary=PGD(0.1)), tracker=tracker, max_iter=1
        )


def test_a_ridge_takes_the_dense_tracker():
    problem = make("random", torch.float32)
    arguments = {"rule": SGD(0.1, adversary=PGD(0.1)), "alpha": 0.1, "max_iter": 1}
    with pytest.raises(ValueError, match="alpha must be 0 for an adversary"):
        widefit.train(problem.fresh(), problem.inputs, problem.targets, tracker=HalfSpaceTree(), **arguments)
    assert len(widefit.train(problem.fresh(), problem.inputs, problem.targets, **arguments)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": -0.1}, "radius must be a finite number ≥ 0, got -0.1"),
        ({"radius": float("nan")}, "radius must be"),
        ({"steps": 0}, "steps must be an integer ≥ 1, got 0"),
        ({"step_size": 0.0}, 'step_size must be a positive number or "auto", got 0.0'),
        ({"step_size": "long"}, "step_size must be"),
        ({"norm": "l1"}, "norm must be 'linf' or 'l2', got 'l1'"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        PGD(**{"radius": 0.1, **change})


def test_refusals_of_the_metric():
    x, y = np.zeros((3, 2)), np.ones((3, 1))
    with pytest.raises(ValueError, match="a row for each of the 3 rows of inputs"):
        RobustAccuracy(PGD(0.1), x, y[:2])
    with pytest.raises(ValueError, match=r"targets must be ±1 for one output, got 0.5 in row 1"):
        RobustAccuracy(PGD(0.1), x, np.array([[1.0], [0.5], [1.0]]))
    with pytest.raises(ValueError, match='for loss="softmax"'):
        RobustAccuracy(PGD(0.1), x, 2 * y, "softmax")
