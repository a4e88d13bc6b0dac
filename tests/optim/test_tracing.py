"""J from layer inputs and signals against reverse differentiation, and when it is not offered."""

from dataclasses import replace

import pytest
import torch
from small_systems import mlp
from torch import nn

from widefit import GaussNewton, Residual, pinn
from widefit.optim.system import Block, System
from widefit.optim.tracing import Traces
from widefit.sketches import CountSketch


class Physics(nn.Module):
    """A layer called twice, one without bias, one whose weight is frozen, and a coefficient of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.middle, self.last = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 2, bias=False)
        self.rate = nn.Parameter(torch.tensor(0.3))
        self.middle.bias.requires_grad_(False)
        self.first.weight.requires_grad_(False)

    def forward(self, x):
        hidden = torch.tanh(self.middle(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.middle(hidden)))


def heat(network, x):
    return pinn.derivative(network, x, axis=1) - network.rate * pinn.laplacian(network, x) * network(x)


def first_output(network, x, value):
    return network(x)[0] - value


def plain(network, x):
    return pinn.laplacian(network, x)


def system(network: nn.Module, *functions, count: int = 5) -> tuple[System, dict]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    blocks = [Residual(f, x[: count - i], *([x[: count - i, 0]] if f is first_output else []), weight=1.0 + i)
              for i, f in enumerate(functions)]  # fmt: skip
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    return System([Block.of_residual(network, block) for block in blocks]), parameters


CASES = {
    "two kinds of residual": lambda: system(Physics().double(), heat, first_output),
    "laplacian": lambda: system(mlp(2, 7, 5, 1), plain),
    "several blocks": lambda: system(mlp(2, 130, 90, 1), plain, first_output, plain),
    "one sample": lambda: system(mlp(2, 4, 1), plain, count=1),
    "one layer": lambda: system(mlp(2, 1), first_output),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_reverse_differentiation(case: str) -> None:
    problem, parameters = CASES[case]()
    expansion = problem.expand(problem.outputs(parameters))
    expected = problem.jacobian(parameters, expansion, 10**9).dense().matrix
    jacobian = problem.traced(parameters, expansion, Traces(), 3 * 8 * expected.shape[1] * 4, 10**9)
    assert jacobian is not None
    u, v = torch.randn(len(expected), dtype=torch.float64), torch.randn(expected.shape[1], dtype=torch.float64)
    chosen = torch.randperm(len(expected))[: max(1, len(expected) // 2)]
    close = {"rtol": 1e-9, "atol": 1e-11 * float(expected.abs().max()) + 1e-13}
    assert jacobian.shape == tuple(expected.shape)
    torch.testing.assert_close(jacobian.dense().matrix, expected, **close)
    torch.testing.assert_close(torch.cat([block for _, block in jacobian.row_blocks()]), expected, **close)
    torch.testing.assert_close(jacobian.rows(chosen), expected[chosen], **close)
    torch.testing.assert_close(jacobian.matvec(v), expected @ v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(jacobian.rmatvec(u), expected.T @ u, rtol=1e-9, atol=1e-9)
    gram = expected @ expected.T
    torch.testing.assert_close(jacobian.gram(torch.float64), gram, rtol=1e-9, atol=1e-12 * float(gram.max()))
    torch.testing.assert_close(jacobian.diagonal(), gram.diagonal(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        jacobian.gram_columns(chosen), gram[:, chosen], rtol=1e-9, atol=1e-12 * float(gram.max())
    )
    sketch = CountSketch(7, expected.shape[1])
    torch.testing.assert_close(jacobian.sketched(sketch), sketch.apply(expected.T), rtol=1e-9, atol=1e-9)


def own_transform(network, x):
    return torch.func.grad(lambda p: network(p).sum())(x)


def weight_used_twice(network, x):
    return network(x) * network[0].weight.sum()


def no_rule(network, x):
    return pinn.laplacian(lambda p: network(p).cumsum(0), x)


class Mostly(nn.Module):
    """Most parameters are in no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(30, 2)), nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(torch.tanh(self.scale * x).sum(dim=0))


@pytest.mark.parametrize(
    ("make", "function"),
    [(lambda: mlp(2, 4, 1), own_transform), (lambda: mlp(2, 4, 1), weight_used_twice), (lambda: mlp(2, 4, 1), no_rule),
     (lambda: Mostly().double(), first_output)],
)  # fmt: skip
def test_not_offered_where_it_would_be_wrong(make, function) -> None:
    problem, parameters = system(make(), function)
    assert problem.traced(parameters, problem.expand(problem.outputs(parameters)), Traces(), 10**9, 10**9) is None


def test_a_function_that_changes_its_ways_is_differentiated_again() -> None:
    network, hidden = mlp(2, 6, 1), [False]

    def residual(model, x):
        return torch.vmap(model)(x[None])[0] if hidden[0] else model(x)

    x = torch.rand(30, 2, dtype=torch.float64)
    optimizer = GaussNewton(network, residual=residual, solver="cholesky")
    optimizer.step(x)
    assert optimizer.plan is not None
    assert optimizer.plan.jacobian == "traced"
    hidden[0] = True
    assert optimizer.step(x).accepted
    assert optimizer.plan.jacobian == "dense"


def test_not_offered_where_memory_is_short() -> None:
    problem, parameters = system(mlp(2, 50, 1), plain, count=200)
    expansion, traces = problem.expand(problem.outputs(parameters)), Traces()
    assert problem.traced(parameters, expansion, traces, 10**6, 10**5) is None
    assert problem.traced(parameters, expansion, traces, 10**6, 10**7) is not None


@pytest.mark.parametrize("solver", ["svd", "primal", "cholesky", "cg", "sketched-cg", "nystrom-cg"])
def test_every_solver_takes_the_same_step(solver: str) -> None:
    x = torch.rand(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    networks = [mlp(2, 8, 1), mlp(2, 8, 1)]

    def hidden(model, point):
        return torch.vmap(lambda p: pinn.laplacian(model, p) + 1)(point[None])[0]

    def shown(model, point):
        return pinn.laplacian(model, point) + 1

    for network, residual in zip(networks, (hidden, shown), strict=True):
        GaussNewton(network, residual=residual, solver=solver, damping=1e-3).step(x)
    flat = [torch.cat([p.detach().reshape(-1) for p in network.parameters()]) for network in networks]
    torch.testing.assert_close(flat[0], flat[1], rtol=1e-4, atol=1e-6)


def test_fresh_points_are_differentiated_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)

    def blocks() -> list[Residual]:
        x = torch.rand(12, 2, generator=generator, dtype=torch.float64)
        return [Residual(plain, x), Residual(first_output, x[:8], x[:8, 0] * x[:8, 1])]

    fixed, model = blocks(), mlp(2, 20, 10, 1)
    optimizer = GaussNewton(model, solver="cholesky")
    for _ in range(3):
        optimizer.step(*fixed)
    assert optimizer.plan is not None
    assert optimizer.plan.dtype == torch.float64
    problem = System([Block.of_residual(model, block) for block in fixed])
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    expansion = problem.expand(problem.outputs(parameters))
    exact = problem.jacobian(parameters, expansion, 10**9).dense().matrix
    narrow = problem.traced(parameters, expansion, Traces(), 10**6, 10**9, torch.float32)
    assert narrow is not None
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.dense().matrix.double(), exact, rtol=1e-4, atol=1e-6 * float(exact.abs().max()))
    for _ in range(20):
        info = optimizer.step(*blocks())
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert info.loss < optimizer.history[0].loss / 10


def test_fresh_points_are_differentiated_in_float64_once_float32_holds_the_steps_back() -> None:
    def loss(narrow: bool) -> float:
        def function(network, x):
            return pinn.derivative(network, x, axis=0) - network(x)[0]

        def start(network, x):
            return network(x)[0] - 1

        generator = torch.Generator().manual_seed(0)
        optimizer = GaussNewton(mlp(1, 12, 1), solver="cholesky")
        if narrow:
            optimizer.policy = replace(optimizer.policy, known=0.0)
        for _ in range(60):
            x = torch.rand(24, 1, generator=generator, dtype=torch.float64)
            info = optimizer.step(Residual(function, x), Residual(start, 0 * x[:1]))
        return info.loss

    wide, narrow = loss(False), loss(True)
    assert 0 < wide < 1e-2 * narrow


def test_a_residual_that_holds_tensors_of_its_own_type_keeps_it() -> None:
    mixing = torch.tensor([[1.0, 2.0], [0.5, 1.0]], dtype=torch.float64)

    def mixed(network, x):
        return network(mixing @ x)

    problem, parameters = system(mlp(2, 7, 1), mixed)
    expansion, traces = problem.expand(problem.outputs(parameters)), Traces()
    expected = problem.jacobian(parameters, expansion, 10**9).dense().matrix
    for _ in range(2):
        found = problem.traced(parameters, expansion, traces, 10**6, 10**9, torch.float32)
        assert found is not None
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.dense().matrix, expected.float())


def test_resumes_to_the_same_bits_where_points_are_fresh() -> None:
    def block(seed: int) -> Residual:
        return Residual(plain, torch.rand(6, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))

    whole, again = mlp(2, 20, 1), mlp(2, 20, 1, seed=5)
    straight, resumed = GaussNewton(whole), GaussNewton(again)
    for step in range(4):
        straight.step(block(step))
    again.load_state_dict(whole.state_dict())
    resumed.load_state_dict(straight.state_dict())
    for step in range(4, 8):
        straight.step(block(step))
        resumed.step(block(step))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert resumed.history.losses == straight.history.losses
