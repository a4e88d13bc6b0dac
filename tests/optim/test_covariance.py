"""Standard errors: the certified ones of NIST, and SciPy's."""

import numpy as np
import pytest
import torch
from nist import MODELS, Curve, reference
from scipy.optimize import curve_fit
from small_systems import mlp, regression
from torch import nn

from widefit import GaussNewton, Residual


def difference(model, x, y):
    return model(x) - y


@pytest.mark.parametrize("name", [name for name in MODELS if name != "Lanczos1"])
def test_certified_standard_deviations(name: str) -> None:
    problem = reference(name)
    model = Curve(problem.model, problem.parameters.tolist())
    errors = GaussNewton(model, residual=difference).standard_errors(problem.x, problem.y)
    found = torch.stack(list(errors.values()))
    torch.testing.assert_close(found, problem.deviations, rtol=1e-5, atol=0)


@pytest.mark.parametrize("absolute", [False, True])
def test_covariance_is_that_of_scipy(absolute: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.linspace(0, 4, 60, dtype=torch.float64)
    sigma = 0.02 + 0.05 * torch.rand(60, generator=generator, dtype=torch.float64)
    y = 2.5 * torch.exp(-1.3 * x) + 0.5 + sigma * torch.randn(60, generator=generator, dtype=torch.float64)

    def curve(x, a, b, c):
        return a * torch.exp(-b * x) + c

    model = Curve(curve, [1.0, 1.0, 0.0])
    optimizer = GaussNewton(model, residual=lambda m, x, y, s: (m(x) - y) / s)
    optimizer.minimize(x, y, sigma)
    found, expected = curve_fit(
        lambda x, *b: curve(torch.tensor(x), *b).numpy(), x.numpy(), y.numpy(), p0=[1.0, 1.0, 0.0],
        sigma=sigma.numpy(), absolute_sigma=absolute, xtol=1e-14, ftol=1e-14,
    )  # fmt: skip
    np.testing.assert_allclose(model.found().numpy(), found, rtol=1e-6)
    np.testing.assert_allclose(optimizer.covariance(absolute=absolute).numpy(), expected, rtol=1e-4)


def test_of_a_model_that_is_differentiated_sample_by_sample() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNN(1, 2, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0][:, -1]

    torch.manual_seed(0)
    model, x = Recurrent().double(), torch.rand(40, 3, 1, dtype=torch.float64)
    gradients = [torch.autograd.grad(entry, model.parameters(), retain_graph=True) for entry in model(x).flatten()]
    rows = torch.stack([torch.cat([piece.flatten() for piece in row]) for row in gradients])
    # The two biases of a cell are one.
    model.cell.bias_hh_l0.requires_grad_(False)
    free = rows[:, : model.cell.weight_ih_l0.numel() + model.cell.weight_hh_l0.numel() + 2]
    found = GaussNewton(model).covariance(x, model(x).detach(), absolute=True)
    torch.testing.assert_close(found, torch.linalg.inv(free.T @ free))


def test_of_a_linear_layer_and_in_blocks() -> None:
    x, y = regression(50)
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    optimizer = GaussNewton(model)
    optimizer.minimize(x, y)
    design = torch.cat([x, torch.ones(50, 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.inv(design.T @ design) * float((model(x) - y).detach().square().sum()) / 46
    torch.testing.assert_close(optimizer.covariance(), expected, rtol=1e-8, atol=1e-12)
    halves = [Residual(difference, x[:25], y[:25]), Residual(difference, x[25:], y[25:])]
    torch.testing.assert_close(optimizer.covariance(*halves), expected, rtol=1e-8, atol=1e-12)
    errors = optimizer.standard_errors()
    assert errors["weight"].shape == (1, 3)
    assert float(errors["bias"]) == pytest.approx(float(expected[3, 3] ** 0.5), rel=1e-8)


class TestRefusals:
    def test_parameters_that_are_not_determined(self) -> None:
        x = torch.linspace(0, 1, 20, dtype=torch.float64)
        model = Curve(lambda x, a, b, c: (a + b) * x + c, [1.0, 2.0, 0.0])
        with pytest.raises(ValueError, match=r"a direction in 'coefficients.0', 'coefficients.1' changes none"):
            GaussNewton(model, residual=difference).covariance(x, x)
        with pytest.raises(ValueError, match="20 residuals, 41 parameters"):
            GaussNewton(mlp(3, 8, 1)).covariance(*regression(20))

    def test_other_losses_and_no_data(self) -> None:
        optimizer = GaussNewton(mlp(3, 1), loss="huber")
        with pytest.raises(ValueError, match="needs data"):
            optimizer.covariance()
        with pytest.raises(ValueError, match="needs loss='mse' or residuals"):
            optimizer.covariance(*regression(20))
