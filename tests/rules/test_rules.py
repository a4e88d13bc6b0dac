"""Rules: the step is the one the mathematics asks for, predictions hold, bad steps are taken back."""

import numpy as np
import pytest
import torch
from problems import NAMES, DenseReference, make

import widefit
from widefit.gram import DenseGram
from widefit.rules import GaussNewton, GradientDescent, NetworkProblem, Objective
from widefit.rules.gauss_newton import Damping
from widefit.solvers import CG, Cholesky
from widefit.trackers import Displacement


def view(problem, alpha: float, weights: np.ndarray, offset: np.ndarray | None = None):
    """A linearization from dense matrices, away from W₀ by `offset`."""
    reference = DenseReference.of(problem)
    displacement = None
    if offset is not None:
        reference.weight = reference.weight + offset
        outputs = range(problem.network.out_features)
        response = np.stack([reference.jacobian(k) @ offset.ravel() for k in outputs], axis=1)
        norms = [np.sum(offset[reference.readout[:, k] != 0] ** 2) for k in outputs]
        displacement = Displacement(response, np.array(norms))
    objective = Objective(problem.targets, weights, alpha)
    gram = {k: DenseGram(torch.from_numpy(reference.gram(k))) for k in range(problem.network.out_features)}
    return reference, NetworkProblem(objective, reference.outputs(), displacement, gram.__getitem__)


# J of digits is 120 × 262,144: too large for the stacked least squares that serve as reference. With 60 neurons J
# has 300 columns.
SMALL = [name for name in NAMES if name not in ("nothing fires", "huge", "tiny", "digits")]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("alpha", [0.0, 0.05])
@pytest.mark.parametrize("relative", [1e-3, 10.0])
def test_gauss_newton_minimizes_the_damped_model(name, alpha, relative):
    """The step is the minimizer of ‖√ω (e − J δ)‖² + α ‖u + δ‖² + λ ‖δ‖², found here with J written out."""
    problem = make(name, torch.float64, width=60)
    generator = np.random.default_rng(0)
    weights = generator.uniform(0.5, 2, problem.inputs.shape[0])
    offset = 0.05 * generator.standard_normal(problem.network.weight.shape) if alpha else None
    reference, linearization = view(problem, alpha, weights, offset)
    direction = GaussNewton().direction(linearization, Damping(relative), Cholesky())
    error = problem.targets - reference.outputs()
    predicted = 0.0
    for output in range(problem.network.out_features):
        own = np.flatnonzero(np.repeat(reference.readout[:, output] != 0, reference.inputs.shape[1]))
        jacobian = reference.jacobian(output)[:, own]
        scale = weights @ np.sum(jacobian**2, axis=1) / weights.sum()
        damping = max(alpha, relative * scale)
        u = np.zeros(own.size) if offset is None else offset.ravel()[own]
        root = np.sqrt(weights)
        # Stacked least squares: no normal equations, no sample space.
        system = np.vstack([root[:, None] * jacobian, np.sqrt(damping) * np.eye(own.size)])
        # α‖u + δ‖² + (λ − α)‖δ‖² = λ‖δ + (α/λ) u‖² + constant.
        rhs = np.concatenate([root * error[:, output], -alpha / np.sqrt(damping) * u])
        delta = np.linalg.lstsq(system, rhs, rcond=None)[0]
        found = -jacobian.T @ direction.g[:, output].numpy() - float(direction.shrink[output]) * u
        np.testing.assert_allclose(found, delta, atol=1e-7 * max(1e-3, np.abs(delta).max()))
        predicted += np.sum(weights * (error[:, output] - jacobian @ delta) ** 2) + alpha * np.sum((u + delta) ** 2)
    assert direction.predicted == pytest.approx(predicted, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_descent_is_the_gradient(name):
    problem = make(name, torch.float64)
    network = problem.fresh()
    lr = 0.3 / max(1.0, float(np.abs(problem.inputs).max())) ** 2
    x, y = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)
    expected = problem.fresh()
    for _ in range(3):
        expected.weight.grad = None
        (0.5 * (expected(x) - y).square().sum()).backward()
        with torch.no_grad():
            expected.weight -= lr * expected.weight.grad
    widefit.train(network, x, y, rule=GradientDescent(lr), max_iter=3, tol=0)
    scale = float(expected.weight.detach().abs().max())
    torch.testing.assert_close(network.weight, expected.weight, rtol=1e-9, atol=1e-9 * scale)


def test_automatic_learning_rate_descends():
    problem = make("digits", torch.float32)
    history = widefit.train(problem.fresh(), problem.inputs, problem.targets, rule="gradient-descent", max_iter=30)
    assert all(after < before for before, after in zip(history.losses[:-1], history.losses[1:], strict=True))


def test_divergence_is_noticed_and_taken_back():
    problem = make("digits", torch.float32)
    network = problem.fresh()
    history = widefit.train(network, problem.inputs, problem.targets, rule=GradientDescent(1e5), max_iter=30)
    assert history.stop_reason == "diverged"
    assert not history[-1].accepted
    assert torch.isfinite(network.weight).all()


@pytest.mark.parametrize("after", [2.0, float("nan"), float("inf")])
def test_a_rejected_step_raises_the_damping(after):
    problem = make("plain relu", torch.float64)
    rule, state = GaussNewton(), Damping(1e-4)
    local = view(problem, 0.0, np.ones(40))[1]
    direction = rule.direction(local, state, Cholesky())
    verdict = rule.judge(local, direction, after * local.value, True, state)
    assert not verdict.accepted
    assert verdict.state.damping > 1e-4


def test_solvers_lead_to_the_same_place():
    problem = make("digits", torch.float64)
    losses = [
        widefit.train(problem.fresh(), problem.inputs, problem.targets, solver=solver, tol=1e-12, max_iter=4).losses
        for solver in (Cholesky(), CG(tolerance=1e-12))
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize("bad", [{"damping": -1.0}, {"damping": float("nan")}, {"decrease": 0.0}, {"increase": 1.0}])
def test_gauss_newton_refuses(bad):
    with pytest.raises(ValueError, match="must"):
        GaussNewton(**bad)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("inf"), "fast"])
def test_gradient_descent_refuses(lr):
    with pytest.raises(ValueError, match="lr must be a positive number"):
        GradientDescent(lr)
