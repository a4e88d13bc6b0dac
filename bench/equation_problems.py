"""Equations that are known to be hard for networks, with networks, points and solutions.

Burgers (ν = 0.01, periodic), convection (β = 30 and 40, with waves in time to begin with, and with none), reaction
(ρ = 5), Helmholtz (a = 4 and 6), Korteweg-de Vries (by one network, and in slabs of time), Allen-Cahn (ε = 1e-4, k = 5,
with the kinks of its start smoothed as diffusion does, and left), Kovasznay flow (Re = 40), flow in a cavity (Re = 100,
whose lid rests at its ends, and whose does not), Poisson in five dimensions and heat in four. Conditions that a network
can have by construction it has; points come from a Sobol sequence and stay, but for the last two, where each step draws
new ones. Errors are relative in L2, against exact, spectral (`spectral.py`, `cavity.py`) or published solutions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import cavity
import numpy as np
import pinn_problems
import spectral
import torch
from torch import Tensor, nn

from widefit import Residual, pinn

PI = math.pi
DOUBLE = torch.float64
Blocks = tuple[Residual, ...]
# Points and the solution there.
Truth = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Equation:
    """One problem.

    Attributes
    ----------
    network
        A fresh one; torch's generator is seeded before.
    blocks
        Residuals, drawn for a seed.
    truth
        Points of shape (n, d) and values of shape (n, k), NaN where they are not known.
    resampled
        Whether every step draws new points.
    outputs
        How many of the network's outputs are compared.
    """

    network: Callable[[], nn.Module]
    blocks: Callable[[int], Blocks]
    truth: Callable[[], Truth]
    resampled: bool = False
    outputs: int = 1

    def error(self, network: nn.Module, truth: Truth) -> float:
        """‖u − u*‖ / ‖u*‖ where u* is known."""
        points, values = truth
        known = ~torch.isnan(values)
        with torch.no_grad():
            missed = (network(points)[:, : self.outputs] - values)[known]
        return float(torch.linalg.vector_norm(missed) / torch.linalg.vector_norm(values[known]))


@dataclass(frozen=True)
class Slabs:
    """An evolution cut into slabs of time: each network begins where the last one ends, by construction.

    Attributes
    ----------
    part
        The equation between two times, from the network of the slab before them; None: from the start.
    truth
        Points and the solution for all times.
    count
        Number of slabs.
    """

    part: Callable[[nn.Module | None, float, float], Equation]
    truth: Callable[[], Truth]
    count: int


def perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, following in pairwise(widths):
        layers += [nn.Linear(size, following), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def evolution(
    equation: Callable[..., Tensor],
    start: Callable[[Tensor], Tensor],
    reference: Callable[[], spectral.Reference],
    widths: tuple[int, ...],
    count: int,
    harmonics: int = 1,
    waves: tuple[int, float] | None = None,
    lift: Callable[[Tensor], Tensor] | None = None,
    at_ends: int = 0,
    times: tuple[float, float] = (0.0, 1.0),
) -> Equation:
    """An equation of period 2 in x, with its start by construction.

    Parameters
    ----------
    waves
        How many of them the network begins with, and how fast.
    lift
        A function of (x, t) that is the start at its time; None: u(x, 0).
    at_ends
        Points beside `count` that lie near x = ±1.
    times
        Of the start and of the end.
    """
    low, high = times

    def network() -> nn.Module:
        first: nn.Module = pinn.Periodic(2, {0: 2.0}, harmonics)
        size = 2 * harmonics + 1
        if waves is not None:
            count, scale = waves
            seed = int(torch.initial_seed()) % 2**31
            first = nn.Sequential(first, pinn.Fourier(size, count, [1.0] * (size - 1) + [scale], seed=seed).double())
            size = 2 * count
        inner = nn.Sequential(first, perceptron(size, *widths))
        return pinn.Constrained(inner, lambda p: p[..., 1:] - low, lift or (lambda p: start(p[..., :1])))

    def blocks(seed: int) -> Blocks:
        points = pinn.sobol([-1, low], [1, high], count, seed, DOUBLE)
        if at_ends:
            more = pinn.sobol([-0.06, low], [0.06, high], at_ends, seed, DOUBLE)
            more[:, 0] = torch.where(more[:, 0] > 0, 1 - more[:, 0], -1 - more[:, 0])
            points = torch.cat([points, more])
        return (Residual(equation, points),)

    def truth() -> Truth:
        found = reference()
        x, t = np.meshgrid(found.x, found.t)
        points = torch.from_numpy(np.stack([x.ravel(), t.ravel()], axis=1))
        return points, torch.from_numpy(found.values.reshape(-1, 1))

    return Equation(network, blocks, truth)


def burgers(u: nn.Module, p: Tensor) -> Tensor:
    value, u_x, u_t, u_xx = pinn.partials(u, p, (), (0,), (1,), (0, 0))
    return u_t + value * u_x - 0.01 * u_xx


def korteweg_de_vries(u: nn.Module, p: Tensor) -> Tensor:
    value, u_x, u_t, u_xxx = pinn.partials(u, p, (), (0,), (1,), (0, 0, 0))
    return u_t + value * u_x + 0.0025 * u_xxx


def allen_cahn(u: nn.Module, p: Tensor) -> Tensor:
    value, u_t, u_xx = pinn.partials(u, p, (), (1,), (0, 0))
    return u_t - 1e-4 * u_xx - 5 * (value - value**3)


def bump(x: Tensor) -> Tensor:
    return x**2 * torch.cos(PI * x)


def diffused(p: Tensor) -> Tensor:
    """x² cos πx, but with its kinks at x = ±1 (slope ∓2 there) as diffusion smooths them: |s| becomes K(s, t).

    Periodic layers and points inside do not see a kink, and would leave it as it is for all times.
    """
    x, t = p[..., :1], p[..., 1:]
    width = torch.sqrt(4e-4 * t + 1e-30)
    smoothed = bump(x)
    for s in (1 - x, 1 + x):
        kernel = s * torch.erf(s / width) + width / math.sqrt(PI) * torch.exp(-((s / width) ** 2))
        smoothed = smoothed + 2 * (kernel - s)
    return smoothed


def convection(beta: float, waves: tuple[int, float] | None, widths: tuple[int, ...], count: int) -> Equation:
    """u_t + β u_x = 0 in the units of x ∈ [0, 2π]: a sine that travels."""

    def equation(u: nn.Module, p: Tensor) -> Tensor:
        u_x, u_t = pinn.partials(u, p, (0,), (1,))
        return u_t + beta / PI * u_x

    def truth() -> Truth:
        points = pinn.grid([-1, 0], [1, 1], [200, 100], DOUBLE)
        return points, torch.sin(PI * points[:, :1] - beta * points[:, 1:])

    return replace(evolution(equation, sine, spectral.burgers, widths, count, waves=waves), truth=truth)


def reaction() -> Equation:
    """u_t = 5 u (1 − u) from a bump; u = 0 solves it as well, and draws networks that only try for small residuals."""

    def equation(u: nn.Module, p: Tensor) -> Tensor:
        value, u_t = pinn.partials(u, p, (), (1,))
        return u_t - 5 * value * (1 - value)

    def first(x: Tensor) -> Tensor:
        return torch.exp(-8 * x**2)

    def network() -> nn.Module:
        return pinn.Constrained(perceptron(2, 20, 20, 1), lambda p: p[..., 1:], lambda p: first(p[..., :1]))

    def truth() -> Truth:
        points = pinn.grid([-1, 0], [1, 1], [200, 100], DOUBLE)
        grown = first(points[:, :1]) * torch.exp(5 * points[:, 1:])
        return points, grown / (grown + 1 - first(points[:, :1]))

    return Equation(network, lambda seed: (Residual(equation, pinn.sobol([-1, 0], [1, 1], 2000, seed, DOUBLE)),), truth)


def helmholtz(a: int, frequencies: int, scale: float, count: int) -> Equation:
    """Δu + u = f on the square, u = sin aπx sin aπy, which vanishes at its sides."""

    def equation(u: nn.Module, p: Tensor) -> Tensor:
        waves = torch.sin(a * PI * p[0]) * torch.sin(a * PI * p[1])
        return pinn.laplacian(u, p) + u(p)[0] - (1 - 2 * (a * PI) ** 2) * waves

    def network() -> nn.Module:
        features = pinn.Fourier(2, frequencies, scale=scale, seed=int(torch.initial_seed()) % 2**31).double()
        inner = nn.Sequential(features, perceptron(features.out_features, frequencies, 1))
        return pinn.Constrained(inner, lambda p: (1 - p[..., :1] ** 2) * (1 - p[..., 1:] ** 2))

    def blocks(seed: int) -> Blocks:
        return (Residual(equation, pinn.sobol([-1, -1], [1, 1], count, seed, DOUBLE)),)

    def truth() -> Truth:
        points = pinn.grid([-1, -1], [1, 1], [150, 150], DOUBLE)
        return points, torch.sin(a * PI * points).prod(dim=1, keepdim=True)

    return Equation(network, blocks, truth)


REYNOLDS = 40.0
DECAY = REYNOLDS / 2 - math.sqrt(REYNOLDS**2 / 4 + 4 * PI**2)


def steady_flow(reynolds: float) -> Callable[..., Tensor]:
    """Momentum and mass, of a network whose outputs are u, v and the pressure."""

    def equations(flow: nn.Module, p: Tensor) -> Tensor:
        value, d_x, d_y, d_xx, d_yy = pinn.partials(flow, p, (), (0,), (1,), (0, 0), (1, 1))
        momentum = value[0] * d_x[:2] + value[1] * d_y[:2] - (d_xx[:2] + d_yy[:2]) / reynolds
        return torch.stack([momentum[0] + d_x[2], momentum[1] + d_y[2], d_x[0] + d_y[1]])

    return equations


def velocity(p: Tensor) -> Tensor:
    growth = torch.exp(DECAY * p[..., 0])
    along = 1 - growth * torch.cos(2 * PI * p[..., 1])
    return torch.stack([along, DECAY / (2 * PI) * growth * torch.sin(2 * PI * p[..., 1])], dim=-1)


def moving(flow: nn.Module, p: Tensor, value: Tensor) -> Tensor:
    return flow(p)[:2] - value


def flow_blocks(seed: int) -> Blocks:
    generator = torch.Generator().manual_seed(seed)
    low, high = [-0.5, -0.5], [1.0, 1.5]
    edge = pinn.boundary(low, high, 400, generator, DOUBLE)
    return Residual(steady_flow(REYNOLDS), pinn.sobol(low, high, 2000, seed, DOUBLE)), Residual(
        moving, edge, velocity(edge)
    )


def flow_truth() -> Truth:
    points = pinn.grid([-0.5, -0.5], [1.0, 1.5], [120, 120], DOUBLE)
    return points, velocity(points)


def resting_lid(p: Tensor) -> Tensor:
    """Velocities of a lid that rests at its ends, and those of the other sides; the pressure is free."""
    x, y = p[..., :1], p[..., 1:]
    along = 16 * x**2 * (1 - x) ** 2 * y**4
    return torch.cat([along, 0 * along, 0 * along], dim=-1)


def within_sides(p: Tensor) -> Tensor:
    x, y = p[..., :1], p[..., 1:]
    distance = 4 * x * (1 - x) * y * (1 - y)
    return torch.cat([distance, distance, 1 + 0 * distance], dim=-1)


def cavity_blocks(seed: int) -> Blocks:
    return (Residual(steady_flow(100.0), pinn.sobol([0, 0], [1, 1], 2500, seed, DOUBLE)),)


def cavity_truth() -> Truth:
    points = pinn.grid([0, 0], [1, 1], [60, 60], DOUBLE)
    return points, torch.from_numpy(cavity.Cavity().velocity(points.numpy()))


def jumping_blocks(seed: int) -> Blocks:
    """A lid of velocity 1 that jumps at its ends."""
    edge = pinn.boundary([0, 0], [1, 1], 800, torch.Generator().manual_seed(seed), DOUBLE)
    lid = torch.stack([(edge[:, 1] == 1).double(), torch.zeros(len(edge), dtype=DOUBLE)], dim=1)
    return *cavity_blocks(seed), Residual(moving, edge, lid)


def published_truth() -> Truth:
    """u on the vertical line through the middle, v on the horizontal one, and NaN for what was not published."""
    across = torch.tensor([[0.5, y] for y in cavity.GHIA_Y] + [[x, 0.5] for x in cavity.GHIA_X], dtype=DOUBLE)
    values = torch.full_like(across, math.nan)
    values[: len(cavity.GHIA_U), 0] = torch.tensor(cavity.GHIA_U, dtype=DOUBLE)
    values[len(cavity.GHIA_U) :, 1] = torch.tensor(cavity.GHIA_V, dtype=DOUBLE)
    return across, values


def in_unit_cube(name: str, widths: tuple[int, ...] | None = None) -> Equation:
    """A problem of the gauss-newton bench, with its network or another."""
    problem = pinn_problems.PROBLEMS[name]
    if widths is not None:
        problem = replace(problem, widths=widths)

    def truth() -> Truth:
        points = problem.test_points()
        return points, problem.solution(points)[:, None]

    return Equation(
        lambda: problem.network(int(torch.initial_seed())),
        lambda seed: problem.blocks(torch.Generator().manual_seed(seed)),
        truth,
        resampled=problem.resampled,
    )


def cosine(x: Tensor) -> Tensor:
    return torch.cos(PI * x)


def kdv_slab(last: nn.Module | None, low: float, high: float) -> Equation:
    lift = None if last is None else pinn.Held(last, {1: low})
    reference = spectral.korteweg_de_vries
    return evolution(korteweg_de_vries, cosine, reference, (24, 24, 24, 1), 2000, 2, lift=lift, times=(low, high))


def sine(x: Tensor) -> Tensor:
    return torch.sin(PI * x)


EQUATIONS: dict[str, Equation | Slabs] = {
    "poisson-2d": in_unit_cube("poisson-2d"),
    "burgers": evolution(burgers, lambda x: -sine(x), spectral.burgers, (20, 20, 20, 20, 1), 3000),
    "burgers-many": evolution(burgers, lambda x: -sine(x), spectral.burgers, (20, 20, 20, 20, 1), 12_000),
    "convection": convection(30, (32, 15.0), (20, 1), 3000),
    "convection-40": convection(40, (32, 20.0), (20, 1), 3000),
    "convection-plain": convection(30, None, (20, 20, 1), 2000),
    "reaction": reaction(),
    "helmholtz": helmholtz(4, 24, 8.0, 3000),
    "helmholtz-6": helmholtz(6, 32, 12.0, 4000),
    "kdv": evolution(korteweg_de_vries, cosine, spectral.korteweg_de_vries, (24, 24, 24, 1), 3500, 2),
    "kdv-slabs": Slabs(kdv_slab, kdv_slab(None, 0.0, 1.0).truth, 4),
    "allen-cahn": evolution(
        allen_cahn, bump, spectral.allen_cahn, (24, 24, 24, 1), 3000, 2, lift=diffused, at_ends=1000
    ),
    "allen-cahn-plain": evolution(allen_cahn, bump, spectral.allen_cahn, (24, 24, 24, 1), 3500, 2),
    "kovasznay": Equation(lambda: perceptron(2, 20, 20, 3), flow_blocks, flow_truth, outputs=2),
    "cavity": Equation(
        lambda: pinn.Constrained(perceptron(2, 24, 24, 3), within_sides, resting_lid),
        cavity_blocks,
        cavity_truth,
        outputs=2,
    ),
    "cavity-plain": Equation(lambda: perceptron(2, 24, 24, 3), jumping_blocks, published_truth, outputs=2),
    "poisson-5d": in_unit_cube("poisson-5d"),
    "poisson-5d-small": in_unit_cube("poisson-5d", (5, 32, 32, 1)),
    "heat-4d": in_unit_cube("heat-4d"),
}
