"""`widefit.train`: convergence, exactness, reproducibility, interruption, resumption, refusals."""

import os
import signal

import numpy as np
import pytest
import torch
from problems import DenseReference, digits_parity, make

import widefit
from widefit.callbacks import Callback
from widefit.gram import DenseGram
from widefit.nn import TwoLayer
from widefit.plan.two_layer import plan_two_layer
from widefit.rules import GaussNewton, NetworkProblem, Objective
from widefit.rules.gauss_newton import Damping
from widefit.solvers import Cholesky
from widefit.trackers.cost import Steps, Workload
from widefit.training.history import History
from widefit.training.problem import check_network
from widefit.training.train import Training


def dense_gauss_newton(problem, steps: int) -> list[float]:
    """The same rule on dense float64 matrices: the losses that training must follow."""
    reference, rule = DenseReference.of(problem), GaussNewton()
    objective = Objective(problem.targets, np.ones(problem.inputs.shape[0]), 0.0)
    state, losses = Damping(rule.damping), [objective.loss(reference.outputs())]
    for _ in range(steps):
        grams = [DenseGram(torch.from_numpy(reference.gram(k))) for k in range(problem.targets.shape[1])]
        view = NetworkProblem(objective, reference.outputs(), None, grams.__getitem__)
        direction = rule.direction(view, state, Cholesky())
        weight = reference.weight
        fires = reference.fires()
        reference.step(direction.g.numpy(), direction.shrink.numpy())
        flips = int(np.count_nonzero(fires != reference.fires()))
        verdict = rule.judge(view, direction, objective.value(reference.outputs(), None), flips > 0, state)
        state = verdict.state
        if not verdict.accepted:
            reference.weight = weight
        losses.append(objective.loss(reference.outputs()))
    return losses


# With duplicates H is singular, and in float32 the rounding of the inputs decides which way the first steps take.
CASES = [
    (name, dtype)
    for name in ("random", "three outputs", "plain relu", "floored", "duplicates", "digits")
    for dtype in (torch.float32, torch.float64)
    if (name, dtype) != ("duplicates", torch.float32)
]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_follows_the_dense_reference(name, dtype):
    problem = make(name, dtype)
    history = widefit.train(problem.fresh(), problem.inputs, problem.targets, tol=1e-10, max_iter=4)
    expected = dense_gauss_newton(problem, len(history) - 1)
    for found, exact in zip(history.losses, expected, strict=True):
        if exact > 1e-10:
            assert found == pytest.approx(exact, rel=1e-5 if dtype == torch.float64 else 1e-3)


def test_digits_parity_converges_and_generalizes():
    inputs, targets = digits_parity(1797)
    network = TwoLayer(64, 1 << 14)
    history = widefit.train(network, inputs[:1000], targets[:1000], tol=1e-8, max_iter=6)
    assert history.stop_reason == "tol"
    assert history.losses[-1] <= 1e-8
    with torch.no_grad():
        outputs = network(torch.from_numpy(inputs[1000:]).float())[:, 0].numpy()
    assert np.mean(np.sign(outputs) == targets[1000:]) > 0.96


def test_the_network_gives_what_the_history_says():
    problem = make("three outputs", torch.float64)
    network = problem.fresh()
    history = widefit.train(network, problem.inputs, problem.targets, max_iter=5, tol=0)
    residual = network(torch.from_numpy(problem.inputs)).detach().numpy() - problem.targets
    assert history.losses[-1] == pytest.approx(np.mean(np.sum(residual**2, axis=1)), rel=1e-9)


def test_ridge_finds_the_minimum_that_gradient_descent_finds():
    problem, alpha = make("random", torch.float64), 0.1

    def objective(network) -> float:
        residual = network(torch.from_numpy(problem.inputs)).detach() - torch.from_numpy(problem.targets)
        return float(
            residual.square().sum() + alpha * (network.weight - problem.network.weight).detach().square().sum()
        )

    found, descended = problem.fresh(), problem.fresh()
    history = widefit.train(found, problem.inputs, problem.targets, alpha=alpha, max_iter=50, tol=0)
    assert history.stop_reason == "converged"
    widefit.train(
        descended, problem.inputs, problem.targets, rule="gradient-descent", alpha=alpha, max_iter=1000, tol=0
    )
    assert objective(found) < 1.02 * objective(descended)


def test_weights_count_like_repetitions():
    problem = make("random", torch.float64)
    weights = np.array([1, 2, 3, 1] * 10)
    weighted = problem.fresh()
    widefit.train(weighted, problem.inputs, problem.targets, sample_weight=weights, alpha=0.1, max_iter=3, tol=0)
    repeated = problem.fresh()
    rows = np.repeat(np.arange(40), weights)
    widefit.train(repeated, problem.inputs[rows], problem.targets[rows], alpha=0.1, max_iter=3, tol=0)
    torch.testing.assert_close(weighted.weight, repeated.weight, rtol=1e-6, atol=1e-6)


def test_threads_do_not_change_a_bit():
    problem = make("digits", torch.float32)
    weights = []
    for threads in (1, 2, 5):
        network = problem.fresh()
        widefit.train(network, problem.inputs, problem.targets, threads=threads, max_iter=3, tol=0)
        weights.append(network.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


class Collect(Callback):
    """Keeps the state after a step and may end the training there."""

    def __init__(self, at: int, stop: bool = False):
        self.at, self.stop, self.kept, self.finished = at, stop, None, False

    def step(self, run, info):
        if info.step == self.at:
            tensors, document = run.state()
            self.kept = ({name: tensor.clone() for name, tensor in tensors.items()}, document)
            return self.stop
        return None

    def finish(self, run, history):
        self.finished = True


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_resuming_continues_to_the_same_bits(alpha):
    problem = make("digits", torch.float32)
    whole = problem.fresh()
    collect = Collect(2)
    arguments = {"alpha": alpha, "max_iter": 4, "tol": 0}
    history = widefit.train(whole, problem.inputs, problem.targets, callbacks=[collect], **arguments)
    resumed = problem.fresh()
    again = widefit.train(resumed, problem.inputs, problem.targets, resume=collect.kept, **arguments)
    assert torch.equal(whole.weight, resumed.weight)
    assert again.losses == history.losses
    with pytest.raises(ValueError, match="belongs to other data or settings"):
        widefit.train(problem.fresh(), problem.inputs, -problem.targets, resume=collect.kept, **arguments)


def test_a_callback_ends_the_training():
    problem = make("digits", torch.float32)
    collect = Collect(1, stop=True)
    history = widefit.train(problem.fresh(), problem.inputs, problem.targets, callbacks=[collect], tol=0)
    assert (history.stop_reason, len(history), collect.finished) == ("callback", 2, True)


def test_what_tracking_cost_can_be_read_from_a_run():
    problem = make("random", torch.float32)
    training = Training(problem.fresh(), problem.inputs, problem.targets, tracker="dense", tol=0, max_iter=2)
    history = training.run()
    report = training.tracker_report
    assert (report.tracker, report.full_passes) == ("dense", 3)
    assert report.flips == sum(info.flips or 0 for info in history if info.accepted)


class PressCtrlC(Callback):
    def step(self, run, info):
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_after_the_step():
    problem = make("digits", torch.float32)
    network = problem.fresh()
    before = signal.getsignal(signal.SIGINT)
    history = widefit.train(network, problem.inputs, problem.targets, callbacks=[PressCtrlC()], tol=0)
    assert history.stop_reason == "interrupted"
    assert len(history) == 2
    assert history.losses[1] < history.losses[0]
    assert signal.getsignal(signal.SIGINT) is before


def test_history_is_a_sequence_and_survives_json():
    problem = make("random", torch.float64)
    history = widefit.train(problem.fresh(), problem.inputs, problem.targets, metric=lambda net: 0.5, max_iter=2, tol=0)
    assert history[0].step == 0
    assert [info.metric for info in history] == [0.5] * len(history)
    assert history[1:] == list(history)[1:]
    assert History.from_dict(history.to_dict()) == history
    assert {"pass", "gram", "solve"} <= set(history.phases)


def test_steps_are_logged(logged):
    problem = make("random", torch.float64)
    widefit.train(
        problem.fresh(),
        problem.inputs,
        problem.targets,
        callbacks=[widefit.callbacks.Log()],
        max_iter=1,
        tol=0,
    )
    assert any("step 1 · loss" in line for line in logged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((40, 4))}, r"X must have shape \(n, 5\)"),
        ({"X": np.zeros((0, 5))}, r"X must have shape \(n, 5\) with n ≥ 1"),
        ({"X": np.full((40, 5), np.nan)}, "X contains NaN or infinity.*row 0"),
        ({"X": np.full((40, 5), 1e300)}, "overflows float32"),
        ({"X": np.full((40, 5), "a")}, "X must be numbers"),
        ({"y": np.zeros(39)}, r"y must have shape \(40, 1\)"),
        ({"y": np.where(np.arange(40) == 7, np.inf, 0)}, "y contains NaN or infinity.*row 7"),
        ({"sample_weight": -np.ones(40)}, "sample_weight must be 40 numbers ≥ 0"),
        ({"sample_weight": np.zeros(40)}, "not all 0"),
        ({"alpha": -1.0}, "alpha must be a finite number ≥ 0"),
        ({"tol": float("nan")}, "tol must be a finite number ≥ 0"),
        ({"max_iter": -1}, "max_iter must be a finite number ≥ 0"),
        ({"rule": "adam"}, 'rule must be one of "gauss-newton", "gradient-descent"'),
        ({"tracker": "magic"}, 'tracker must be one of "auto", "dense"'),
        ({"solver": "magic"}, 'solver must be one of "auto", "cholesky", "cg"'),
    ],
)
def test_bad_input_is_refused_with_its_name(change, message):
    problem = make("random", torch.float32)
    arguments = {"X": problem.inputs, "y": problem.targets, **change}
    network = problem.fresh()
    weight = network.weight.detach().clone()
    with pytest.raises(ValueError, match=message), np.errstate(over="ignore"):
        widefit.train(network, arguments.pop("X"), arguments.pop("y"), **arguments)
    assert torch.equal(network.weight, weight)


def test_auto_takes_the_tracker_that_pays_for_the_rule():
    inputs, targets = digits_parity(60)
    chosen = {}
    for rule in ("gradient-descent", "sgd"):
        training = Training(TwoLayer(64, 512, seed=0), inputs, targets, rule=rule)
        chosen[rule] = next(choice.chosen for choice in training.plan.choices if choice.what == "tracker")
    assert chosen == {"gradient-descent": "verlet-list", "sgd": "dense"}


@pytest.mark.parametrize(
    ("change", "chosen", "said"),
    [
        ({}, "verlet-list", "with dense"),
        ({"width": 2**14}, "dense", "with verlet-list"),
        ({"firing": 0.5}, "dense", "with verlet-list"),
        ({"steps": Steps.GENERAL_MINIBATCHES}, "dense", "no other tracker is known to be faster"),
        ({"samples": 10_000}, "dense", "no other tracker is known to be faster"),
    ],
)
def test_auto_takes_lists_for_wide_networks_that_fire_rarely(change, chosen, said):
    sizes = {"samples": 1000, "width": 2**18, "firing": 0.02, "steps": Steps.MINIBATCHES} | change
    plan, _, _ = plan_two_layer(Workload(features=64, outputs=1, itemsize=4, **sizes), "auto", "auto", 2, 10**10)
    (choice,) = plan.choices
    assert choice.chosen == chosen
    assert said in choice.reason


def test_what_cannot_fit_is_refused_before_it_starts():
    problem = make("random", torch.float32)
    with pytest.raises(MemoryError, match=r"needs about .* GB and .* GB are free"):
        widefit.train(problem.fresh(), problem.inputs, problem.targets, memory=10_000)
    network = TwoLayer(5, 1 << 20)
    with pytest.raises(MemoryError, match=r"a width of [\d,]+ fits"):
        Training(network, problem.inputs, problem.targets, memory=4_000_000)


def test_readouts_that_couple_outputs_are_refused():
    problem = make("three outputs", torch.float32)
    network = problem.fresh()
    network.readout.data += 1
    with pytest.raises(ValueError, match="readout must let neurons"):
        widefit.train(network, problem.inputs, problem.targets)


def test_other_modules_are_refused_with_what_trains_them():
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    with pytest.raises(
        ValueError, match=r"got Sequential; use widefit.GaussNewton.*GaussNewton\(network\).minimize\(X, y\)"
    ):
        check_network(network)  # `train` itself is held to its signature here
