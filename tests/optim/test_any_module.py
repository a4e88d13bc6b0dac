"""Modules that torch.vmap, hooks or factors do not suit: the step is that of autograd and a dense solve, or refused."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from widefit import GaussNewton
from widefit.gram.recording import factor_cost, factored_jacobian, module_outputs

SAMPLES, TIMES, FEATURES = 8, 5, 4


class Curve(nn.Module):
    """Plain parameters, no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.k = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.randn(FEATURES))

    def forward(self, x):
        return self.a * (1 - torch.exp(-x[:, 0] @ self.k))


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)


class SequenceFirst(OneLayer):
    def forward(self, x):
        return self.layer(x.transpose(0, 1)).tanh().mean(0)


class TimeDistributed(OneLayer):
    def forward(self, x):
        return self.layer(x.reshape(-1, FEATURES)).tanh().view(len(x), -1, 3).mean(1)


class DeepONet(OneLayer):
    """A trunk on a grid of its own, of as many points as are compared, as there are samples, or neither."""

    def __init__(self, points: int) -> None:
        super().__init__()
        self.trunk, self.points = nn.Linear(1, 3), points

    def forward(self, x):
        grid = torch.linspace(0, 1, self.points, dtype=x.dtype)[:, None]
        return self.layer(x[:, 0]).tanh() @ self.trunk(grid).tanh().T


class Keyword(OneLayer):
    def forward(self, x):
        return self.layer(input=x[:, 0]).tanh()


class Vectorized(OneLayer):
    """A layer called within a transform."""

    def forward(self, x):
        return torch.vmap(self.layer)(x[:, 0]).tanh()


class Recurrent(nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.recurrent, self.out = kind(FEATURES, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.recurrent(x)[0][:, -1])


class Solve(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(FEATURES) + 0.1 * torch.randn(FEATURES, FEATURES))
        self.out = nn.Linear(FEATURES, 1)

    def forward(self, x):
        return self.out(torch.linalg.solve(self.matrix, x[:, 0, :, None])[..., 0])


class Rectified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 5), nn.PReLU(), nn.Linear(5, 1))

    def forward(self, x):
        return self.layers(x[:, 0])


class UsedOutside(OneLayer):
    """A weight that is used beside its layer."""

    def forward(self, x):
        return self.layer(x[:, 0]).tanh() + self.layer.weight.sum(dim=1)


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


class Wrapped(nn.Module):
    """A layer whose weight is made of other parameters."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.layer, self.out = wrap(nn.Linear(FEATURES, FEATURES)), nn.Linear(FEATURES, 1)

    def forward(self, x):
        return self.out(self.layer(x[:, 0]).tanh())


FACTORED = {"keyword": Keyword, "sequence of samples": lambda: nn.Sequential(nn.Linear(FEATURES, 2), nn.Flatten())}
UNFACTORED = {
    "sequence first": SequenceFirst,
    "time-distributed": TimeDistributed,
    "trunk": lambda: DeepONet(7),
    "trunk of three points": lambda: DeepONet(3),
    "trunk of as many points": lambda: DeepONet(SAMPLES),
    "within a transform": Vectorized,
    "used outside": UsedOutside,
}
MODULES = {
    **FACTORED,
    **UNFACTORED,
    "plain parameters": Curve,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "prelu": Rectified,
    "batched solve": Solve,
    "weight norm": lambda: Wrapped(parametrizations.weight_norm),
    "weight norm by hooks": lambda: Wrapped(nn.utils.weight_norm),
    "orthogonal": lambda: Wrapped(parametrizations.orthogonal),
    "parametrized": lambda: Wrapped(lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric())),
    "spectral norm": lambda: Wrapped(parametrizations.spectral_norm).eval(),
    "spectral norm by hooks": lambda: Wrapped(nn.utils.spectral_norm).eval(),
}  # fmt: skip


def made(make) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(SAMPLES, TIMES, FEATURES, dtype=torch.float64)
    return model, x, torch.randn_like(model(x)).detach()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def slow_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    parameters, rows = list(model.parameters()), []
    for value in model(x).reshape(-1):
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([own.reshape(-1) for own in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("form", ["svd", "cholesky", "cg", "residual"])
@pytest.mark.parametrize("name", MODULES)
def test_a_step_goes_along_the_direction_of_autograd(name: str, form: str) -> None:
    model, x, y = made(MODULES[name])
    J = slow_jacobian(model, x)
    residual = (model(x) - y).detach().reshape(-1)
    # A tiny rate, so that nothing bends; λ relative to ‖J‖² as the optimizer has it.
    normal = J.T @ J + 1e-3 * J.square().sum() * torch.eye(J.shape[1], dtype=torch.float64)
    expected = -torch.linalg.solve(normal, J.T @ residual)
    before = flat(model)
    if form == "residual":
        optimizer = GaussNewton(
            model, damping=1e-3, lr=1e-6, residual=lambda network, a, b: (network(a[None])[0] - b).reshape(-1)
        )
    else:
        optimizer = GaussNewton(model, damping=1e-3, lr=1e-6, solver=form)
    assert optimizer.step(x, y).accepted
    found = (flat(model) - before) / 1e-6
    assert float((found - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize("count", [1, 2, SAMPLES])
@pytest.mark.parametrize("name", [*FACTORED, *UNFACTORED])
def test_factors_are_offered_only_where_they_are_right(name: str, count: int) -> None:
    model, x, _ = made(MODULES[name])
    x = x[:count]
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    assert factor_cost(model, parameters, (x,)).exact == (name in FACTORED)
    if name in FACTORED:
        one = torch.ones((), dtype=torch.float64)
        found = factored_jacobian(model, parameters, (x,), one).dense().matrix
        torch.testing.assert_close(found, slow_jacobian(model, x))


def test_a_bias_trains_while_its_weight_is_frozen() -> None:
    model, x, _ = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(TIMES * FEATURES, 6), nn.Tanh(), nn.Linear(6, 2)))
    J, sizes = slow_jacobian(model, x), [p.numel() for p in model.parameters()]
    names = ["1.bias", "3.weight"]
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in names}
    found = factored_jacobian(model, parameters, (x,), torch.ones((), dtype=torch.float64))
    pieces = dict(zip([name for name, _ in model.named_parameters()], J.split(sizes, dim=1), strict=True))
    expected = torch.cat([pieces[name] for name in names], dim=1)
    torch.testing.assert_close(found.dense().matrix, expected)
    torch.testing.assert_close(found.gram(torch.float64), expected @ expected.T)
    torch.testing.assert_close(found.diagonal(), expected.square().sum(dim=1))


@pytest.mark.parametrize("name", ["lstm", "batched solve", "keyword", "plain parameters"])
def test_vmap_is_used_where_it_is_right(name: str) -> None:
    model, x, _ = made(MODULES[name])
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    known = {}
    outputs = module_outputs(model, (x,), known)
    assert outputs.vectorizes(parameters) == (name in ("keyword", "plain parameters"))
    assert len(known) == 1
    derivative = torch.cat(
        [own.reshape(*own.shape[:2], -1) for own in next(outputs.jacobian(parameters))[1].values()], dim=2
    )
    torch.testing.assert_close(derivative.flatten(0, 1), slow_jacobian(model, x))


class Counting(OneLayer):
    """Counts its calls, in place or in a new buffer."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return self.layer(x[:, 0])


@pytest.mark.parametrize("style", ["loss", "residual"])
@pytest.mark.parametrize(
    "make",
    [lambda: Wrapped(parametrizations.spectral_norm), lambda: Wrapped(nn.utils.spectral_norm),
     lambda: Counting(True), lambda: Counting(False)],
    ids=["spectral norm", "spectral norm by hooks", "in place", "anew"],
)  # fmt: skip
def test_a_forward_pass_that_changes_buffers_is_refused(make, style: str) -> None:
    model, x, y = made(make)
    before, parameters = {name: b.clone() for name, b in model.named_buffers()}, flat(model)
    residual = {} if style == "loss" else {"residual": lambda network, a, b: network(a[None])[0] - b}
    with pytest.raises(ValueError, match=r"changes the buffer .*model\.eval\(\)"):
        GaussNewton(model, **residual).step(x, y)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert torch.equal(flat(model), parameters)


def test_findings_are_made_once_and_not_copied() -> None:
    model, x, y = made(lambda: Recurrent(nn.GRU))
    optimizer = GaussNewton(model, solver="cholesky")
    optimizer.step(x, y)
    known = optimizer._traces.known(model)
    assert known
    assert not any(known.values())
    findings = dict(known)
    optimizer.step(x, y)
    assert optimizer._traces.known(model) == findings
    assert not copy.deepcopy(optimizer._traces).known(model)
