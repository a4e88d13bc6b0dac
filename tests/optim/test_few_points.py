"""A small loss is not a solution: the warning, the loss at other points, weights of points, and why a run is stuck."""

import copy
import re
import warnings

import pytest
import torch
from small_systems import mlp, regression
from torch import nn

from widefit import GaussNewton, Residual, pinn
from widefit.callbacks import EarlyStopping


def equation(u, x):
    return pinn.derivative(u, x, 0) + u(x)


def points(count: int) -> torch.Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)[:, None]


def test_few_fixed_points_are_warned_of_once() -> None:
    model = mlp(1, 10, 1)
    optimizer = GaussNewton(model)
    optimizer.step(Residual(equation, points(61)))
    with pytest.warns(UserWarning, match="61 residuals at the same points in every step for 31 parameters.*take 62"):
        optimizer.step(Residual(equation, points(61)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(Residual(equation, points(61)))


@pytest.mark.parametrize("case", ["enough points", "new points", "data", "outputs of a model", "weighted data"])
def test_nothing_is_said_where_nothing_is_wrong(case: str) -> None:
    def data(u, x, y):
        return u(x) - y

    model, x = mlp(1, 10, 1), points(20)
    optimizer = GaussNewton(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            given = {
                "enough points": (Residual(equation, points(62)),),
                "new points": (Residual(equation, x + 0.001 * step),),
                "data": (Residual(data, x, x**2),),
                "outputs of a model": (x, x**2),
                "weighted data": (Residual(data, x, x**2, weight=torch.ones(20)),),
            }[case]
            optimizer.step(*given)


def test_the_loss_elsewhere_is_recorded_and_ends_a_run() -> None:
    model = mlp(1, 6, 1)
    block, elsewhere = Residual(equation, points(40)), Residual(equation, points(33))
    optimizer = GaussNewton(model)
    history = optimizer.minimize(block, max_iter=4, validation=[elsewhere])
    assert history[-1].metric == optimizer.evaluate(elsewhere) != history[-1].loss
    drawn = []

    def draw():
        drawn.append(pinn.box([0.0], [1.0], 10, dtype=torch.float64))
        return (Residual(equation, drawn[-1]),)

    optimizer.minimize(block, max_iter=2, validation=draw, callbacks=[EarlyStopping(higher_is_better=False)])
    assert len(drawn) == 2
    with pytest.raises(ValueError, match="give one of them"):
        optimizer.minimize(block, validation=[block], metric=lambda model: 0.0)


def test_weights_of_points_are_those_of_their_squares() -> None:
    x, y = regression(30)
    weights = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def difference(network, point, value):
        return network(point) - value

    def weighed(network, point, value, weight):
        return weight.sqrt() * (network(point) - value)

    one = mlp(3, 10, 1)
    other = copy.deepcopy(one)
    wanted = 0.5 * float((weights[:, None] * (one(x) - y).detach().square()).mean())
    optimizer = GaussNewton(one)
    assert optimizer.evaluate(Residual(difference, x, y, weight=weights)) == pytest.approx(wanted, rel=1e-12)
    second = GaussNewton(other)
    for _ in range(3):
        found = optimizer.step(Residual(difference, x, y, weight=weights))
        assert found.loss == second.step(Residual(weighed, x, y, weights)).loss
    assert GaussNewton(one).step(Residual(difference, x, y, weight=weights.float().numpy())).accepted


@pytest.mark.parametrize("weight", [torch.zeros(5), -torch.ones(5), torch.full((5,), torch.nan), torch.ones(5, 1)])
def test_weights_that_are_none_are_refused(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one number >= 0 a sample"):
        Residual(equation, points(5), weight=weight)
    with pytest.raises(ValueError, match="holds 4 samples"):
        Residual(equation, points(5), weight=torch.ones(4))


def test_a_run_at_its_end_says_what_to_try() -> None:
    x, y = regression(60, dtype=torch.float32)
    history = GaussNewton(mlp(3, 4, 1, dtype=torch.float32)).minimize(x, y, max_iter=300)
    assert history.stop_reason == "stalled"
    assert history.why.startswith("no step lowered the loss any more; stationary: no step lowers the loss by more than")
    assert "asks for float64" in history.why
    assert sum(not info.accepted for info in history) <= 1
    assert type(history).from_dict(history.to_dict()).why == history.why


@pytest.mark.parametrize("solver", ["auto", "cholesky"])
def test_units_that_never_fire_are_told(solver: str) -> None:
    x, y = torch.rand(30, 1, dtype=torch.float64), torch.rand(30, 1, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    with torch.no_grad():
        model[0].bias.fill_(-9.0)
    optimizer = GaussNewton(model, solver=solver)
    history = optimizer.minimize(x, y, max_iter=20)
    assert history.stop_reason == "stalled"
    assert "; 24 of 25 parameters move no output" in history.why
    alive = GaussNewton(nn.Linear(1, 1).double(), solver=solver).minimize(x, y, max_iter=20)
    assert alive.stop_reason == "stalled"
    assert "move no output" not in alive.why


def test_what_no_step_has_kept_is_told_however_little() -> None:
    def rounded(u, x, y):
        value = u(x)
        return value + (torch.round(20 * value) / 20 - value).detach() - y

    torch.manual_seed(0)
    x = torch.rand(50, 1, dtype=torch.float64)
    history = GaussNewton(mlp(1, 8, 1)).minimize(Residual(rounded, x, torch.sin(9 * x)), max_iter=60)
    assert history.stop_reason == "stalled"
    promised = re.search(r"promised to lower the loss by (\S+) %, but no step did", history.why)
    assert promised is not None
    assert 0 < float(promised[1]) < 100


def test_a_derivative_that_is_wrong_is_told_from_rounding() -> None:
    class Contrary(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    class Wrong(nn.Linear):
        def forward(self, x):
            return Contrary.apply(super().forward(x))

    x, y = regression(20)
    history = GaussNewton(Wrong(3, 1).double()).minimize(x, y, max_iter=20)
    assert history.stop_reason == "stalled"
    assert len(history) == 2
    assert "stuck: the linear model promised" in history.why
