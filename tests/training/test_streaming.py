"""Streams against plain autograd: the same steps, each sample once, whatever the blocks and the tracker."""

import numpy as np
import pytest
import torch
from problems import make, sphere

import widefit
from widefit.callbacks import Callback
from widefit.files import Checkpoint, read_checkpoint
from widefit.nn import TwoLayer
from widefit.plan.neurons import plan_prediction, plan_stream
from widefit.rules import SGD
from widefit.trackers import Dense, HalfSpaceTree
from widefit.trackers.cost import NeuronShape
from widefit.training.history import StepInfo
from widefit.training.stream import Recorder, Streaming

LOSSES = {
    "squared": lambda f, y: 0.5 * (f - y).square().sum(1),
    "logistic": lambda f, y: torch.nn.functional.softplus(-y * f).sum(1),
    "softmax": lambda f, y: torch.nn.functional.cross_entropy(f, y, reduction="none"),
}
TRACKERS = [Dense(), HalfSpaceTree(leaf_size=8)]


def samples(count: int, features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    X = sphere(np.random.default_rng(seed).standard_normal((count, features)))
    return X, np.sin(3 * X[:, 0]) * X[:, -1]


def blocks(X: np.ndarray, y: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(X[first : first + size], y[first : first + size]) for first in range(0, len(X), size)]


@pytest.mark.parametrize("tracker", TRACKERS, ids=lambda tracker: tracker.name)
@pytest.mark.parametrize("both", [False, True], ids=["first layer", "both layers"])
@pytest.mark.parametrize("name", ["random", "three outputs", "plain relu", "duplicates", "nothing fires"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_steps_are_those_of_autograd(tracker, both, name, loss):
    """Weights, readouts, and what was predicted before each step; with a rate that falls and sample weights."""
    problem, size = make(name, torch.float64), 7
    targets = np.where(problem.targets > 0, 1.0, -1.0) if loss == "logistic" else problem.targets
    network, plain = problem.fresh(), problem.fresh()
    plain.readout.requires_grad_(True)
    mask = (plain.readout != 0).double()
    weight = np.random.default_rng(1).uniform(0.5, 1.5, len(targets))
    rule = SGD(0.3, batch_size=size, schedule="inverse", decay=20.0, loss=loss, train_readout=both)
    expected = []
    x, y, w = torch.from_numpy(problem.inputs), torch.from_numpy(targets), torch.from_numpy(weight)
    for first in range(0, len(targets), size):
        batch = slice(first, first + size)
        plain.zero_grad()
        outputs = plain(x[batch])
        expected.append(outputs.detach())
        (w[batch] * LOSSES[loss](outputs, y[batch])).sum().backward()
        rate = 0.3 / (1 + 20 * first / 1000)
        with torch.no_grad():
            plain.weight -= rate * plain.weight.grad
            if both:
                plain.readout -= rate * mask * plain.readout.grad
    streaming = Streaming(network, rule=rule, tracker=tracker, threads=2)
    half = len(targets) // size // 2 * size
    before = [streaming.learn(x[:half], y[:half], w[:half])] if half else []
    before.append(streaming.learn(x[half:], y[half:], w[half:]))
    scale = max(1.0, float(plain.weight.detach().abs().max()))
    torch.testing.assert_close(network.weight, plain.weight, rtol=1e-9, atol=1e-9 * scale)
    torch.testing.assert_close(network.readout, plain.readout.detach(), rtol=1e-9, atol=1e-9, check_stride=False)
    np.testing.assert_allclose(np.concatenate(before), torch.cat(expected), rtol=1e-8, atol=1e-8)
    assert streaming.seen == len(targets)
    np.testing.assert_allclose(streaming.evaluate(problem.inputs), plain(x).detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("tracker", TRACKERS, ids=lambda tracker: tracker.name)
def test_how_a_stream_is_cut_and_the_threads_do_not_change_a_bit(tracker, monkeypatch):
    monkeypatch.setattr("widefit.trackers.half_space.tree_descent.WORTH_THREADS", 0)
    X, y = samples(2500, 3)
    found = []
    for size, threads in ((2500, 1), (700, 2), (33, 3)):
        network = TwoLayer(3, 1 << 11, seed=1)
        history = widefit.train_stream(network, blocks(X, y, size), tracker=tracker, threads=threads)
        found.append((network.weight.detach(), history.losses))
    assert all(torch.equal(found[0][0], weight) and losses == found[0][1] for weight, losses in found[1:])
    assert found[0][1][-1] < 0.1 * found[0][1][0]


def test_the_loss_is_that_of_samples_not_yet_learnt():
    X, y = samples(3000, 4)
    network = TwoLayer(4, 256, seed=1, dtype=torch.float64)
    twin = TwoLayer(4, 256, seed=1, dtype=torch.float64)
    history = widefit.train_stream(network, blocks(X, y, 500), rule=SGD(0.2, batch_size=32))
    streaming, squares = Streaming(twin, rule=SGD(0.2, batch_size=32)), []
    assert history[0].loss == pytest.approx(
        np.mean((twin(torch.from_numpy(X[:1024])).detach().numpy()[:, 0] - y[:1024]) ** 2)
    )
    for first in range(0, 3000, 32):
        now = twin(torch.from_numpy(X[first : first + 32])).detach().numpy()[:, 0]
        squares.append((now - y[first : first + 32]) ** 2)
        streaming.learn(X[first : first + 32], y[first : first + 32])
    total = np.concatenate(squares)
    assert [info.samples for info in history] == [0, 1024, 2048, 3000]
    wanted = [total[first:last].mean() for first, last in ((0, 1024), (1024, 2048), (2048, 3000))]
    np.testing.assert_allclose(history.losses[1:], wanted, rtol=1e-9)
    assert history.stop_reason == "end"


class StopAfter(Callback):
    def __init__(self, steps: int):
        self._left = steps

    def step(self, run, info):
        self._left -= 1
        return self._left == 0


@pytest.mark.parametrize("tracker", ["dense", "half-space-tree"])
def test_a_checkpoint_resumes_to_the_same_bits(tracker, tmp_path):
    X, y = samples(5000, 3)
    rule = SGD(schedule="inverse", train_readout=True)
    whole, cut = TwoLayer(3, 1 << 11, seed=1), TwoLayer(3, 1 << 11, seed=1)
    every = Checkpoint(tmp_path / "every", 0)
    expected = widefit.train_stream(whole, blocks(X, y, 400), rule=rule, tracker=tracker, callbacks=[every])
    half = [StopAfter(2), Checkpoint(tmp_path / "half", 0)]
    assert (
        widefit.train_stream(cut, blocks(X, y, 400), rule=rule, tracker=tracker, callbacks=half).stop_reason
        == "callback"
    )
    fresh = TwoLayer(3, 1 << 11, seed=1)
    state = read_checkpoint(tmp_path / "half")
    history = widefit.train_stream(
        fresh, blocks(X, y, 999), rule=rule, tracker=tracker, callbacks=[every], resume=state
    )
    assert torch.equal(fresh.weight, whole.weight)
    assert torch.equal(fresh.readout, whole.readout)
    assert history.losses == expected.losses
    with pytest.raises(ValueError, match="belongs to another stream"):
        widefit.train_stream(fresh, blocks(X, -y, 400), rule=rule, tracker=tracker, resume=state)


def test_a_tree_touches_neurons_that_fire_and_no_other():
    network = TwoLayer(2, 1 << 14, seed=0)
    before = network.weight.detach().clone()
    X, y = samples(32, 2)
    X[:] = X[0]
    streaming = Streaming(network, rule=SGD(0.1), tracker="half-space-tree")
    fires = (before.double() @ torch.from_numpy(X[0])) > network.threshold
    streaming.learn(X, y)
    moved = (network.weight != before).any(dim=1)
    assert moved.any()
    assert not (moved & ~fires).any()


def test_a_tree_stays_exact_over_many_steps_that_only_bound_its_drift():
    """Hundreds of batches between two looks at the points: queries still find every neuron that fires."""
    X, y = samples(4000, 3)
    network = TwoLayer(3, 3000, seed=2, threshold=0.7)
    streaming = Streaming(network, rule=SGD(0.8, batch_size=4), tracker=HalfSpaceTree(leaf_size=16))
    for first in range(0, 4000, 500):
        streaming.learn(X[first : first + 500], y[first : first + 500])
        expected = network(torch.from_numpy(X[:200])).detach().numpy()
        np.testing.assert_allclose(streaming.evaluate(X[:200].astype(np.float32)), expected, atol=3e-5)


def test_histories_are_bounded():
    recorder = Recorder()
    recorder.history.steps.append(StepInfo(0, 1.0, samples=0))
    for step in range(1, 5000):
        recorder.add(StepInfo(step, float(step), samples=step), 1.0)
        assert len(recorder.history) <= 401
    steps = [info.step for info in recorder.history]
    assert steps == sorted(set(steps))
    # Every block counts once: the entries weighted by their blocks give the mean of all.
    sizes = np.diff(steps)
    assert np.dot(recorder.history.losses[1:], sizes) == pytest.approx(sum(range(1, steps[-1] + 1)))


def test_diverging_and_empty_streams_say_so():
    X, y = samples(3000, 3)
    network = TwoLayer(3, 64, seed=0)
    with pytest.raises(ValueError, match="the training diverged"):
        Streaming(network, rule=SGD(1e30)).learn(X, y)
    with pytest.raises(ValueError, match="the stream is empty"):
        widefit.train_stream(network, [])


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.zeros((4, 3)), "blocks must give"),
        ((np.zeros((4, 3)), np.zeros(3)), "block 0 must have the shapes"),
        ((np.zeros(4), np.zeros(4)), "block 0 must have the shapes"),
        ((np.zeros((4, 2)), np.zeros(4)), r"X must have shape \(n, 3\)"),
        ((np.zeros((4, 3)), np.zeros((4, 2))), r"y must have shape \(4, 1\)"),
        ((np.full((4, 3), np.nan), np.zeros(4)), "X of block 0 contains NaN"),
        ((np.zeros((4, 3)), np.zeros(4), -np.ones(4)), "sample_weight must be"),
    ],
)
def test_bad_blocks(block, message):
    with pytest.raises(ValueError, match=message):
        widefit.train_stream(TwoLayer(3, 64), [block])


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ((np.zeros((4, 2)), np.zeros(4)), r"block 2 has \(2, 1\) in \(X, y\), those before it \(3, 1\)"),
        ((np.zeros((4, 3)), np.zeros((4, 2))), r"block 2 has \(3, 2\) in \(X, y\)"),
        ((np.array([[0, 0, 0], [0, np.nan, 0]]), np.zeros(2)), "X of block 2 contains NaN or infinity, first in row 1"),
        ((np.zeros((4, 3)), np.array([0, 0, 0, np.inf])), "y of block 2 contains NaN or infinity, first in row 3"),
    ],
)
def test_bad_blocks_in_the_midst_are_named_and_empty_ones_passed_over(block, message):
    X, y = samples(30, 3)
    with pytest.raises(ValueError, match=message):
        widefit.train_stream(TwoLayer(3, 64), [(X, y), (X[:0], y[:0]), block])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "gauss-newton"}, 'rule must be "sgd"'),
        ({"tracker": "certificate"}, 'tracker "certificate" has to know all samples'),
        ({"tracker": HalfSpaceTree("data")}, "has to know all samples"),
        ({"tracker": "magic"}, "tracker must be one of"),
        ({"rule": SGD(loss="logistic")}, "y must be ±1"),
    ],
)
def test_what_a_stream_cannot_take(settings, message):
    with pytest.raises(ValueError, match=message):
        widefit.train_stream(TwoLayer(3, 64), blocks(*samples(10, 3), 5), **settings)
    with pytest.raises(ValueError, match="silent neurons give 0"):
        widefit.train_stream(TwoLayer(3, 64, convention="floor"), [samples(9, 3)], rule=SGD(train_readout=True))


@pytest.mark.parametrize("tracker", ["weight-tree", "data-tree", "certificate", HalfSpaceTree("data")], ids=str)
def test_trackers_that_keep_the_readout_refuse_at_once(tracker):
    problem = make("random", torch.float32)
    with pytest.raises(ValueError, match="keeps the second layer as it is"):
        widefit.train(problem.fresh(), problem.inputs, problem.targets, rule=SGD(train_readout=True), tracker=tracker)


@pytest.mark.parametrize("tracker", TRACKERS, ids=lambda tracker: tracker.name)
def test_training_both_layers_of_a_fixed_table(tracker, tmp_path):
    """The automatic rate is safe, the loss is that of the network, and a checkpoint resumes to the same bits."""
    problem, rule = make("digits", torch.float32), SGD(batch_size=16, train_readout=True)
    whole, cut, fresh = (problem.fresh() for _ in range(3))
    settings = {"rule": rule, "tracker": tracker, "tol": 0}
    history = widefit.train(whole, problem.inputs, problem.targets, max_iter=6, **settings)
    assert history[-1].loss < 0.5 * history[0].loss
    outputs = whole(torch.from_numpy(problem.inputs)).detach().numpy()
    assert history[-1].loss == pytest.approx(np.mean(((outputs - problem.targets) ** 2).sum(1)), rel=1e-4)
    keep = Checkpoint(tmp_path / "half")
    widefit.train(cut, problem.inputs, problem.targets, max_iter=3, callbacks=[keep], **settings)
    state = read_checkpoint(tmp_path / "half")
    widefit.train(fresh, problem.inputs, problem.targets, max_iter=6, resume=state, **settings)
    assert torch.equal(fresh.weight, whole.weight)
    assert torch.equal(fresh.readout, whole.readout)
    assert not torch.equal(whole.readout, problem.network.readout)


def test_the_choosers_say_why():
    narrow, wide = NeuronShape(2, 1 << 18, 1, 0.013), NeuronShape(64, 1 << 18, 1, 0.013)
    chosen = [plan_stream(shape, "auto") for shape in (narrow, wide)]
    assert [tracker.name for _, tracker in chosen] == ["half-space-tree", "dense"]
    assert all("of the neurons" in plan.choices[0].reason for plan, _ in chosen)
    assert plan_prediction(narrow)[0] is not None
    rows, choice = plan_prediction(wide)
    assert (rows, choice.chosen) == (None, "dense")
