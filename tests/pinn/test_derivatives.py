"""Derivatives against formulas, alone and under vmap; samplers inside their box."""

import math

import pytest
import torch
from torch.func import vmap

from widefit import pinn

POINT = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)


def wave(x: torch.Tensor) -> torch.Tensor:
    return (torch.sin(2 * x[0]) * torch.exp(x[1]) + x[2] ** 3).reshape(1)


def field(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[0] ** 2, x[0] * x[1], torch.sin(x[2])])


def test_gradient() -> None:
    x, y, z = POINT
    expected = torch.stack([2 * torch.cos(2 * x) * torch.exp(y), torch.sin(2 * x) * torch.exp(y), 3 * z**2])
    torch.testing.assert_close(pinn.gradient(wave, POINT), expected)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivative_of_any_order(order: int) -> None:
    x, y, _ = POINT
    expected = 2**order * torch.sin(2 * x + order * math.pi / 2) * torch.exp(y)
    torch.testing.assert_close(pinn.derivative(wave, POINT, axis=0, order=order), expected)
    torch.testing.assert_close(pinn.derivative(wave, POINT, axis=-3, order=order), expected)


def test_laplacian_of_one_and_of_several_outputs() -> None:
    x, y, z = POINT
    torch.testing.assert_close(pinn.laplacian(wave, POINT), -3 * torch.sin(2 * x) * torch.exp(y) + 6 * z)
    expected = torch.stack([torch.full_like(x, 2.0), torch.zeros_like(x), -torch.sin(z)])
    torch.testing.assert_close(pinn.laplacian(field, POINT), expected)


@pytest.mark.parametrize("function", [lambda p: p, lambda p: p.cumsum(0).diff(prepend=torch.zeros(1).to(p))])
def test_laplacian_by_some_coordinates(function) -> None:
    x, y, z = POINT
    along_x, along_z = -4 * torch.sin(2 * x) * torch.exp(y), 6 * z
    torch.testing.assert_close(pinn.laplacian(lambda p: wave(function(p)), POINT, axes=(0, -1)), along_x + along_z)
    found = pinn.laplacian(lambda p: field(function(p)), POINT, axes=[2])
    torch.testing.assert_close(found, torch.stack([torch.zeros_like(x), torch.zeros_like(x), -torch.sin(z)]))


def test_divergence() -> None:
    torch.testing.assert_close(pinn.divergence(field, POINT), 2 * POINT[0] + POINT[0] + torch.cos(POINT[2]))


def test_all_work_under_vmap() -> None:
    points = torch.randn(5, 3, dtype=torch.float64)
    for function in (
        lambda p: pinn.gradient(wave, p),
        lambda p: pinn.laplacian(wave, p),
        lambda p: pinn.laplacian(field, p),
        lambda p: pinn.divergence(field, p),
        lambda p: pinn.derivative(wave, p, axis=1, order=2),
    ):
        torch.testing.assert_close(vmap(function)(points), torch.stack([function(p) for p in points]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pinn.laplacian(wave, torch.zeros(4, 3)), "ONE point"),
        (lambda: pinn.derivative(wave, POINT, axis=3), "axis 3 is out of range"),
        (lambda: pinn.laplacian(wave, POINT, axes=(0, 3)), "axis 3 is out of range"),
        (lambda: pinn.laplacian(wave, POINT, axes=(0, -3)), "each of them once"),
        (lambda: pinn.laplacian(wave, POINT, axes=()), "at least one axis"),
        (lambda: pinn.derivative(wave, POINT, axis=0, order=0), "order must be at least 1"),
        (lambda: pinn.gradient(field, POINT), "one output"),
        (lambda: pinn.divergence(wave, POINT), "one component a coordinate"),
        (lambda: pinn.box([0], [0], 3), "below high"),
        (lambda: pinn.box([0, 1], [1], 3), "as many numbers"),
        (lambda: pinn.box([0], [1], 0), "count must be at least 1"),
        (lambda: pinn.boundary([0, 0], [1, 1], 3, axes=[2]), "axes must be among"),
        (lambda: pinn.initial([0, 0], [1, 1], 3, axis=2), "axis 2 is out of range"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_samplers_stay_where_they_belong() -> None:
    low, high = [-1.0, 0.0, 2.0], [1.0, 0.5, 5.0]
    lower, upper = torch.tensor(low), torch.tensor(high)
    inside = pinn.box(low, high, 500, torch.Generator().manual_seed(0))
    assert bool(((inside >= lower) & (inside <= upper)).all())
    torch.testing.assert_close(inside.mean(dim=0), (lower + upper) / 2, atol=0.1, rtol=0.1)
    faces = pinn.boundary(low, high, 60)
    on_face = (faces == lower) | (faces == upper)
    assert bool(on_face.any(dim=1).all())
    assert [int((faces[:, a] == lower[a]).sum()) for a in range(3)] == [10, 10, 10]
    spatial = pinn.boundary(low, high, 40, axes=[0])
    assert bool(((spatial[:, 0] == -1) | (spatial[:, 0] == 1)).all())
    start = pinn.initial(low, high, 20, dtype=torch.float64)
    assert start.dtype == torch.float64
    assert bool((start[:, 2] == 2).all())


def test_seed_fixes_the_points() -> None:
    draw = [pinn.box([0], [1], 9, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(draw[0], draw[1])
