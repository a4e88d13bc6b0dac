"""Bounds on parameters, against SciPy's solvers."""

import numpy as np
import pytest
import torch
from nist import Curve, reference
from scipy.optimize import least_squares, nnls
from small_systems import mlp, regression
from torch import nn

from widefit import GaussNewton, Residual, pinn


def difference(model, x, y):
    return model(x) - y


class Weights(nn.Module):
    """A linear model of one vector of weights."""

    def __init__(self, start: torch.Tensor):
        super().__init__()
        self.weights = nn.Parameter(start.clone())

    def forward(self, x):
        return x @ self.weights


@pytest.mark.parametrize("solver", ["auto", "svd", "primal", "cholesky"])
@pytest.mark.parametrize("seed", range(4))
def test_nonnegative_least_squares(solver: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    design = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    target = torch.randn(40, generator=generator, dtype=torch.float64)
    expected, norm = nnls(design.numpy(), target.numpy())
    model = Weights(torch.ones(12, dtype=torch.float64))
    optimizer = GaussNewton(model, residual=difference, bounds={"weights": (0, None)}, solver=solver)
    history = optimizer.minimize(design, target, max_iter=60)
    assert 2 * history[-1].loss * 40 == pytest.approx(norm**2, rel=1e-8)
    np.testing.assert_allclose(model.weights.detach().numpy(), expected, atol=1e-6)
    assert float(model.weights.detach().min()) >= 0
    assert int((model.weights == 0).sum()) == int((expected == 0).sum())
    assert optimizer.stationary


# (problem, bounds of its parameters); most cut the certified solution off.
BOUNDED = [
    ("Misra1a", {0: (None, 230.0)}),
    ("Misra1a", {0: (245.0, None), 1: (1e-5, 1e-2)}),
    ("Chwirut2", {0: (0.2, None), 2: (None, 0.012)}),
    ("Rat42", {0: (60.0, 71.0), 2: (0.0, 0.1)}),
    ("Kirby2", {1: (-0.1, None), 4: (None, 2e-5)}),
    ("MGH17", {2: (-2.0, 0.0), 3: (0.013, 0.05), 4: (0.0, 0.05)}),
    ("Thurber", {0: (1200.0, 1280.0), 3: (None, 70.0)}),
    ("DanWood", {0: (0.5, 1.0), 1: (3.0, 5.0)}),
]


@pytest.mark.parametrize(("name", "cut"), BOUNDED)
def test_the_bounded_solution_is_that_of_scipy(name: str, cut: dict) -> None:
    problem = reference(name)
    count = len(problem.parameters)
    low, high = np.full(count, -np.inf), np.full(count, np.inf)
    for place, (lower, upper) in cut.items():
        low[place] = -np.inf if lower is None else lower
        high[place] = np.inf if upper is None else upper
    start = np.clip(problem.starts[1], low, high)

    def residual(b: np.ndarray) -> np.ndarray:
        return (problem.model(problem.x, *torch.tensor(b)) - problem.y).numpy()

    inner = np.clip(start, np.where(np.isfinite(low), low + 1e-6 * np.abs(low), low),
                    np.where(np.isfinite(high), high - 1e-6 * np.abs(high), high))  # fmt: skip
    expected = least_squares(
        residual, inner, bounds=(low, high), x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=3000
    )
    model = Curve(problem.model, start.tolist())
    bounds = {f"coefficients.{place}": pair for place, pair in cut.items()}
    optimizer = GaussNewton(model, residual=difference, bounds=bounds)
    history = optimizer.minimize(problem.x, problem.y, max_iter=300)
    found = model.found().numpy()
    assert (found >= low).all()
    assert (found <= high).all()
    assert history[-1].loss * len(problem.y) <= expected.cost * (1 + 1e-9)
    np.testing.assert_allclose(found, expected.x, rtol=1e-4)


def test_bounds_that_do_not_bind_change_nothing_of_the_answer() -> None:
    problem = reference("Eckerle4")
    model = Curve(problem.model, problem.starts[0])
    bounds = {"coefficients.1": (1e-3, 1e3), "coefficients.2": (0.0, 1000.0)}
    GaussNewton(model, residual=difference, bounds=bounds).minimize(problem.x, problem.y)
    assert problem.worst_error(model.found()) < 1e-6


@pytest.mark.parametrize("width", [8, 30])
def test_an_unknown_coefficient_of_an_equation(width: int) -> None:
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(1, width, 1)
            self.rate = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, t):
            return self.net(t)

    t = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    data = torch.exp(-1.7 * t)
    model = Decay()
    optimizer = GaussNewton(model, bounds={"rate": (0.0, 1.5)})
    equation = Residual(lambda m, t: pinn.derivative(m, t, 0) + m.rate * m(t), t)
    for _ in range(15):
        info = optimizer.step(equation, Residual(lambda m, t, u: m(t) - u, t, data))
    assert float(model.rate) == 1.5
    assert 0 < info.loss < 0.1


def test_every_point_that_is_tried_lies_within() -> None:
    problem = reference("Rat43")
    seen = []
    model = Curve(problem.model, problem.starts[1])
    names = [f"coefficients.{place}" for place in range(4)]
    bounds = {names[2]: (0.0, 0.755), names[3]: (0.5, None)}

    def residual(m, x, y):
        seen.append([float(torch.func.debug_unwrap(value, recurse=True).min()) for value in m.coefficients])
        return m(x) - y

    GaussNewton(model, residual=residual, bounds=bounds).minimize(problem.x, problem.y, max_iter=40)
    values = np.array(seen)
    assert values[:, 2].min() >= -1e-12
    assert values[:, 2].max() <= 0.755 + 1e-12
    assert values[:, 3].min() >= 0.5 - 1e-12


def test_bounds_survive_copies_and_mini_batches() -> None:
    x, y = regression(60)
    model = mlp(3, 6, 1)
    optimizer = GaussNewton(model, bounds={"0.weight": (-0.6, 0.6), "2.bias": (None, 0.5)})
    for step in range(8):
        part = slice(15 * (step % 4), 15 * (step % 4) + 15)
        optimizer.step(x[part], y[part])
    assert float(model[0].weight.detach().abs().max()) <= 0.6
    assert float(model[2].bias.detach()) <= 0.5


class TestRefusals:
    @pytest.mark.parametrize(
        ("bounds", "message"),
        [
            ({"k": (0, None)}, "bounds name 'k', which is no trainable parameter; there are '0.weight', '0.bias'"),
            ({"0.bias": 3.0}, r"must be a pair \(lower, upper\)"),
            ({"0.bias": (1.0, 1.0)}, "the lower must be below the upper"),
            ({"0.bias": (5.0, None)}, "begins outside of them"),
            ({"0.bias": (float("nan"), None)}, "hold NaN"),
            ({"0.weight": (torch.zeros(7), None)}, r"have shape \(7,\), the parameter has \(1, 3\)"),
        ],
    )
    def test_bounds(self, bounds: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            GaussNewton(mlp(3, 1), bounds=bounds)

    def test_momentum(self) -> None:
        with pytest.raises(ValueError, match=r"momentum=0.5 may carry parameters over their bounds"):
            GaussNewton(mlp(3, 1), bounds={"0.bias": (-9, 9)}, momentum=0.5)
