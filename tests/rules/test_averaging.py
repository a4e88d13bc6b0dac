"""Averages of iterates against sums of dense float64 iterates: every tracker, both layers, tables and streams."""

import pickle

import numpy as np
import pytest
import torch
from problems import make

import widefit
from widefit import WideRegressor
from widefit.files import Checkpoint, read_checkpoint
from widefit.nn import TwoLayer
from widefit.rules import SGD
from widefit.trackers import Certificate, DataTree, Dense, HalfSpaceTree, Tracker, VerletList, WeightTree
from widefit.training.stream import Streaming

LR, SIZE = 0.3, 7
OVER_WEIGHTS = HalfSpaceTree(leaf_size=8)
FIRST_LAYER = [
    Dense(),
    VerletList(),
    WeightTree(),
    DataTree(),
    Certificate(),
    HalfSpaceTree("data", leaf_size=8),
    OVER_WEIGHTS,
]
EITHER_LAYER = [Dense(), OVER_WEIGHTS]


def kind(value) -> str:
    return value.name + getattr(value, "over", "") if isinstance(value, Tracker) else str(value)


def reference(problem, batches, average, *, both=False, alpha=0.0):
    """Average of the dense iterates from `average` visited samples on: weights and readout, and the last weights."""
    plain, count, seen = problem.fresh(), 0, 0
    plain.readout.requires_grad_(both)
    x, y, mask = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets), (plain.readout != 0).double()
    start = plain.weight.detach().clone()
    sums = [torch.zeros_like(start), torch.zeros_like(plain.readout)]
    for batch in batches:
        plain.zero_grad()
        loss = 0.5 * (plain(x[batch]) - y[batch]).square().sum()
        loss = loss + alpha * len(batch) / len(x) / 2 * (plain.weight - start).square().sum()
        loss.backward()
        with torch.no_grad():
            plain.weight -= LR * plain.weight.grad
            if both:
                plain.readout -= LR * mask * plain.readout.grad
        seen += len(batch)
        if seen >= average:
            count += 1
            sums = [total + now.detach() for total, now in zip(sums, (plain.weight, plain.readout), strict=True)]
    return *((total / count for total in sums) if count else (plain.weight, plain.readout)), plain.weight.detach()


def epochs(samples: int, number: int) -> list[np.ndarray]:
    orders = (
        np.random.Generator(np.random.Philox(key=np.array([0, t], np.uint64))).permutation(samples)
        for t in range(number)
    )
    return [order[first : first + SIZE] for order in orders for first in range(0, samples, SIZE)]


def assert_close(network, weight, readout):
    torch.testing.assert_close(network.weight.detach(), weight.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network.readout.detach(), readout.detach(), rtol=1e-9, atol=1e-9, check_stride=False)


CASES = [(tracker, "three outputs", 50, alpha) for tracker in FIRST_LAYER for alpha in (0.0, 0.1)]
CASES += [(tracker, "random", average, 0.0) for tracker in EITHER_LAYER for average in (True, 10**6)]


@pytest.mark.parametrize(("tracker", "name", "average", "alpha"), CASES, ids=kind)
def test_the_network_is_left_with_the_average(tracker, name, average, alpha):
    problem = make(name, torch.float64)
    weight, readout, last = reference(problem, epochs(len(problem.inputs), 2), average, alpha=alpha)
    network, judged = problem.fresh(), []

    def metric(now: TwoLayer) -> float:
        judged.append(now.weight.detach().clone())
        return 0.0

    rule = SGD(LR, SIZE, average=average)
    settings = {"tracker": tracker, "alpha": alpha, "tol": 0, "max_iter": 2}
    history = widefit.train(network, problem.inputs, problem.targets, rule=rule, metric=metric, **settings)
    assert_close(network, weight, readout)
    assert torch.equal(judged[-1], network.weight)
    assert torch.equal(last, weight) == (average == 10**6)
    outputs = network(torch.from_numpy(problem.inputs)).detach().numpy()
    assert history.average_loss == pytest.approx(np.mean(((outputs - problem.targets) ** 2).sum(1)))
    without = widefit.train(problem.fresh(), problem.inputs, problem.targets, rule=SGD(LR, SIZE), **settings)
    assert without.losses == history.losses
    assert without.average_loss is None


@pytest.mark.parametrize("tracker", EITHER_LAYER, ids=kind)
@pytest.mark.parametrize("both", [False, True], ids=["first layer", "both layers"])
def test_streams_leave_the_average_after_every_block(tracker, both):
    problem = make("three outputs", torch.float64)
    samples = len(problem.inputs)
    network, rule = problem.fresh(), SGD(LR, SIZE, average=15, train_readout=both)
    streaming = Streaming(network, rule=rule, tracker=tracker, threads=2)
    batches = [np.arange(samples)[first : first + SIZE] for first in range(0, samples, SIZE)]
    for first, last in ((0, 3), (3, len(batches))):
        rows = np.concatenate(batches[first:last])
        streaming.learn(problem.inputs[rows], problem.targets[rows])
        assert_close(network, *reference(problem, batches[:last], 15, both=both)[:2])
    assert "average of the iterates" in [chosen for _, chosen, _ in streaming.plan.rows()]


def test_a_tree_that_is_built_anew_keeps_its_sums():
    """Steps so long that points leave their neighbours."""
    X = np.random.default_rng(0).standard_normal((400, 2)) / 2
    y, found = np.sin(3 * X[:, 0]), []
    for tracker in (Dense(), OVER_WEIGHTS):
        network = TwoLayer(2, 512, seed=0, threshold=0.5, dtype=torch.float64)
        streaming = Streaming(network, rule=SGD(2.0, 4, average=True), tracker=tracker)
        streaming.learn(X, y)
        found.append(network.weight.detach())
    assert streaming._stream.counters.full_passes > 1
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("tracker", EITHER_LAYER, ids=kind)
def test_checkpoints_resume_to_the_same_bits(tracker, tmp_path):
    problem = make("three outputs", torch.float32)
    whole, cut, fresh = (problem.fresh() for _ in range(3))
    settings = {"rule": SGD(batch_size=8, train_readout=True, average=60), "tracker": tracker, "tol": 0}
    expected = widefit.train(whole, problem.inputs, problem.targets, max_iter=5, **settings)
    keep = Checkpoint(tmp_path / "half")
    widefit.train(cut, problem.inputs, problem.targets, max_iter=3, callbacks=[keep], **settings)
    state = read_checkpoint(tmp_path / "half")
    history = widefit.train(fresh, problem.inputs, problem.targets, max_iter=5, resume=state, **settings)
    assert torch.equal(fresh.weight, whole.weight)
    assert torch.equal(fresh.readout, whole.readout)
    assert history.average_loss == expected.average_loss
    changed = settings | {"rule": SGD(batch_size=8, train_readout=True)}
    with pytest.raises(ValueError, match="other data or settings"):
        widefit.train(fresh, problem.inputs, problem.targets, resume=state, **changed)


@pytest.mark.parametrize("tracker", ["dense", "half-space-tree"])
def test_a_stream_resumes_to_the_same_bits(tracker, tmp_path):
    X = np.random.default_rng(0).standard_normal((2500, 3)) / 2
    y, rule = X[:, 0] * X[:, 1], SGD(average=1500, train_readout=True)
    whole, half, fresh = (TwoLayer(3, 512, seed=1) for _ in range(3))
    widefit.train_stream(whole, [(X, y)], rule=rule, tracker=tracker, callbacks=[Checkpoint(tmp_path / "all", 0)])
    widefit.train_stream(
        half, [(X[:2048], y[:2048])], rule=rule, tracker=tracker, callbacks=[Checkpoint(tmp_path / "half", 0)]
    )
    state = read_checkpoint(tmp_path / "half")
    again = [Checkpoint(tmp_path / "again", 0)]
    widefit.train_stream(fresh, [(X, y)], rule=rule, tracker=tracker, resume=state, callbacks=again)
    assert torch.equal(fresh.weight, whole.weight)
    assert torch.equal(fresh.readout, whole.readout)


def test_an_estimator_that_was_kept_goes_on_with_its_average(tmp_path):
    X = np.random.default_rng(0).uniform(-1, 1, (600, 2))
    y = np.sin(3 * X[:, 0]) * X[:, 1]
    model = WideRegressor((128,), rule=SGD(average=True), tracker="dense").partial_fit(X[:300], y[:300])
    copy = pickle.loads(pickle.dumps(model))
    widefit.save(model, tmp_path / "model.widefit")
    loaded = widefit.load(tmp_path / "model.widefit")
    assert loaded.rule == model.rule
    model.partial_fit(X[300:], y[300:])
    for other in (copy, loaded):
        other.partial_fit(X[300:], y[300:])
        np.testing.assert_array_equal(other.predict(X[:20]), model.predict(X[:20]))


def test_noise_averages_out():
    """Least squares with noise at a constant rate: the average is nearer to the truth than the last iterate."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((4000, 3))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    truth = X[:, 0]
    errors = []
    for average in (False, 2000):
        network = TwoLayer(3, 512, seed=0, threshold=0.0)
        widefit.train_stream(network, [(X, truth + generator.standard_normal(4000))], rule=SGD(0.2, 8, average=average))
        outputs = network(torch.from_numpy(X.astype(np.float32))).detach().numpy()[:, 0]
        errors.append(np.mean((outputs - truth) ** 2))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("average", [0, -3])
def test_bad_values_are_refused(average):
    with pytest.raises(ValueError, match="average must be True, False or a number of samples ≥ 1"):
        SGD(average=average)


def test_weights_that_are_not_held_are_refused():
    network = TwoLayer(3, 64, seed=0, store="regenerate")
    with pytest.raises(ValueError, match="average takes a network that holds its weights"):
        widefit.train(network, np.ones((4, 3)), np.ones(4), rule=SGD(average=True), tracker="certificate")
