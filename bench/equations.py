"""Relative error over time on equations that are known to be hard for networks, defaults untouched.

Burgers (ν = 0.01, periodic), convection (β = 30 and 40, with waves in time to begin with, and with none), reaction
(ρ = 5), Helmholtz (a = 4), Korteweg-de Vries, Allen-Cahn (ε = 1e-4, k = 5, with the kinks of its start smoothed as
diffusion does, and left), Kovasznay flow (Re = 40) and Poisson in five dimensions. Conditions that a network can have
by construction it has; points come from a Sobol sequence and stay, but for Poisson 5d, whose points are drawn anew in
each step. Errors are relative in L2, against exact or spectral solutions (`spectral.py`). The clock is that of the
process.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pinn_problems
import spectral
import torch
from harness import describe_machine, entry, main
from torch import Tensor, nn

from widefit import GaussNewton, Residual, pinn

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
        Points of shape (n, d) and values of shape (n, k).
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
        """‖u − u*‖ / ‖u*‖."""
        points, values = truth
        with torch.no_grad():
            found = network(points)[:, : self.outputs]
        return float(torch.linalg.vector_norm(found - values) / torch.linalg.vector_norm(values))


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
) -> Equation:
    """An equation of period 2 in x with u(x, 0) by construction.

    Parameters
    ----------
    waves
        How many of them the network begins with, and how fast.
    lift
        A function of (x, t) that is u(x, 0) at t = 0; None: u(x, 0) itself.
    at_ends
        Points beside `count` that lie near x = ±1.
    """

    def network() -> nn.Module:
        first: nn.Module = pinn.Periodic(2, {0: 2.0}, harmonics)
        size = 2 * harmonics + 1
        if waves is not None:
            count, scale = waves
            seed = int(torch.initial_seed()) % 2**31
            first = nn.Sequential(first, pinn.Fourier(size, count, [1.0] * (size - 1) + [scale], seed=seed).double())
            size = 2 * count
        inner = nn.Sequential(first, perceptron(size, *widths))
        return pinn.Constrained(inner, lambda p: p[..., 1:], lift or (lambda p: start(p[..., :1])))

    def blocks(seed: int) -> Blocks:
        points = pinn.sobol([-1, 0], [1, 1], count, seed, DOUBLE)
        if at_ends:
            more = pinn.sobol([-0.06, 0], [0.06, 1], at_ends, seed, DOUBLE)
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


def helmholtz(u: nn.Module, p: Tensor) -> Tensor:
    waves = torch.sin(4 * PI * p[0]) * torch.sin(4 * PI * p[1])
    return pinn.laplacian(u, p) + u(p)[0] - (1 - 32 * PI**2) * waves


def standing() -> Truth:
    points = pinn.grid([-1, -1], [1, 1], [150, 150], DOUBLE)
    return points, torch.sin(4 * PI * points).prod(dim=1, keepdim=True)


REYNOLDS = 40.0
DECAY = REYNOLDS / 2 - math.sqrt(REYNOLDS**2 / 4 + 4 * PI**2)


def kovasznay(flow: nn.Module, p: Tensor) -> Tensor:
    """Momentum and mass of a steady flow, whose outputs are u, v and the pressure."""
    value, d_x, d_y, d_xx, d_yy = pinn.partials(flow, p, (), (0,), (1,), (0, 0), (1, 1))
    momentum = value[0] * d_x[:2] + value[1] * d_y[:2] - (d_xx[:2] + d_yy[:2]) / REYNOLDS
    return torch.stack([momentum[0] + d_x[2], momentum[1] + d_y[2], d_x[0] + d_y[1]])


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
    return Residual(kovasznay, pinn.sobol(low, high, 2000, seed, DOUBLE)), Residual(moving, edge, velocity(edge))


def flow_truth() -> Truth:
    points = pinn.grid([-0.5, -0.5], [1.0, 1.5], [120, 120], DOUBLE)
    return points, velocity(points)


def five_dimensions() -> Equation:
    problem = pinn_problems.PROBLEMS["poisson-5d"]

    def truth() -> Truth:
        points = problem.test_points()
        return points, problem.solution(points)[:, None]

    return Equation(
        lambda: problem.network(int(torch.initial_seed())),
        lambda seed: problem.blocks(torch.Generator().manual_seed(seed)),
        truth,
        resampled=True,
    )


def edged() -> nn.Module:
    features = pinn.Fourier(2, 24, scale=8.0, seed=int(torch.initial_seed()) % 2**31).double()
    inner = nn.Sequential(features, perceptron(features.out_features, 24, 1))
    return pinn.Constrained(inner, lambda p: (1 - p[..., :1] ** 2) * (1 - p[..., 1:] ** 2))


def sine(x: Tensor) -> Tensor:
    return torch.sin(PI * x)


EQUATIONS: dict[str, Equation] = {
    "burgers": evolution(burgers, lambda x: -sine(x), spectral.burgers, (20, 20, 20, 20, 1), 3000),
    "convection": convection(30, (32, 15.0), (20, 1), 3000),
    "convection-40": convection(40, (32, 20.0), (20, 1), 3000),
    "convection-plain": convection(30, None, (20, 20, 1), 2000),
    "reaction": reaction(),
    "helmholtz": Equation(
        edged, lambda seed: (Residual(helmholtz, pinn.sobol([-1, -1], [1, 1], 3000, seed, DOUBLE)),), standing
    ),
    "kdv": evolution(
        korteweg_de_vries, lambda x: torch.cos(PI * x), spectral.korteweg_de_vries, (24, 24, 24, 1), 3500, 2
    ),
    "allen-cahn": evolution(
        allen_cahn, bump, spectral.allen_cahn, (24, 24, 24, 1), 3000, 2, lift=diffused, at_ends=1000
    ),
    "allen-cahn-plain": evolution(allen_cahn, bump, spectral.allen_cahn, (24, 24, 24, 1), 3500, 2),
    "kovasznay": Equation(lambda: perceptron(2, 20, 20, 3), flow_blocks, flow_truth, outputs=2),
    "poisson-5d": five_dimensions(),
}


def follow(equation: Equation, seed: int, seconds: float, truth: Truth) -> list[tuple[float, int, float, float]]:
    """(processor seconds, step, loss, error), about twenty times over the run."""
    torch.manual_seed(seed)
    network = equation.network()
    optimizer = GaussNewton(network)
    blocks: Any = equation.blocks(seed)
    curve, spent, marks = [], 0.0, 0
    while spent < seconds:
        began = time.process_time()
        info = optimizer.step(*blocks)
        if equation.resampled:
            blocks = equation.blocks(10**6 * (seed + 1) + info.step)
        spent += time.process_time() - began
        ended = optimizer.stationary and not equation.resampled
        if spent > seconds * marks / 20 or ended:
            marks = int(20 * spent / seconds) + 1
            curve.append((spent, info.step, info.loss, equation.error(network, truth)))
        if ended:
            break
    return curve


def run(size: str, problems: str = "", seconds: float = 0.0, seeds: int = 1) -> dict:
    """Solve each equation.

    Parameters
    ----------
    size
        "quick": convection and Kovasznay, ten seconds each; "default": all, 60 seconds each; "full": 300.
    problems
        Comma-separated names; empty: by size.
    seconds
        For each; 0: by size.
    seeds
        Runs of each; the median is given.
    """
    names = problems.split(",") if problems else ["convection", "kovasznay"] if size == "quick" else list(EQUATIONS)
    limit = seconds or {"quick": 10.0, "default": 60.0, "full": 300.0}[size]
    figures, curves = [], {}
    for name in names:
        truth = EQUATIONS[name].truth()
        runs = [follow(EQUATIONS[name], seed, limit, truth) for seed in range(seeds)]
        curves[name] = runs
        ends = [curve[-1] for curve in runs]
        for place, (what, unit) in enumerate((("processor time", "s"), ("steps", ""), ("loss", ""), ("error", ""))):
            figures.append(entry(f"{name}, {what}", float(statistics.median(end[place] for end in ends)), unit))
    settings = {"seconds": limit, "seeds": seeds, "problems": names, "dtype": "float64"}
    return {"machine": describe_machine(), "settings": settings, "figures": figures, "curves": curves}


def draw(result: dict, path: Path) -> None:
    """Error over processor time."""
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(7, 5))
    for name, runs in result["curves"].items():
        panel.loglog([point[0] for point in runs[0]], [point[3] for point in runs[0]], label=name)
    panel.set(xlabel="processor seconds", ylabel="relative error")
    panel.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main("equations", run, draw)
