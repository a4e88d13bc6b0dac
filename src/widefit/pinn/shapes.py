"""Points in and on balls, polygons, and meshes given as arrays."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.pinn.drawing import check_count, device_of, normal, uniform


def ball(
    centre: Sequence[float],
    radius: float,
    count: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n d"]:
    """Points uniform in a ball, a disc in the plane.

    Parameters
    ----------
    centre
        d numbers.
    radius
        Positive.
    count, generator, dtype
        As for `box`.

    Raises
    ------
    ValueError
        A radius that is not positive, a count below 1, no coordinate.
    """
    middle = _centre(centre, radius, count, dtype)
    outward = _directions(count, middle, generator)
    part = uniform(count, 1, like=middle, generator=generator) ** (1 / len(middle))
    return middle + radius * part * outward


def sphere(
    centre: Sequence[float],
    radius: float,
    count: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n d"]:
    """Points uniform on the surface of a ball, a circle in the plane; less `centre`, they point along its normals.

    Parameters
    ----------
    centre, radius, count, generator, dtype
        As for `ball`.
    """
    middle = _centre(centre, radius, count, dtype)
    return middle + radius * _directions(count, middle, generator)


def mesh(vertices: Any, cells: Any, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
    """Points uniform in the cells of a mesh: segments, triangles or tetrahedra, more in larger ones.

    The cells of the boundary (edges of a plane mesh, triangles around a body) give points on the boundary.

    Parameters
    ----------
    vertices
        Coordinates, shape (v, d); a tensor or an array. Its type and device are those of the points.
    cells
        Numbers of the k + 1 corners of every cell, shape (c, k + 1), 1 ≤ k ≤ d.
    count, generator
        As for `box`.

    Raises
    ------
    ValueError
        Corners that are not vertices, cells without any measure, shapes that do not fit, a count below 1.
    """
    places = vertices if isinstance(vertices, Tensor) else torch.as_tensor(vertices)
    places = places if places.is_floating_point() else places.to(torch.get_default_dtype())
    corners = torch.as_tensor(cells, device=places.device).long()
    if places.ndim != 2 or not bool(torch.isfinite(places).all()):
        raise ValueError(f"vertices must be finite, of shape (v, d), got shape {tuple(places.shape)}")
    if corners.ndim != 2 or not 2 <= corners.shape[1] <= places.shape[1] + 1:
        raise ValueError(f"cells must be of shape (c, 2 … {places.shape[1] + 1}), got {tuple(corners.shape)}")
    if not corners.numel() or int(corners.min()) < 0 or int(corners.max()) >= len(places):
        raise ValueError(f"cells must hold numbers of vertices, 0 … {len(places) - 1}")
    check_count(count)
    first = places[corners[:, 0]]
    edges = places[corners[:, 1:]] - first[:, None]
    measures = _measures(places.double()[corners])
    if not bool(measures.sum() > 0):
        raise ValueError("the cells have no length, area or volume")
    chosen = torch.multinomial(measures.to(device_of(generator)), count, replacement=True, generator=generator)
    chosen = chosen.to(places.device)
    # Gaps between sorted uniform numbers are uniform barycentric coordinates.
    cuts = uniform(count, edges.shape[1], like=places, generator=generator).sort(dim=1).values
    weights = cuts.diff(dim=1, prepend=cuts.new_zeros(count, 1))
    return first[chosen] + (weights[:, :, None] * edges[chosen]).sum(dim=1)


def _measures(corners: Float[Tensor, "c k d"]) -> Float[Tensor, " c"]:
    """(k − 1)! times the length, area or volume of cells: the product of the singular values of their edges.

    Not the root of a Gram determinant, in which the measure of a thin cell is lost.
    """
    return torch.linalg.svdvals(corners[:, 1:] - corners[:, :1]).prod(dim=1)


def polygon(
    corners: Any, count: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
) -> Float[Tensor, "n 2"]:
    """Points uniform inside a simple polygon, convex or not.

    Parameters
    ----------
    corners
        In order around it, shape (c, 2), c ≥ 3.
    count, generator, dtype
        As for `ball`.

    Raises
    ------
    ValueError
        Fewer than three corners, or corners without an area; a count below 1.
    """
    around = _around(corners, dtype)
    check_count(count)
    low, high = around.amin(dim=0), around.amax(dim=0)
    found: list[Tensor] = []
    missing = count
    while missing > 0:
        drawn = low + (high - low) * uniform(2 * missing + 64, 2, like=around, generator=generator)
        kept = drawn[_inside(drawn, around)][:missing]
        found.append(kept)
        missing -= len(kept)
    return torch.cat(found)


def polygon_edge(
    corners: Any, count: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
) -> Float[Tensor, "n 2"]:
    """Points uniform on the edges of a polygon.

    Parameters
    ----------
    corners, count, generator, dtype
        As for `polygon`.
    """
    around = _around(corners, dtype)
    numbers = torch.arange(len(around), device=around.device)
    return mesh(around, torch.stack([numbers, numbers.roll(-1)], dim=1), count, generator)


def _inside(points: Float[Tensor, "n 2"], around: Float[Tensor, "c 2"]) -> Tensor:
    """Whether a ray to the right crosses the edges an odd number of times."""
    x, y = points[:, :1], points[:, 1:]
    (x0, y0), (x1, y1) = around.T, around.roll(-1, dims=0).T
    spans = (y0 > y) != (y1 > y)
    crossing = x0 + (y - y0) * (x1 - x0) / torch.where(y1 == y0, 1.0, y1 - y0)
    return (spans & (x < crossing)).sum(dim=1) % 2 == 1


def _around(corners: Any, dtype: torch.dtype | None) -> Float[Tensor, "c 2"]:
    around = corners if isinstance(corners, Tensor) else torch.as_tensor(corners)
    around = around.to(dtype if dtype is not None else torch.get_default_dtype())
    if around.ndim != 2 or around.shape[1] != 2 or len(around) < 3:
        raise ValueError(f"corners must be at least three points of the plane, got shape {tuple(around.shape)}")
    # From the first corner, in float64: a small polygon may lie far from the origin.
    wide = around.double() - around[0].double()
    x, y = wide.T
    area = 0.5 * float((x * y.roll(-1) - y * x.roll(-1)).sum())
    extent = float((wide.amax(dim=0) - wide.amin(dim=0)).prod())
    if not abs(area) > 1e-6 * extent:
        raise ValueError("the polygon has no area: give its corners in their order around it")
    return around


def _centre(centre: Sequence[float], radius: float, count: int, dtype: torch.dtype | None) -> Float[Tensor, " d"]:
    check_count(count)
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius must be positive and finite, got {radius}")
    if not len(centre):
        raise ValueError("centre must have at least one coordinate")
    return torch.tensor([float(v) for v in centre], dtype=dtype if dtype is not None else torch.get_default_dtype())


def _directions(count: int, like: Float[Tensor, " d"], generator: torch.Generator | None) -> Float[Tensor, "n d"]:
    drawn = normal(count, len(like), like=like, generator=generator)
    return drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
