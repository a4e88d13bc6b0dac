"""The 27 nonlinear regression problems of NIST, from both of their starting points, to the certified digits."""

import pytest
import torch
from nist import MODELS, Curve, reference

from widefit import GaussNewton

# Every problem from both starts. From the first start of MGH10, exp(b2 / (x + b3)) is off by seven powers of ten.
_FLAT = pytest.mark.xfail(raises=AssertionError, strict=True, reason="the steps end in a flat region")
_FITS = [
    pytest.param(name, start, marks=[_FLAT] if (name, start) == ("MGH10", 0) else [])
    for name in MODELS
    for start in (0, 1)
]


def difference(model, x, y):
    return model(x) - y


@pytest.mark.parametrize("name", MODELS)
def test_certified_values_are_those_of_the_model(name: str) -> None:
    problem = reference(name)
    squares = float((problem.model(problem.x, *problem.parameters) - problem.y).square().sum())
    # Lanczos1 has no noise: its certified sum of squares is below the rounding of eleven digits.
    assert squares == pytest.approx(problem.squares, rel=1e-8, abs=1e-20)


@pytest.mark.parametrize(("name", "start"), _FITS)
def test_certified_parameters(name: str, start: int) -> None:
    problem = reference(name)
    model = Curve(problem.model, problem.starts[start])
    optimizer = GaussNewton(model, residual=difference)
    history = optimizer.minimize(problem.x, problem.y, max_iter=300)
    assert history.stop_reason == "stalled"
    assert problem.worst_error(model.found()) < 1e-6
    squares = 2 * history[-1].loss * len(problem.y)
    assert squares == pytest.approx(problem.squares, rel=1e-8, abs=1e-18)


@pytest.mark.parametrize("start", [0, 1])
def test_a_derivative_that_overflows_shortens_the_step(start: int) -> None:
    problem = reference("Rat43")
    model = Curve(problem.model, problem.starts[start], torch.float32)
    GaussNewton(model, residual=difference).minimize(problem.x.float(), problem.y.float())
    assert problem.worst_error(model.found()) < 1e-2


def test_a_run_that_ends_early_says_so() -> None:
    problem = reference("ENSO")
    optimizer = GaussNewton(Curve(problem.model, problem.starts[0]), residual=difference)
    assert optimizer.status == "no step has been taken"
    assert optimizer.minimize(problem.x, problem.y, max_iter=3).stop_reason == "max_iter"
    assert not optimizer.stationary
    assert optimizer.status.startswith("not stationary: the linear model of the latest step promised")
    optimizer.minimize(problem.x, problem.y, max_iter=100)
    assert optimizer.stationary
    assert optimizer.status.startswith("stationary")
