"""`curve_fit` against SciPy's, one curve and many."""

import numpy as np
import pytest
import scipy.optimize
import torch
from nist import MODELS, reference

import widefit

X = torch.linspace(0, 4, 50, dtype=torch.float64)


def curve(x, a, k, c):
    return a * torch.exp(-k * x) + c


def on_arrays(function):
    return lambda x, a, b, c: function(torch.as_tensor(x), float(a), float(b), float(c)).numpy()


def noisy(seed: int = 0, count: int = 1, size: float = 0.05) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    true = torch.rand(3, count, 1, generator=generator, dtype=torch.float64) + 0.5
    return curve(X, *true) + size * torch.randn(count, 50, generator=generator, dtype=torch.float64)


def matrix() -> torch.Tensor:
    """A covariance of neighbours that go together."""
    return 0.01 * torch.exp(-(X[:, None] - X).abs()) + 1e-3 * torch.eye(50, dtype=torch.float64)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("sigma", [None, 0.1 + X.square(), matrix()])
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, [3.0, 0.7, 0.6])])
def test_answers_of_scipy(absolute: bool, sigma: torch.Tensor | None, bounds: tuple) -> None:
    y = noisy()[0]
    tight = {} if np.ndim(bounds[1]) == 0 else {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14}
    expected, spread = scipy.optimize.curve_fit(
        on_arrays(curve), X.numpy(), y.numpy(), sigma=None if sigma is None else sigma.numpy(),
        absolute_sigma=absolute, bounds=bounds, **tight,
    )  # fmt: skip
    found = widefit.curve_fit(curve, X, y, sigma=sigma, absolute_sigma=absolute, bounds=bounds)
    np.testing.assert_allclose(found.parameters, expected, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(found.covariance, spread, rtol=1e-3, atol=1e-12)
    assert found.converged
    parameters, covariance = found
    assert parameters is found.parameters
    torch.testing.assert_close(found.standard_errors, covariance.diagonal().sqrt())


def test_several_variables_and_functions_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(2, 80, generator=generator, dtype=torch.float64)

    def plane(x, a, b, c):
        return a * x[0] + b * x[1] * x[0] + c

    def relative(x, a, b, c):  # a value depends on all observations
        return plane(x, a, b, c) / x[1].mean()

    for function in (plane, relative):
        y = function(x, 1.0, -2.0, 0.3) + 0.01 * torch.randn(80, generator=generator, dtype=torch.float64)
        expected, spread = scipy.optimize.curve_fit(on_arrays(function), x.numpy(), y.numpy())
        found = widefit.curve_fit(function, x.numpy(), y.numpy())
        np.testing.assert_allclose(found.parameters, expected, rtol=1e-6)
        np.testing.assert_allclose(found.covariance, spread, rtol=1e-4)


def test_a_thousand_fits_at_once() -> None:
    y = noisy(1, 1000)
    found = widefit.curve_fit(curve, X, y)
    assert found.parameters.shape == (1000, 3)
    assert found.converged.all()
    for place in range(0, 1000, 97):
        expected, spread = scipy.optimize.curve_fit(on_arrays(curve), X.numpy(), y[place].numpy())
        np.testing.assert_allclose(found.parameters[place], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.covariance[place], spread, rtol=1e-2)


def test_many_fits_within_bounds_and_with_weights() -> None:
    y, sigma = noisy(2, 20), 0.1 + X
    bounds = ([0.0, 0.0, 0.6], [1.0, 5.0, np.inf])
    found = widefit.curve_fit(curve, X.expand(20, 50), y, [0.9, 1.0, 1.0], sigma, True, bounds=bounds)
    for place in range(20):
        expected = scipy.optimize.curve_fit(
            on_arrays(curve), X.numpy(), y[place].numpy(), [0.9, 1.0, 1.0], sigma.numpy(), True, bounds=bounds,
            ftol=1e-14, xtol=1e-14, gtol=1e-14,
        )[0]  # fmt: skip
        squares = float((((curve(X, *torch.tensor(expected)) - y[place]) / sigma) ** 2).sum())
        assert float(found.squares[place]) <= squares * (1 + 1e-9)
        np.testing.assert_allclose(found.parameters[place], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_both_starts_of_the_references_at_once(name: str) -> None:
    problem = reference(name)
    x = problem.x.T if problem.x.ndim == 2 else problem.x

    def model(x, *b):  # two variables come first here
        return problem.model(x.movedim(0, -1) if problem.x.ndim == 2 else x, *b)

    found = widefit.curve_fit(model, x, problem.y, torch.tensor(problem.starts, dtype=torch.float64))
    assert problem.worst_error(found.parameters) < 1e-6
    assert found.starts is not None
    assert found.starts.shape == (2, len(problem.parameters))


def test_starts_that_lead_nowhere_do_not_matter() -> None:
    y = curve(X, 2.0, 1.5, 0.1)
    starts = torch.tensor([[1e200, -1e200, 0.0], [1.0, 1.0, 0.0], [0.0, -300.0, 0.0]], dtype=torch.float64)
    found = widefit.curve_fit(curve, X, y, starts)
    np.testing.assert_allclose(found.parameters, [2.0, 1.5, 0.1], rtol=1e-8)


def test_what_cannot_be_told_is_infinite() -> None:
    y = noisy()[0]
    with pytest.warns(UserWarning, match="the covariance could not be estimated"):
        found = widefit.curve_fit(lambda x, a, b, c: a * b * x + c, X, y)
    assert torch.isinf(found.covariance).all()
    with pytest.warns(UserWarning, match=r"not stationary.*max_iter=1"):
        assert not widefit.curve_fit(curve, X, y, max_iter=1).converged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": X[:-1]}, "must agree in their last dimension"),
        ({"y": X.clone().fill_(torch.nan)}, "y holds 50 numbers that are not finite"),
        ({"sigma": -X - 1}, "sigma must be positive"),
        ({"sigma": torch.ones(7)}, "does not go with y"),
        ({"sigma": -torch.eye(50)}, "must be positive definite"),
        ({"bounds": (0, [1.0, 1.0])}, "bounds hold 2 numbers for 3 parameters"),
        ({"bounds": (1, 0)}, "below its upper bound"),
        ({"bounds": (0, 1), "p0": [2.0, 0.5, 0.5]}, "p0 lies outside of the bounds"),
        ({"p0": torch.ones(2, 3), "y": torch.zeros(4, 50)}, r"p0 of shape \(2, 3\) does not go with y of shape"),
        ({"function": lambda x, *b: x}, "any number of parameters: give p0"),
        ({"function": lambda x, a: a}, r"function gives shape \(\)"),
        ({"x": X[:2], "y": X[:2]}, "2 observations cannot determine 3 parameters"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        widefit.curve_fit(**({"function": curve, "x": X, "y": X} | arguments))
