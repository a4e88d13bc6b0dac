"""Training by the torch tracker: the same run as by the dense one, up to rounding."""

import numpy as np
import pytest
import torch
from problems import make

import widefit
from widefit.callbacks import Callback
from widefit.nn import TwoLayer
from widefit.plan import two_layer
from widefit.plan.two_layer import plan_two_layer
from widefit.trackers.cost import Steps, Workload

DEVICE = Workload(samples=100, features=5, width=1024, outputs=1, firing=0.1, itemsize=4, device="cuda")
SETTINGS = {
    "gauss-newton": {},
    "ridge": {"alpha": 0.1},
    "applied": {"solver": widefit.solvers.CG(tolerance=1e-13)},
    "applied with a ridge": {"alpha": 0.1},
    "logistic": {"loss": "logistic", "alpha": 0.1},
    "gradient descent": {"rule": "gradient-descent"},
    "line search": {"rule": widefit.rules.GradientDescent(schedule="line-search")},
    "sgd": {"rule": "sgd"},
    "sgd with a ridge": {"rule": "sgd", "alpha": 0.1},
    "sgd that averages": {"rule": widefit.rules.SGD(average=True)},
}


class Keep(Callback):
    """Keeps the state after a step."""

    def __init__(self, step: int):
        self.step_number, self.state = step, None

    def step(self, run, info):
        if info.step == self.step_number:
            tensors, document = run.state()
            self.state = {name: tensor.clone() for name, tensor in tensors.items()}, document


def run_of(tracker: str, name: str, **more):
    problem = make("three outputs", torch.float64)
    targets = np.sign(problem.targets) if "logistic" in name else problem.targets
    network = problem.fresh()
    settings = {"max_iter": 4, **SETTINGS[name], **more}
    return network, widefit.train(network, problem.inputs, targets, tracker=tracker, **settings)


@pytest.fixture(autouse=True)
def applied(request, monkeypatch):
    """Some runs apply H, as those on many samples do."""
    if "applied" in request.node.name:
        monkeypatch.setattr(two_layer, "_forms", lambda work, solver: [("fire lists", "as many samples would")])


@pytest.mark.parametrize("name", SETTINGS)
def test_the_run_is_that_of_the_dense_tracker(name):
    network, found = run_of("torch", name)
    other, expected = run_of("dense", name)
    tolerance = 1e-5 if name == "applied with a ridge" else 1e-9  # solved no more exactly than a step can use
    np.testing.assert_allclose(found.losses, expected.losses, rtol=tolerance)
    torch.testing.assert_close(network.weight, other.weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SETTINGS)
def test_resuming_gives_the_same_bits(name):
    keep = Keep(1)
    network, _ = run_of("torch", name, callbacks=[keep])
    again, _ = run_of("torch", name, resume=keep.state)
    assert torch.equal(network.weight, again.weight)


def test_auto_does_not_take_it_on_the_cpu():
    for steps in Steps:
        _, tracker, _ = plan_two_layer(Workload(100, 5, 1024, 1, 0.1, 4, steps=steps), "auto", "auto", 1, 10**12)
        assert tracker.name != "torch"


class TestOnAnAccelerator:
    def test_auto_takes_it(self):
        plan, tracker, _ = plan_two_layer(DEVICE, "auto", "auto", 1, 10**12)
        assert tracker.name == "torch"
        assert "the weights are on cuda" in str(plan)

    def test_others_are_refused(self):
        with pytest.raises(ValueError, match='"dense" works on the CPU, and the weights are on cuda'):
            plan_two_layer(DEVICE, "dense", "auto", 1, 10**12)

    def test_moved_samples_are_refused(self):
        work = Workload(100, 5, 1024, 1, 0.1, 4, steps=Steps.PERTURBED_MINIBATCHES, device="cuda")
        with pytest.raises(ValueError, match="no tracker follows them on cuda"):
            plan_two_layer(work, "auto", "auto", 1, 10**12)

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(MemoryError, match="training needs about"):
            plan_two_layer(DEVICE, "auto", "auto", 1, 10**6)


class TestRefusals:
    def test_weights_that_are_not_stored(self):
        network = TwoLayer(3, 64, store="regenerate")
        with pytest.raises(ValueError, match='tracker "torch" moves weights in memory, and this network holds none'):
            widefit.train(network, np.ones((4, 3)), np.ones(4), tracker="torch")

    def test_a_device_that_is_absent(self):
        with pytest.raises(ValueError, match='device="xpu" is not at hand; here there is "cpu"'):
            widefit.train(TwoLayer(3, 64), np.ones((4, 3)), np.ones(4), device="xpu")

    def test_no_device(self):
        with pytest.raises(ValueError, match='device must be "auto" or a device of torch'):
            widefit.train(TwoLayer(3, 64), np.ones((4, 3)), np.ones(4), device="gpu")


def test_the_plan_tells_device_and_precision():
    training = widefit.training.train.Training(TwoLayer(3, 64), np.ones((4, 3)), np.ones(4), device="cpu")
    assert training.plan.rows()[0] == ("device", "cpu, float32", "as asked for")
