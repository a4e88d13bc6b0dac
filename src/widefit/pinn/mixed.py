"""Mixed partial derivatives as sums of derivatives along directions."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import factorial, prod

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Blend:
    """One partial derivative as a sum of Taylor coefficients along directions.

    Attributes
    ----------
    order
        Of all of them.
    terms
        (direction, factor): places in the list of directions, and what their coefficients count.
    """

    order: int
    terms: tuple[tuple[int, float], ...]


@cache
def blends(wanted: tuple[Axes, ...], size: int) -> tuple[list[list[float]], tuple[int, ...], list[Blend]]:
    """Directions, the order to which each is needed (the highest first), and every derivative in terms of them.

    Parameters
    ----------
    wanted
        Sorted axes of every derivative.
    size
        Number of coordinates.
    """
    sums = [_polarized(axes, size) for axes in wanted]
    needed: dict[tuple[int, ...], int] = {}
    for axes, terms in zip(wanted, sums, strict=True):
        for direction in terms:
            needed[direction] = max(needed.get(direction, 1), len(axes))
    directions = sorted(needed, key=lambda direction: -needed[direction])
    place = {direction: k for k, direction in enumerate(directions)}
    found = [
        Blend(len(axes), tuple((place[direction], factor) for direction, factor in terms.items()))
        for axes, terms in zip(wanted, sums, strict=True)
    ]
    return [[float(v) for v in direction] for direction in directions], tuple(needed[one] for one in directions), found


def _polarized(axes: Axes, size: int) -> dict[tuple[int, ...], float]:
    """Direction → factor of its Taylor coefficient, for ∂/∂x_a ∂/∂x_b …, by the polarization of a symmetric form.

    D(v₁, …, vₖ) = 2^(1−k) Σ_ε (Π ε) c_k(v₁ + ε₂ v₂ + … + εₖ vₖ), with the Taylor coefficient c_k = D(v, …, v)/k!.
    """
    if not axes:
        return {}
    if len(set(axes)) == 1:
        return {_direction(axes[:1], (1,), size): float(factorial(len(axes)))}
    terms: dict[tuple[int, ...], float] = defaultdict(float)
    for rest in product((1, -1), repeat=len(axes) - 1):
        direction = _direction(axes, (1, *rest), size)
        factor = prod(rest) * 2.0 ** (1 - len(axes))
        # c_k(−v) = (−1)ᵏ c_k(v): of two opposite directions one is enough.
        if next((v for v in direction if v), 0) < 0:
            direction, factor = tuple(-v for v in direction), factor * (-1) ** len(axes)
        # Of a direction twice as long, c_k is 2ᵏ times as large.
        if any(direction) and all(v % 2 == 0 for v in direction):
            direction, factor = tuple(v // 2 for v in direction), factor * 2.0 ** len(axes)
        if any(direction):
            terms[direction] += factor
    return {direction: factor for direction, factor in terms.items() if factor}


def _direction(axes: Axes, signs: tuple[int, ...], size: int) -> tuple[int, ...]:
    return tuple(sum(sign for axis, sign in zip(axes, signs, strict=True) if axis == place) for place in range(size))
