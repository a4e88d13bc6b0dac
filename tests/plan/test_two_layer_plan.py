"""Trackers tell their cost and the plan compares: the problem alone decides, and memory only where it must."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes

import widefit
from widefit.files import Checkpoint
from widefit.nn import TwoLayer
from widefit.plan import names
from widefit.plan.names import resolve
from widefit.plan.neurons import plan_prediction, plan_stream
from widefit.plan.two_layer import plan_two_layer, workload_of
from widefit.rules import PGD, SGD, GaussNewton, GradientDescent
from widefit.trackers import Certificate, Dense, Tracker
from widefit.trackers.cost import Cost, NeuronShape, Steps, Workload, expected_firing

WORK = Workload(samples=1000, features=64, width=2**18, outputs=1, firing=0.02, itemsize=4)
PLENTY = 10**15


@st.composite
def workloads(draw) -> Workload:
    steps = draw(st.sampled_from(Steps))
    return Workload(
        samples=draw(st.integers(1, 20_000)),
        features=draw(st.integers(1, 2000)),
        width=2 ** draw(st.integers(1, 22)),
        outputs=draw(st.integers(1, 10)),
        firing=draw(st.floats(0, 1)),
        itemsize=draw(st.sampled_from([4, 8])),
        steps=steps,
        anchored=steps is not Steps.MINIBATCHES and draw(st.booleans()),
        alive=draw(st.floats(0.01, 1)),
        readout_scale=draw(st.floats(1e-6, 1e4)),
    )


@pytest.mark.parametrize("name", names.TRACKERS.homes)
class TestEveryTracker:
    """A new tracker joins by its line in the registry."""

    @given(workloads())
    def test_a_wider_network_costs_no_less(self, name: str, work: Workload) -> None:
        tracker: Tracker = resolve(name, names.TRACKERS)
        narrow, wide = tracker.cost(work), tracker.cost(replace(work, width=2 * work.width))
        assert 0 < narrow.bytes <= wide.bytes
        assert 0 < narrow.seconds <= wide.seconds
        assert narrow.bytes_a_thread >= 0

    def test_it_can_follow_what_it_says(self, name: str) -> None:
        tracker: Tracker = resolve(name, names.TRACKERS)
        assert tracker.can_follow(WORK)
        assert tracker.can_follow(replace(WORK, steps=Steps.PERTURBED_MINIBATCHES)) == tracker.accepts_new_points
        stored = TwoLayer(4, 64, store="regenerate", seed=1)
        if not tracker.can_follow(replace(WORK, stored=False)):
            with pytest.raises(ValueError, match=rf'tracker "{name}" moves weights in memory.*tracker="certificate"'):
                widefit.train(stored, np.ones((3, 4)), np.ones(3), tracker=name, alpha=0.1)

    def test_time_in_a_stream(self, name: str) -> None:
        seconds = resolve(name, names.TRACKERS).seconds_in_a_stream(NeuronShape(2, 2**16, 1, 0.01))
        assert (seconds < math.inf) == (name in names.STREAM_TRACKERS)


@given(workloads(), st.integers(1, 256))
def test_threads_decide_nothing(work: Workload, threads: int) -> None:
    one, many = (plan_two_layer(work, "auto", "auto", count, PLENTY) for count in (1, threads))
    assert one[1:] == many[1:]
    assert one[0].choices == many[0].choices


@given(workloads(), st.integers(20, 50))
def test_memory_refuses_or_switches_with_the_reason(work: Workload, log_memory: int) -> None:
    free = plan_two_layer(work, "auto", "auto", 2, PLENTY)
    try:
        plan, tracker, solver = plan_two_layer(work, "auto", "auto", 2, 2**log_memory)
    except MemoryError:
        return
    assert plan.bytes_needed <= 2**log_memory
    if (tracker, solver) == free[1:]:
        assert plan.choices == free[0].choices
        return
    # What would have been taken does not fit, and the plan says so.
    with pytest.raises(MemoryError):
        plan_two_layer(work, free[1], free[2], 2, 2**log_memory)
    assert any("not fit" in choice.reason for choice in plan.choices)


@given(st.integers(4, 17), st.integers(4, 20), st.sampled_from((2, 3, 8)), st.integers(1, 3), st.floats(0.01, 0.5))
def test_processes_solve_what_one_solves(
    log_samples: int, log_width: int, processes: int, outputs: int, firing: float
) -> None:
    samples, width = 2**log_samples, 2**log_width
    one = replace(WORK, samples=samples, width=width * processes, outputs=outputs, firing=firing, anchored=True)
    share = replace(one, width=width, processes=processes)
    (alone, _, solver), (shared, _, theirs) = (plan_two_layer(w, "dense", "auto", 1, PLENTY) for w in (one, share))
    assert (shared.arrays, theirs) == (alone.arrays, solver)


def test_the_tracker_of_a_run_of_long_steps() -> None:
    wide, narrow = (plan_two_layer(replace(WORK, width=m), "auto", "auto", 2, PLENTY) for m in (2**20, 2**10))
    assert (wide[1].name, narrow[1].name) == ("certificate", "dense")
    assert "a run takes about" in wide[0].choices[0].reason
    assert "with dense" in wide[0].choices[0].reason


def test_a_step_or_two_are_not_worth_the_compilation_of_certificates() -> None:
    table = replace(WORK, width=2**16, anchored=True)
    chosen = {steps: plan_two_layer(replace(table, steps=steps), "auto", "auto", 2, PLENTY) for steps in Steps}
    assert (chosen[Steps.LONG][1].name, chosen[Steps.FEW][1].name) == ("certificate", "dense")
    assert chosen[Steps.FEW][0].choices[0].reason.startswith("a run of few steps takes about")
    wide = replace(table, width=2**20, steps=Steps.FEW)
    assert plan_two_layer(wide, "auto", "auto", 2, PLENTY)[1].name == "certificate"


@pytest.mark.parametrize(
    ("rule", "alpha", "steps"),
    [
        (GaussNewton(), 0.0, Steps.LONG),
        (GradientDescent(), 0.1, Steps.SHORT),
        (SGD(), 0.0, Steps.MINIBATCHES),
        (SGD(), 0.1, Steps.GENERAL_MINIBATCHES),
        (SGD(train_readout=True), 0.0, Steps.GENERAL_MINIBATCHES),
        (SGD(average=True), 0.0, Steps.GENERAL_MINIBATCHES),
        (SGD(adversary=PGD(0.1)), 0.0, Steps.PERTURBED_MINIBATCHES),
    ],
)
def test_the_sizes_of_a_training(rule, alpha: float, steps: Steps) -> None:
    network, inputs = TwoLayer(6, 600, 3, seed=2), np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    work = workload_of(network, inputs, alpha, rule)
    assert (work.samples, work.features, work.width, work.outputs, work.itemsize) == (20, 6, 600, 3, 4)
    assert (work.steps, work.anchored, work.stored) == (steps, alpha > 0, True)
    fires = network.weight.detach().numpy() @ inputs.T > network.threshold
    assert fires.any(axis=1).mean() <= work.alive <= fires.any(axis=1).mean() + 0.1
    assert work.firing == pytest.approx(fires.mean(), rel=0.2)
    assert work.firing == expected_firing(network.threshold, inputs)


@dataclass(frozen=True)
class Mine(Dense):
    """A tracker that promises to take no time."""

    name: str = "mine"

    def cost(self, work: Workload) -> Cost:
        return Cost(work.pattern_bytes, 0.0)


def test_a_new_tracker_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(names.TRACKERS.homes, "mine", f"{__name__}:Mine")  # pyright: ignore[reportArgumentType]
    plan, tracker, _ = plan_two_layer(WORK, "auto", "auto", 2, PLENTY)
    assert tracker == Mine()
    assert plan.rows()[0][:2] == ("tracker", "mine")
    network, x = TwoLayer(3, 64, seed=0), np.random.default_rng(0).normal(size=(10, 3))
    assert len(widefit.train(network, x, x[:, 0], tracker="mine", max_iter=2)) > 1
    with pytest.raises(ValueError, match='"mine" or a Tracker'):
        plan_two_layer(WORK, "magic", "auto", 2, PLENTY)


def test_weights_that_are_not_stored_have_one_tracker() -> None:
    plan, tracker, _ = plan_two_layer(replace(WORK, stored=False), "auto", "auto", 2, PLENTY)
    assert tracker == Certificate()
    assert plan.rows()[0] == ("tracker", "certificate", "the weights are not stored")


@given(workloads(), st.integers(20, 40))
def test_grams_of_further_outputs_are_in_the_plan_and_take_half_of_what_is_left(
    work: Workload, log_memory: int
) -> None:
    memory = 2**log_memory
    try:
        plan = plan_two_layer(replace(work, outputs=10), "auto", "cholesky", 2, memory)[0]
    except MemoryError:
        return
    assert 1 <= plan.grams <= 10
    assert plan.bytes_needed <= memory
    lone = plan.bytes_needed - 12 * (plan.grams - 1) * work.samples**2
    assert 2 * (plan.bytes_needed - lone) <= memory - lone


class TestAnyNumberOfThreads:
    """A seed fixes the result: "auto" asks for no threads."""

    @pytest.fixture(autouse=True)
    def _threads_as_they_were(self):
        before = torch.get_num_threads()
        yield
        torch.set_num_threads(before)

    def test_the_default_fit(self) -> None:
        X, y = load_diabetes(return_X_y=True)
        found = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            model = widefit.WideRegressor().fit(X[:400], y[:400])
            found.append((model.plan_.choices, model.predict(X[400:])))
        assert found[0][0] == found[1][0]
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-9)

    def test_a_stream(self) -> None:
        generator = np.random.default_rng(0)
        X = generator.normal(size=(300, 2))
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = widefit.WideRegressor((8192,), rule="sgd").partial_fit(X, np.sin(X[:, 0]))
            found.append((model.plan_.choices, model.predict(X)))
        assert found[0][0] == found[1][0]
        np.testing.assert_array_equal(found[0][1], found[1][1])

    def test_a_checkpoint_goes_on_with_other_threads(self, tmp_path) -> None:
        X, y = load_diabetes(return_X_y=True)
        torch.set_num_threads(1)
        whole = widefit.WideRegressor(max_iter=3).fit(X, y)
        widefit.WideRegressor(max_iter=2).fit(X, y, callbacks=[Checkpoint(tmp_path / "half", every_seconds=0)])
        torch.set_num_threads(4)
        resumed = widefit.WideRegressor(max_iter=3).fit(X, y, resume=tmp_path / "half")
        np.testing.assert_allclose(resumed.predict(X), whole.predict(X), rtol=1e-9)


@given(st.integers(1, 64), st.integers(1, 22), st.integers(1, 10), st.floats(0, 1))
def test_shapes_decide_on_trees(features: int, log_width: int, outputs: int, firing: float) -> None:
    shape = NeuronShape(features, 2**log_width, outputs, firing)
    plan, tracker = plan_stream(shape, "auto")
    others = [resolve(name, names.TRACKERS) for name in names.STREAM_TRACKERS]
    assert tracker.seconds_in_a_stream(shape) == min(other.seconds_in_a_stream(shape) for other in others)
    assert plan.rows()[0][1] == tracker.name
    rows, choice = plan_prediction(shape)
    assert (rows is None) == (choice.chosen == "dense")
    assert rows is None or rows >= 1
