"""Points in a box, on its faces, and at its first moment, at random or evenly spread; draw again to resample."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.pinn.drawing import check_count, uniform


def box(
    low: Sequence[float],
    high: Sequence[float],
    count: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n d"]:
    """Points uniform in a box.

    Parameters
    ----------
    low, high
        Its corners, d numbers each.
    count
        n.
    generator
        Draws them; None: torch's own.
    dtype
        None: torch's default.

    Raises
    ------
    ValueError
        Corners that do not span a box, a count below 1.
    """
    lower, upper = _corners(low, high, dtype)
    check_count(count)
    return lower + (upper - lower) * uniform(count, len(lower), like=lower, generator=generator)


def sobol(
    low: Sequence[float],
    high: Sequence[float],
    count: int,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n d"]:
    """Points of a scrambled Sobol sequence in a box: spread more evenly than at random, without a grid's lines.

    Parameters
    ----------
    low, high, count, dtype
        As for `box`; powers of two of points are spread best.
    seed
        Scrambles them.

    Raises
    ------
    ValueError
        As for `box`.
    """
    lower, upper = _corners(low, high, dtype)
    check_count(count)
    engine = torch.quasirandom.SobolEngine(len(lower), scramble=True, seed=seed)
    return lower + (upper - lower) * engine.draw(count, dtype=torch.float64).to(lower)


def grid(
    low: Sequence[float], high: Sequence[float], shape: Sequence[int], dtype: torch.dtype | None = None
) -> Float[Tensor, "n d"]:
    """Midpoints of the cells of a regular grid in a box.

    Parameters
    ----------
    low, high, dtype
        As for `box`.
    shape
        Number of cells along each coordinate; n is their product.

    Raises
    ------
    ValueError
        As for `box`; not one number of cells a coordinate.
    """
    lower, upper = _corners(low, high, dtype)
    if len(shape) != len(lower) or any(cells < 1 for cells in shape):
        raise ValueError(f"shape must hold a number of cells for each of {len(lower)} coordinates, got {list(shape)}")
    axes = [(torch.arange(cells, dtype=lower.dtype) + 0.5) / cells for cells in shape]
    return lower + (upper - lower) * torch.cartesian_prod(*axes).reshape(-1, len(lower))


def slabs(
    low: Sequence[float], high: Sequence[float], count: int, axis: int = -1
) -> list[tuple[list[float], list[float]]]:
    """Corners of equal slabs of a box along time: one network each, which begins where the last one ends.

    Parameters
    ----------
    low, high
        Corners of the box.
    count
        Number of slabs.
    axis
        The coordinate that is cut.

    Raises
    ------
    ValueError
        As for `box`; an axis the box does not have.
    """
    _corners(low, high, None)
    check_count(count)
    if not -len(low) <= axis < len(low):
        raise ValueError(f"axis {axis} is out of range for a box of {len(low)} coordinates")
    cuts = [low[axis] + (high[axis] - low[axis]) * k / count for k in range(count + 1)]
    boxes = []
    for begin, end in pairwise(cuts):
        lower, upper = [float(v) for v in low], [float(v) for v in high]
        lower[axis], upper[axis] = float(begin), float(end)
        boxes.append((lower, upper))
    return boxes


def boundary(
    low: Sequence[float],
    high: Sequence[float],
    count: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    axes: Sequence[int] | None = None,
) -> Float[Tensor, "n d"]:
    """Points uniform on the faces of a box, as many on each face as the count allows.

    Parameters
    ----------
    low, high, count, generator, dtype
        As for `box`.
    axes
        Only the two faces across each of these coordinates (space without time, say); None: all.

    Raises
    ------
    ValueError
        As for `box`; an axis the box does not have.
    """
    points = box(low, high, count, generator, dtype)
    lower, upper = _corners(low, high, dtype)
    chosen = list(range(len(lower))) if axes is None else list(axes)
    if not chosen or any(not 0 <= axis < len(lower) for axis in chosen):
        raise ValueError(f"axes must be among 0 … {len(lower) - 1}, got {chosen}")
    face = torch.arange(count) % (2 * len(chosen))
    axis = torch.tensor(chosen)[face // 2]
    points[torch.arange(count), axis] = torch.where(face % 2 == 0, lower[axis], upper[axis])
    return points


def initial(
    low: Sequence[float],
    high: Sequence[float],
    count: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    axis: int = -1,
) -> Float[Tensor, "n d"]:
    """Points uniform on the face where coordinate `axis` (time) is at its low end.

    Parameters
    ----------
    low, high, count, generator, dtype
        As for `box`.
    axis
        The coordinate of time.
    """
    points = box(low, high, count, generator, dtype)
    if not -points.shape[1] <= axis < points.shape[1]:
        raise ValueError(f"axis {axis} is out of range for a box of {points.shape[1]} coordinates")
    points[:, axis] = float(low[axis])
    return points


def _corners(low: Sequence[float], high: Sequence[float], dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    kind = dtype if dtype is not None else torch.get_default_dtype()
    lower, upper = torch.tensor([float(v) for v in low], dtype=kind), torch.tensor([float(v) for v in high], dtype=kind)
    if len(lower) != len(upper) or len(lower) == 0:
        raise ValueError(f"low and high must have as many numbers as coordinates, got {len(lower)} and {len(upper)}")
    if not bool((lower < upper).all()):
        raise ValueError(f"low must be below high in every coordinate, got {list(low)} and {list(high)}")
    return lower, upper
