"""Jets against nested forward derivatives: every rule, every way a network may be written, and what has no rule."""

import pytest
import torch
from torch import nn
from torch.func import hessian, jacfwd, jvp, vmap

from widefit import pinn
from widefit.pinn.jets import Kind, propagate

POINT = torch.tensor([0.4, 1.3, 0.7], dtype=torch.float64)
W = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
V = torch.tensor([0.5, -0.3, 1.1], dtype=torch.float64)
UP_TO_SECOND, SUMMED = Kind((2,)), Kind((1, 1, 1), summed=True)


def sequential() -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 7, bias=False), nn.SiLU()]
    return nn.Sequential(*first, nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 2)).double()


class Written(nn.Module):
    """Scaled inputs, Fourier features, a skip connection, and pieces put together again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.last = nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 1)

    def forward(self, x):
        x = 2 * (x - 0.5) / 1.5
        hidden = torch.cat([x, torch.sin(3.0 * x), torch.cos(x)], dim=-1)
        hidden = hidden + torch.tanh(self.second(torch.sigmoid(self.first(hidden))))
        return self.last(hidden).squeeze(-1) * x[..., 0] * (1 - x[..., 1])


FUNCTIONS = {
    "sequential": sequential(),
    "written": Written().double(),
    "tanh": lambda x: torch.tanh(x), "sigmoid": lambda x: x.sigmoid(), "silu": nn.functional.silu,
    "softplus": lambda x: nn.functional.softplus(x, beta=2.0), "gelu": nn.functional.gelu, "relu": torch.relu,
    "sin": torch.sin, "cos": torch.cos, "sinh": torch.sinh, "cosh": torch.cosh, "erf": torch.erf,
    "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "square": torch.square,
    "reciprocal": lambda x: 1 / x, "quotient": lambda x: x / (1 + x[0] ** 2), "divided": lambda x: x / V,
    "powers": lambda x: x**3 + x.pow(2.5) - x**1 + x**0, "minus": lambda x: 2 - x - V,
    "subtracted": lambda x: torch.sub(V, x * x, alpha=3),
    "product": lambda x: x * x.sum() * V, "outer": lambda x: (x[:, None] * x[None, :] * x).reshape(-1),
    "matrix": lambda x: W @ (x * x), "other side": lambda x: (x * x) @ W.T,
    "batch of one": lambda x: torch.tanh(x[None] @ W.T)[0],
    "unpacked": lambda x: (lambda a, b, c: a * b + torch.sin(c))(*x),
    "mean": lambda x: (x * x).mean(dim=-1, keepdim=True),
    "stacked": lambda x: torch.stack([x[0] * x[1], x[2] ** 2, V[0]]).unsqueeze(0).transpose(0, 1).flatten(),
    "linear in value": lambda x: V + x,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_agrees_with_nested_derivatives(name: str) -> None:
    function = FUNCTIONS[name]
    value, first, second = function(POINT), jacfwd(function)(POINT), hessian(function)(POINT)
    jet = propagate(function, POINT, torch.eye(3, dtype=torch.float64), SUMMED)
    assert jet is not None
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(jet.rows[0], value, **close)
    torch.testing.assert_close(jet.rows[1:-1].movedim(0, -1), first, **close)
    torch.testing.assert_close(jet.rows[-1], second.diagonal(dim1=-2, dim2=-1).sum(-1), **close)
    only_first = propagate(function, POINT, V[None], Kind((1,)))
    assert only_first is not None
    torch.testing.assert_close(only_first.rows[1], first @ V, **close)


def nested(function, axes):
    """∂ᵏ/∂x_a ∂x_b … by k nested forward derivatives."""
    for unit in torch.eye(3, dtype=torch.float64)[list(axes)]:
        function = pushed(function, unit)
    return function(POINT)


def pushed(function, unit):
    return lambda x: jvp(function, (x,), (unit,))[1]


PARTIALS = [
    (), (0,), (2,), (0, 0), (1, 1, 1), (0, 0, 0, 0), (0, 1), (2, 1), (0, 0, 1), (0, 1, 2), (1, 1, 2, 2), (0, 1, 1, 1),
    (0, 0, 1, 2),
]  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_partial_derivatives_to_the_fourth_order(name: str) -> None:
    function = FUNCTIONS[name]
    found = pinn.partials(function, POINT, *PARTIALS)
    for axes, derivative in zip(PARTIALS, found, strict=True):
        expected = nested(function, axes)
        torch.testing.assert_close(derivative, expected.reshape(derivative.shape), rtol=1e-9, atol=1e-9)


def test_series_of_unlike_lengths_need_no_transform() -> None:
    wanted = pinn.partials(FUNCTIONS["sequential"], POINT, *PARTIALS)
    refused = lambda x: FUNCTIONS["sequential"](x).cumsum(0).diff(prepend=torch.zeros(1, dtype=x.dtype))  # noqa: E731
    assert propagate(refused, POINT, V[None], UP_TO_SECOND) is None
    for one, other in zip(wanted, pinn.partials(refused, POINT, *PARTIALS), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["sequential", "written"])
def test_every_derivative_under_vmap(name: str) -> None:
    function = FUNCTIONS[name]
    points = torch.rand(5, 3, dtype=torch.float64)
    first, second = vmap(jacfwd(function))(points), vmap(hessian(function))(points)
    torch.testing.assert_close(
        vmap(lambda x: pinn.laplacian(function, x))(points), second.diagonal(dim1=-2, dim2=-1).sum(-1)
    )
    torch.testing.assert_close(vmap(lambda x: pinn.derivative(function, x, axis=1))(points), first[..., 1])
    torch.testing.assert_close(vmap(lambda x: pinn.derivative(function, x, -1, order=2))(points), second[..., 2, 2])
    if name == "written":
        torch.testing.assert_close(vmap(lambda x: pinn.gradient(function, x))(points), first)


def chosen_by_value(x):
    return x * 2 if x.sum() > 0 else x


def own_derivative(x):
    return pinn.gradient(lambda p: torch.sin(p).sum() * p[0], x)


@pytest.mark.parametrize(
    "function",
    [chosen_by_value, own_derivative, lambda x: x.cumsum(0) ** 2, lambda x: torch.where(x > 0.5, x**2, x),
     lambda x: torch.linalg.vector_norm(x)[None], lambda x: x.prod()[None], lambda x: x**x, lambda x: x @ x],
)  # fmt: skip
def test_what_has_no_rule_is_differentiated_by_torch(function) -> None:
    assert propagate(function, POINT, V[None], UP_TO_SECOND) is None
    expected = hessian(function)(POINT)
    found = pinn.laplacian(function, POINT)
    torch.testing.assert_close(found, expected.diagonal(dim1=-2, dim2=-1).sum(-1).reshape(found.shape))
    torch.testing.assert_close(
        pinn.derivative(function, POINT, 0), jacfwd(function)(POINT)[..., 0].reshape(found.shape)
    )


def test_no_rule_for_what_works_in_place_or_approximately() -> None:
    for function in (
        lambda x: nn.functional.relu(x * 1.0, inplace=True),
        lambda x: (x * 1.0).add_(1),
        lambda x: nn.functional.gelu(x, approximate="tanh"),
        lambda x: torch.div(x, 2, rounding_mode="floor"),
        lambda x: x * propagate(torch.sin, POINT, V[None], Kind((1,))),
        lambda x: V,
    ):
        assert propagate(function, POINT, V[None], UP_TO_SECOND) is None


def test_errors_of_a_network_are_its_own() -> None:
    with pytest.raises(RuntimeError, match=r"cannot be multiplied|size mismatch|shapes"):
        pinn.laplacian(nn.Linear(5, 1).double(), POINT)


def test_derivatives_by_the_parameters() -> None:
    network = sequential()
    named = {name: p.detach() for name, p in network.named_parameters()}

    def residual(parameters, by_jets: bool):
        def function(x):
            return torch.func.functional_call(network, parameters, (x,)).sum()

        if by_jets:
            return pinn.laplacian(function, POINT)
        return hessian(function)(POINT).diagonal().sum()

    expected = torch.func.grad(lambda p: residual(p, False))(named)
    found = torch.func.grad(lambda p: residual(p, True))(named)
    for name in named:
        torch.testing.assert_close(found[name], expected[name])
