"""Points of every shape: inside or on it, and spread as its measure says."""

import math

import numpy as np
import pytest
import torch

from widefit import pinn

LETTER = [[0, 0], [3, 0], [3, 1], [1, 1], [1, 3], [0, 3]]  # an L: not convex


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_sobol_is_more_even_than_chance() -> None:
    low, high = [-1.0, 2.0], [1.0, 6.0]
    points = pinn.sobol(low, high, 256, seed=3, dtype=torch.float64)
    cells = ((points - torch.tensor(low)) / (torch.tensor(high) - torch.tensor(low)) * 16).long()
    assert len(torch.unique(cells, dim=0)) == 256  # one in each of 16 × 16 cells
    assert torch.equal(points, pinn.sobol(low, high, 256, seed=3, dtype=torch.float64))
    assert not torch.equal(points, pinn.sobol(low, high, 256, seed=4, dtype=torch.float64))


def test_grid_is_the_midpoints() -> None:
    found = pinn.grid([0.0, -1.0], [1.0, 1.0], [2, 4], dtype=torch.float64)
    expected = [[x, y] for x in (0.25, 0.75) for y in (-0.75, -0.25, 0.25, 0.75)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert pinn.grid([0.0], [1.0], [5]).shape == (5, 1)


def test_slabs_cut_time() -> None:
    assert pinn.slabs([-1, 0], [1, 1], 2) == [([-1.0, 0.0], [1.0, 0.5]), ([-1.0, 0.5], [1.0, 1.0])]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_balls_and_spheres(size: int) -> None:
    centre = torch.arange(size, dtype=torch.float64)
    inside = pinn.ball(centre.tolist(), 2.0, 4000, generator(), torch.float64) - centre
    radii = torch.linalg.vector_norm(inside, dim=1)
    assert float(radii.max()) <= 2
    # Half of the volume lies within 2 · 2^(−1/d).
    assert float((radii < 2 * 0.5 ** (1 / size)).double().mean()) == pytest.approx(0.5, abs=0.03)
    around = pinn.sphere(centre.tolist(), 2.0, 2000, generator(), torch.float64) - centre
    torch.testing.assert_close(torch.linalg.vector_norm(around, dim=1), torch.full((2000,), 2.0, dtype=torch.float64))
    assert float(around.mean(dim=0).abs().max()) < 0.15


def test_polygon_that_is_not_convex() -> None:
    points = pinn.polygon(LETTER, 5000, generator(), torch.float64)
    x, y = points.T
    assert len(points) == 5000
    assert bool(((x >= 0) & (y >= 0) & (x <= 3) & (y <= 3) & ((x <= 1) | (y <= 1))).all())
    assert float(((x > 1) & (y < 1)).double().mean()) == pytest.approx(2 / 5, abs=0.03)
    edge = pinn.polygon_edge(LETTER, 6000, generator(), torch.float64)
    on_left = edge[:, 0].abs() < 1e-12
    assert float(on_left.double().mean()) == pytest.approx(3 / 12, abs=0.03)


def test_meshes_of_triangles_segments_and_tetrahedra() -> None:
    vertices = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    points = pinn.mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), 6000, generator())
    assert points.dtype == torch.float64
    x, y = points.T
    assert bool(((y >= -1e-12) & (x + y <= 2 + 1e-12) & (y <= 2 + 2 * x + 1e-12)).all())
    right = points[x > 0]
    assert len(right) / 6000 == pytest.approx(2 / 3, abs=0.03)
    torch.testing.assert_close(right.mean(dim=0), torch.full((2,), 2 / 3, dtype=torch.float64), atol=0.03, rtol=0)
    line = pinn.mesh(vertices, [[1, 2]], 500, generator())
    torch.testing.assert_close(line.sum(dim=1), torch.full((500,), 2.0, dtype=torch.float64))
    corners = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    body = pinn.mesh(corners, [[0, 1, 2, 3]], 4000, generator())
    assert bool((body >= 0).all() and (body.sum(dim=1) <= 1).all())
    torch.testing.assert_close(body.mean(dim=0), torch.full((3,), 0.25, dtype=torch.float64), atol=0.02, rtol=0)


def test_adaptive_points_are_where_the_residual_is() -> None:
    network = torch.nn.Linear(1, 1).double()
    candidates = torch.linspace(0, 1, 1000, dtype=torch.float64)[:, None]

    def peak(_, point):
        return torch.exp(-(((point[0] - 0.3) / 0.05) ** 2))

    near = pinn.adaptive(peak, network, candidates, 100, power=2, share=0.1, generator=generator())
    assert len(torch.unique(near)) == 100
    assert float(((near - 0.3).abs() < 0.1).double().mean()) > 0.8
    even = pinn.adaptive(lambda u, x: 0 * x[0], network, candidates, 500, generator=generator())
    assert float(even.mean()) == pytest.approx(0.5, abs=0.05)
    # Powers that overflow by themselves: half of the weight of x⁸ lies above 0.93.
    huge = pinn.adaptive(lambda u, x: 1e300 * x[0], network, candidates, 50, power=8, share=0, generator=generator())
    assert float(huge.mean()) == pytest.approx(0.9, abs=0.05)


def test_cells_that_are_thin_count_by_their_measure() -> None:
    # Three triangles of the same area, two of them a thousandth and less as high as wide.
    vertices = [[0, 0], [1, 0], [0.7, 1e-4], [0.7, -1e-4], [0, 2], [0.01, 2], [0, 2.01]]
    single = torch.tensor(vertices, dtype=torch.float32)
    points = pinn.mesh(single, [[0, 1, 2], [0, 1, 3], [4, 5, 6]], 3000, generator())
    low = points[:, 1] < 1
    for share in (low & (points[:, 1] > 0), low & (points[:, 1] < 0), ~low):
        assert float(share.double().mean()) == pytest.approx(1 / 3, abs=0.03)
    # So thin that a Gram determinant is lost in float64 as well.
    thinner = torch.tensor([[0, 0], [1, 0], [0.7, 1e-9], [0, 2], [1e-4, 2], [0, 2.00001]], dtype=torch.float64)
    points = pinn.mesh(thinner, [[0, 1, 2], [3, 4, 5]], 2000, generator())
    assert float((points[:, 1] < 1).double().mean()) == pytest.approx(0.5, abs=0.04)


def test_a_small_polygon_far_away() -> None:
    corners = torch.tensor(LETTER) / 4 + 2e5
    points = pinn.polygon(corners, 500, generator(), torch.float32) - 2e5
    assert bool(((points[:, 0] <= 0.25) | (points[:, 1] <= 0.25)).all())
    with pytest.raises(ValueError, match="no area"):
        pinn.polygon(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]) + 2e5, 5)


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: pinn.adaptive(lambda u, x: x[0], torch.nn.Identity(), torch.ones(9, 2, device="cpu"), 4, generator=g),
        lambda g: pinn.mesh(torch.eye(3, device="cpu"), torch.tensor([[0, 1, 2]], device="cpu"), 4, g),
        lambda g: pinn.polygon(torch.tensor(LETTER, device="cpu"), 4, g),
        lambda g: pinn.polygon_edge(torch.tensor(LETTER, device="cpu"), 4, g),
    ],
    ids=["adaptive", "mesh", "polygon", "polygon_edge"],
)
@pytest.mark.parametrize("seeded", [True, False])
def test_points_are_drawn_for_the_device_of_what_is_given(draw, seeded: bool) -> None:
    given = torch.Generator("cpu").manual_seed(0) if seeded else None
    with torch.device("meta"):  # torch's default device is another one
        assert draw(given).device.type == "cpu"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pinn.sobol([0], [0], 4), "below high"),
        (lambda: pinn.grid([0, 0], [1, 1], [3]), "number of cells"),
        (lambda: pinn.slabs([0], [1], 0), "count"),
        (lambda: pinn.slabs([0], [1], 2, axis=1), "axis 1"),
        (lambda: pinn.ball([0, 0], -1.0, 5), "radius"),
        (lambda: pinn.sphere([], 1.0, 5), "at least one coordinate"),
        (lambda: pinn.polygon([[0, 0], [1, 1]], 5), "three points"),
        (lambda: pinn.polygon([[0, 0], [1, 1], [2, 2]], 5), "no area"),
        (lambda: pinn.mesh([[0.0, 0.0], [1.0, 0.0]], [[0, 2]], 5), "numbers of vertices, 0 … 1"),
        (lambda: pinn.mesh([[0.0, 0.0], [0.0, 0.0]], [[0, 1]], 5), "no length"),
        (lambda: pinn.mesh([[0.0, math.nan]], [[0, 0]], 5), "finite"),
        (lambda: pinn.mesh([[0.0, 0.0]], [[0]], 5), "cells must be of shape"),
        (lambda: pinn.adaptive(lambda u, x: x[0], torch.nn.Linear(1, 1), torch.zeros(3, 1), 4), "count must be 1 … 3"),
        (lambda: pinn.adaptive(lambda u, x: x[0] / 0, torch.nn.Linear(1, 1), torch.ones(3, 1), 2), "not finite at 3"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
