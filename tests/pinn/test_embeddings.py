"""Conditions that are built into a network hold exactly, are differentiated by jets, and train."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from widefit import GaussNewton, Residual, pinn
from widefit.pinn.jets import Kind, propagate

POINT = torch.tensor([0.3, 0.8], dtype=torch.float64)


def tail(size: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, 6), nn.Tanh(), nn.Linear(6, 2)).double()


@pytest.mark.parametrize("harmonics", [1, 3])
def test_periodic_with_all_derivatives(harmonics: int) -> None:
    embedding = pinn.Periodic(2, {0: 2.0}, harmonics).double()
    assert embedding.out_features == 2 * harmonics + 1
    network = nn.Sequential(embedding, tail(embedding.out_features))
    shift = torch.tensor([2.0, 0.0], dtype=torch.float64)
    for axes in ((), (0,), (0, 0), (0, 0, 0), (0, 1)):
        here, there = (pinn.partials(network, point, axes)[0] for point in (POINT, POINT + shift))
        torch.testing.assert_close(here, there)
    moved = pinn.partials(network, POINT + shift.flip(0), ())[0]
    assert not torch.allclose(moved, pinn.partials(network, POINT, ())[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_period_is_exact_after_float32(dtype: torch.dtype) -> None:
    embedding = nn.Sequential(pinn.Periodic(1, {0: 1.0}, harmonics=2)).to(dtype).double()
    ends = embedding(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-14)
    assert embedding(torch.zeros(2, 1)).dtype == torch.float32
    moved = embedding.to("meta").to_empty(device="cpu")
    assert torch.equal(moved[0].angles, torch.tensor([[1.0], [2.0]], dtype=torch.float64) * 2 * math.pi)


def test_values_hold_by_construction() -> None:
    network = pinn.Constrained(
        tail(2), lambda x: x[..., :1] * (1 - x[..., :1]), lambda x: torch.sin(math.pi * x[..., 1:])
    )
    edge = torch.tensor([[0.0, 0.4], [1.0, 0.7]], dtype=torch.float64)
    expected = torch.sin(math.pi * edge[:, 1:]).expand(2, 2)
    torch.testing.assert_close(network(edge), expected)
    assert not torch.allclose(network(edge + 0.1), torch.sin(math.pi * (edge[:, 1:] + 0.1)))
    assert pinn.Constrained(tail(2), lambda x: 0 * x[..., :1])(edge).count_nonzero() == 0


@pytest.mark.parametrize("learnt", [True, False])
def test_fourier_features(learnt: bool) -> None:
    features = pinn.Fourier(2, 5, scale=3.0, learnt=learnt).double()
    assert [p.requires_grad for p in features.parameters()] == [learnt]
    found = features(POINT)
    angles = features.waves.weight @ POINT
    torch.testing.assert_close(found, torch.cat([angles.cos(), angles.sin()]))


def test_fourier_features_with_a_scale_for_each_coordinate() -> None:
    one, each = pinn.Fourier(3, 5), pinn.Fourier(3, 5, scale=[1.0, 0.5, 20.0])
    torch.testing.assert_close(each.waves.weight, one.waves.weight * torch.tensor([1.0, 0.5, 20.0]))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(pinn.Periodic(2, {1: 1.0}), tail(3)),
        lambda: nn.Sequential(pinn.Fourier(2, 4, 2.0).double(), tail(8)),
        lambda: pinn.Constrained(tail(2), lambda x: x[..., :1] * x[..., 1:], lambda x: x[..., :1]),
        lambda: pinn.Constrained(tail(2), lambda x: x[..., 1:] - 0.5, pinn.Held(tail(2), {1: 0.5})),
    ],
)
def test_jets_go_through_and_parameters_are_differentiated(build) -> None:
    network = build()
    assert propagate(network, POINT, POINT[None], Kind((4,))) is not None
    named = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    def third(parameters, transform: bool):
        def u(x):
            return functional_call(network, parameters, (x,))[0]

        if not transform:
            return pinn.partials(u, POINT, (0, 0, 1))[0]
        first = grad(lambda x: grad(lambda y: grad(u)(y)[0])(x)[0])
        return first(POINT)[1]

    expected, found = (grad(third)(named, transform) for transform in (True, False))
    for name in named:
        torch.testing.assert_close(found[name], expected[name])


def test_a_network_begins_where_another_is_held() -> None:
    last = tail(2)
    network = pinn.Constrained(tail(2), lambda x: x[..., 1:] - 0.5, pinn.Held(last, {1: 0.5}))
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert names == [f"network.{name}" for name, _ in network.network.named_parameters()]
    there = torch.tensor([[0.3, 0.5], [0.9, 0.5]], dtype=torch.float64)
    expected = last(there).detach()
    torch.testing.assert_close(network(there), expected, rtol=0, atol=0)
    assert not torch.allclose(network(there + 0.1), last(there + 0.1))
    with torch.no_grad():
        last[0].weight.zero_()  # what is held is a copy
    torch.testing.assert_close(network(there), expected, rtol=0, atol=0)
    first = pinn.partials(pinn.Held(network, {1: 0.5}), POINT, (0,), (1,))
    torch.testing.assert_close(first[0], pinn.partials(network, torch.tensor([0.3, 0.5]).double(), (0,))[0])
    assert first[1].count_nonzero() == 0


def test_a_distance_for_each_output() -> None:
    network = pinn.Constrained(tail(2), lambda x: torch.cat([x[..., :1], 1 + 0 * x[..., :1]], dim=-1), lambda x: x)
    edge = torch.tensor([[0.0, 0.4]], dtype=torch.float64)
    found, free = network(edge).detach(), network.network(edge).detach()
    assert float(found[0, 0]) == 0.0
    torch.testing.assert_close(found[0, 1], free[0, 1] + 0.4)


def test_a_system_with_two_outputs_and_hard_conditions_is_solved() -> None:
    # u′ = v, v′ = −u, u(0) = 0, v(0) = 1: sine and cosine.
    start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    network = pinn.Constrained(inner, lambda t: t, lambda t: start + 0 * t)

    def oscillator(u, t):
        value, slope = pinn.partials(u, t, (), (0,))
        return torch.stack([slope[0] - value[1], slope[1] + value[0]])

    t = pinn.grid([0.0], [3.0], [70], torch.float64)
    history = GaussNewton(network).minimize(Residual(oscillator, t), max_iter=40, tol=1e-10)
    assert history.losses[-1] < 1e-8
    exact = torch.cat([t.sin(), t.cos()], dim=1)
    assert float((network(t) - exact).detach().abs().max()) < 1e-3
    assert vmap(network)(t).shape == (70, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pinn.Periodic(2, {2: 1.0}), "coordinates 0 … 1"),
        (lambda: pinn.Periodic(2, {}), "coordinates 0 … 1"),
        (lambda: pinn.Periodic(2, {0: 0.0}), "periods must be positive"),
        (lambda: pinn.Held(tail(2), {}), "values must name coordinates"),
        (lambda: pinn.Held(tail(2), {-1: 0.0}), "values must name coordinates"),
        (lambda: pinn.Held(tail(2), {1: math.inf}), "values must be finite"),
        (lambda: pinn.Periodic(2, {0: 1.0}, 0), "harmonics"),
        (lambda: pinn.Fourier(2, 0), "frequencies and scale"),
        (lambda: pinn.Fourier(2, 4, [1.0, 0.0]), "frequencies and scale"),
        (lambda: pinn.Fourier(2, 4, [1.0]), "one for each of 2 coordinates"),
        (lambda: pinn.partials(tail(2), POINT), "at least one tuple"),
        (lambda: pinn.partials(tail(2), POINT, (0, 2)), "axis 2 is out of range"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
