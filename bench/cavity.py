"""Flow in a cavity with a moving lid: a spectral solution for one that rests at its ends, published values for another.

The square is (0, 1)², the lid its upper side. A stream function ψ with u = ψ_y, v = −ψ_x satisfies
ψ_y Δψ_x − ψ_x Δψ_y = Δ²ψ / Re; it is a lift of the lid's velocity, (1 − (2x − 1)²ᵏ)², plus polynomials that vanish at
all sides together with their slopes, found by Galerkin's method and Newton's. The lid rests at its ends; the larger k
is, the nearer it comes to one of velocity 1 that jumps there: `python bench/cavity.py` compares such flows with the
published values.
"""

from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

Field = np.ndarray

# Ghia, Ghia and Shin, J. Comput. Phys. 48 (1982), tables I and II, Re = 100, lid of velocity 1: u on x = ½ and v on
# y = ½, at points of a grid of 129 × 129.
GHIA_Y = [0.0547, 0.0625, 0.0703, 0.1016, 0.1719, 0.2813, 0.4531, 0.5, 0.6172, 0.7344, 0.8516, 0.9531, 0.9609, 0.9688,
          0.9766]  # fmt: skip
GHIA_U = [-0.03717, -0.04192, -0.04775, -0.06434, -0.10150, -0.15662, -0.21090, -0.20581, -0.13641, 0.00332, 0.23151,
          0.68717, 0.73722, 0.78871, 0.84123]  # fmt: skip
GHIA_X = [0.0625, 0.0703, 0.0781, 0.0938, 0.1563, 0.2266, 0.2344, 0.5, 0.8047, 0.8594, 0.9063, 0.9453, 0.9531, 0.9609,
          0.9688]  # fmt: skip
GHIA_V = [0.09233, 0.10091, 0.10890, 0.12317, 0.16077, 0.17507, 0.17527, 0.05454, -0.24533, -0.22445, -0.16914,
          -0.10313, -0.08864, -0.07391, -0.05906]  # fmt: skip

# ψ of the lid: its slope by y is 1 at y = 1, everything else vanishes at the sides.
_RISE = Polynomial([0, 0, -1, 1])
_CLAMPED = Polynomial([0, 0, 1, -2, 1]).convert(domain=[0, 1], kind=Chebyshev)


class Cavity:
    """The flow under a lid of velocity (1 − (2x − 1)²ᵏ)².

    Parameters
    ----------
    reynolds
        By the lid's largest velocity and the side.
    modes
        Polynomials in each direction.
    sharpness
        k.
    """

    def __init__(self, reynolds: float = 100.0, modes: int = 24, sharpness: int = 1):
        self._lid = Chebyshev.interpolate(
            lambda x: (1 - (2 * x - 1) ** (2 * sharpness)) ** 2, 4 * sharpness, domain=[0, 1]
        )
        self._basis = [_CLAMPED * Chebyshev.basis(k, domain=[0, 1]) for k in range(modes)]
        nodes, weights = np.polynomial.legendre.leggauss(2 * modes)
        nodes, weights = (nodes + 1) / 2, weights / 2
        orders = [np.stack([part.deriv(order)(nodes) for part in self._basis], axis=1) for order in range(5)]
        tests = np.kron(weights * orders[0].T, weights * orders[0].T)

        def known(i: int, j: int) -> Field:
            return np.outer(self._lid.deriv(i)(nodes), _RISE.deriv(j)(nodes)).ravel()

        def unknown(i: int, j: int) -> Field:
            return np.kron(orders[i], orders[j])

        def viscous(part: Callable[[int, int], Field]) -> Field:
            return tests @ (part(4, 0) + 2 * part(2, 2) + part(0, 4)) / reynolds

        def moving(part: Callable[[int, int], Field]) -> tuple[Field, Field, Field, Field]:
            """ψ_y, ψ_x, Δψ_x, Δψ_y."""
            return part(0, 1), part(1, 0), part(3, 0) + part(1, 2), part(2, 1) + part(0, 3)

        rows, lifts = moving(unknown), moving(known)
        drag, drag_of_lid = viscous(unknown), viscous(known)
        found = np.linalg.solve(drag, -drag_of_lid)  # without inertia
        for _ in range(20):
            along, across, turn_x, turn_y = (row @ found + lift for row, lift in zip(rows, lifts, strict=True))
            left = tests @ (along * turn_x - across * turn_y) - drag @ found - drag_of_lid
            slope = along[:, None] * rows[2] + turn_x[:, None] * rows[0]
            slope -= across[:, None] * rows[3] + turn_y[:, None] * rows[1]
            change = np.linalg.solve(tests @ slope - drag, -left)
            found = found + change
            if np.abs(change).max() < 1e-10 * np.abs(found).max():
                break
        self._coefficients = found.reshape(modes, modes)

    def velocity(self, points: Field) -> Field:
        """(u, v) at points, both of shape (n, 2)."""
        x, y = points[:, 0], points[:, 1]
        in_x, in_y = ([np.stack([b.deriv(o)(z) for b in self._basis], axis=1) for o in (0, 1)] for z in (x, y))
        u = ((in_x[0] @ self._coefficients) * in_y[1]).sum(axis=1) + self._lid(x) * _RISE.deriv()(y)
        v = ((in_x[1] @ self._coefficients) * in_y[0]).sum(axis=1) + self._lid.deriv()(x) * _RISE(y)
        return np.stack([u, -v], axis=1)


def compare_with_published(modes: int = 30) -> None:
    """Print for sharper and sharper lids how far the published values are from their flow, and its extremes."""
    across = np.array([[0.5, y] for y in GHIA_Y] + [[x, 0.5] for x in GHIA_X])
    published = np.array(GHIA_U + GHIA_V)
    middle = np.linspace(0, 1, 2001)
    for sharpness in (1, 4, 6, 8):
        flow = Cavity(modes=modes, sharpness=sharpness)
        found = flow.velocity(across)
        values = np.concatenate([found[: len(GHIA_U), 0], found[len(GHIA_U) :, 1]])
        off = np.linalg.norm(published - values) / np.linalg.norm(values)
        u = flow.velocity(np.stack([0 * middle + 0.5, middle], axis=1))[:, 0]
        v = flow.velocity(np.stack([middle, 0 * middle + 0.5], axis=1))[:, 1]
        extremes = f"u down to {u.min():.5f}, v from {v.min():.5f} to {v.max():.5f}"
        print(f"k = {sharpness}: published values off by {off:.2e}; {extremes}")


if __name__ == "__main__":
    compare_with_published()
