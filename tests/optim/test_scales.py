"""Parameters and columns of very different size: what a step does must not depend on units."""

import pytest
import torch
from nist import Curve
from small_systems import mlp, regression, slow_jacobian
from torch import nn

from widefit import GaussNewton
from widefit.gram.jacobian import DenseJacobian
from widefit.optim.curvature import Primal, Spectral
from widefit.optim.scaling import Scaling
from widefit.solvers import Cholesky


def difference(model, x, y):
    return model(x) - y


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1.0, 1e9])
def test_a_decay_is_found_in_any_unit_of_time(unit: float) -> None:
    t = torch.linspace(0, 5, 101, dtype=torch.float64) * unit
    y = 3.3 * torch.exp(-t / (0.9 * unit))
    model = Curve(lambda t, height, tau: height * torch.exp(-t / tau), [1.0, 0.5 * unit])
    history = GaussNewton(model, residual=difference).minimize(t, y)
    torch.testing.assert_close(model.found(), torch.tensor([3.3, 0.9 * unit], dtype=torch.float64), rtol=1e-8, atol=0)
    assert len(history) < 25


def test_the_same_steps_in_other_units() -> None:
    t = torch.linspace(0, 5, 41, dtype=torch.float64)
    noise = 0.05 * torch.randn(41, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for unit in (1.0, 2.0**-40):
        model = Curve(lambda t, height, tau: height * torch.exp(-t / tau), [1.0, 4.0 * unit])
        optimizer = GaussNewton(model, residual=difference)
        losses.append([optimizer.step(t * unit, 3 * torch.exp(-t) + noise).loss for _ in range(6)])
    # Units that are powers of two change no digit, but for the probe that is a part of the whole vector.
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.parametrize("solver", ["auto", "svd", "primal"])
def test_a_line_over_large_numbers(solver: str) -> None:
    x = torch.linspace(1e8, 2e8, 20, dtype=torch.float64)
    model = Curve(lambda x, a, b: a + b * x, [0.0, 0.0])
    GaussNewton(model, solver=solver, residual=difference).minimize(x, 2 + 3e-8 * x)
    torch.testing.assert_close(model.found(), torch.tensor([2.0, 3e-8], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_a_raw_table(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    x = z * torch.tensor([1.0, 1e5, 1e-4], dtype=torch.float64)
    y = z.sum(dim=1, keepdim=True) + 0.1 * torch.randn(500, 1, generator=generator, dtype=torch.float64)
    design = torch.cat([z, torch.ones_like(y)], dim=1)
    best = float((design @ torch.linalg.lstsq(design, y).solution - y).square().mean())
    torch.manual_seed(0)
    model = nn.Linear(3, 1).to(dtype)
    history = GaussNewton(model).minimize(x.to(dtype), y.to(dtype))
    assert history[-1].loss < 1.001 * best
    assert history[-1].step < 10


@pytest.mark.parametrize("solver", ["svd", "primal"])
def test_damping_in_parameter_space_is_scaled(solver: str) -> None:
    x, y = regression(60)
    model = mlp(3, 8, 1)
    jacobian = slow_jacobian(model, model(x)) * torch.logspace(-3, 3, 41, dtype=torch.float64)
    residual = (model(x) - y).detach().reshape(-1)
    single = torch.zeros(41, dtype=torch.bool)
    single[:5] = True
    scaling = Scaling(None, single, torch.ones(41, dtype=torch.float64), float(residual.norm()))
    made = make_curvature(solver, jacobian, residual, scaling)
    norms = jacobian.norm(dim=0)
    weights = (norms * norms[5:].log().mean().exp()).sqrt()
    weights[:5] = norms[:5].clamp_min(0.1 * float(residual.norm()))
    expected_trace = float((jacobian / weights).square().sum())
    assert made.trace == pytest.approx(expected_trace, rel=1e-10)
    damping = 1e-3 * made.trace
    normal = jacobian.T @ jacobian + damping * torch.diag(weights.square())
    expected = -torch.linalg.solve(normal, jacobian.T @ residual)
    found = made.direction(residual, damping)
    torch.testing.assert_close(found.value, expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.image, jacobian @ expected, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(made.image(expected), jacobian @ expected, rtol=1e-10, atol=1e-12)
    assert made.norm(expected) == pytest.approx(float((weights * expected).norm()), rel=1e-10)


def make_curvature(solver: str, jacobian: torch.Tensor, residual: torch.Tensor, scaling: Scaling):
    if solver == "svd":
        return Spectral(DenseJacobian(jacobian), residual, scaling)
    return Primal(DenseJacobian(jacobian), Cholesky(), scaling)


def test_the_largest_norms_are_kept_and_a_column_of_zeros_is_harmless() -> None:
    largest = torch.tensor([1.0, 5.0, 0.0], dtype=torch.float64)
    scaling = Scaling(largest, torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.float64), 1.0)
    norms = scaling.norms(torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64))
    assert norms.tolist() == [3.0, 5.0, 0.0]
    assert scaling.sizes(norms).tolist() == [1 / 3, 1 / 5, 1 / 5]
    nothing = torch.zeros(3, dtype=torch.float64)
    assert torch.isfinite(scaling.sizes(nothing)).all()


def test_a_parameter_without_influence_stays() -> None:
    x = torch.linspace(0, 1, 10, dtype=torch.float64)
    model = Curve(lambda x, a, b: a * x + 0 * b, [0.0, 7.0])
    GaussNewton(model, residual=difference).minimize(x, 2 * x)
    torch.testing.assert_close(model.found(), torch.tensor([2.0, 7.0], dtype=torch.float64))
