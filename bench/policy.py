"""Steps and processor seconds of GaussNewton to a goal on small problems of many kinds: to judge a step policy by.

Another policy is another checkout: run this file with its `src` on PYTHONPATH, write both results with --json, and
compare them with --against FILE.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from harness import describe_machine, entry, main
from torch import Tensor, nn

from widefit import GaussNewton, Residual, pinn

PI = math.pi
# A network, and what a step takes.
Fit = tuple[nn.Module, tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """One small fit.

    Attributes
    ----------
    make
        (network, data of a step) for a seed.
    goal
        Loss to reach.
    seconds
        Processor time after which it is given up.
    options
        Of the optimizer.
    """

    make: Callable[[int], Fit]
    goal: float
    seconds: float = 10.0
    options: tuple[tuple[str, Any], ...] = ()


def network(*widths: int, activation: type[nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, following in pairwise(widths):
        layers += [nn.Linear(size, following), activation()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def rectifiers(seed: int, rows: int = 300, width: int = 128, features: int = 32) -> Fit:
    """Smooth targets and a network of rectifiers with many more parameters than samples."""
    torch.manual_seed(seed)
    x = torch.randn(rows, features)
    y = torch.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    return network(features, width, width, 1, activation=nn.ReLU, dtype=torch.float32), (x, y)


def smooth(seed: int) -> Fit:
    """Smooth targets, a deep tanh network with as many parameters as samples times five."""
    torch.manual_seed(seed)
    x = torch.randn(100, 3, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    return network(3, 20, 20, 1), (x, y)


def classes(seed: int) -> Fit:
    """Three overlapping classes in the plane."""
    torch.manual_seed(seed)
    x = torch.randn(150, 2, dtype=torch.float64)
    y = (torch.atan2(x[:, 1], x[:, 0]) + x.norm(dim=1)).remainder(2 * PI).mul(3 / (2 * PI)).long()
    return network(2, 16, 16, 3), (x, y)


def narrow(seed: int) -> Fit:
    """A narrow network on many samples: plateaus."""
    torch.manual_seed(seed)
    x = torch.rand(500, 1, dtype=torch.float64) * 2 - 1
    return network(1, 8, 8, 1), (x, torch.sin(3 * PI * x) + 0.5 * torch.sin(7 * PI * x))


def equation(
    residual: Callable[..., Tensor], start: Callable[[Tensor], Tensor], *widths: int, count: int = 500
) -> Callable[[int], Fit]:
    """An equation in x ∈ (−1, 1), t ∈ (0, 1), u = 0 at the ends of x."""

    def make(seed: int) -> Fit:
        torch.manual_seed(seed)
        low, high, dtype = [-1.0, 0.0], [1.0, 1.0], torch.float64
        first = pinn.initial(low, high, 60, dtype=dtype)
        return network(*widths), (
            Residual(residual, pinn.box(low, high, count, dtype=dtype)),
            Residual(lambda u, p, value: u(p)[0] - value, first, start(first)),
            Residual(lambda u, p: u(p)[0], pinn.boundary(low, high, 60, dtype=dtype, axes=[0])),
        )

    return make


def burgers(u: nn.Module, point: Tensor) -> Tensor:
    slope, rate = pinn.gradient(u, point)
    return rate + u(point)[0] * slope - 0.03 * pinn.derivative(u, point, axis=0, order=2)


def heat(u: nn.Module, point: Tensor) -> Tensor:
    return pinn.derivative(u, point, axis=1) - 0.1 * pinn.derivative(u, point, axis=0, order=2)


def allen_cahn(u: nn.Module, point: Tensor) -> Tensor:
    value = u(point)[0]
    second = pinn.derivative(u, point, axis=0, order=2)
    return pinn.derivative(u, point, axis=1) - 0.01 * second - 4 * (value - value**3)


def minus_sine(points: Tensor) -> Tensor:
    return -torch.sin(PI * points[:, 0])


class Travelling(nn.Module):
    """u(x, t) of period 2π in x."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network(3, 16, 16, 1)

    def forward(self, point: Tensor) -> Tensor:
        x, t = point[..., :1], point[..., 1:]
        return self.network(torch.cat([torch.cos(x), torch.sin(x), t], dim=-1))


def convection(seed: int) -> Fit:
    """u_t + 10 u_x = 0, a sine that travels."""
    torch.manual_seed(seed)
    low, high, dtype = [0.0, 0.0], [2 * PI, 1.0], torch.float64
    first = pinn.initial(low, high, 60, dtype=dtype)
    return Travelling(), (
        Residual(
            lambda u, p: pinn.derivative(u, p, 1) + 10 * pinn.derivative(u, p, 0), pinn.box(low, high, 500, dtype=dtype)
        ),
        Residual(lambda u, p, value: u(p)[0] - value, first, torch.sin(first[:, 0])),
    )


def helmholtz(seed: int) -> Fit:
    """Δu + u = f on the square, u = sin 2πx sin πy."""
    torch.manual_seed(seed)
    inside = pinn.box([-1.0, -1.0], [1.0, 1.0], 500, dtype=torch.float64)
    faces = pinn.boundary([-1.0, -1.0], [1.0, 1.0], 120, dtype=torch.float64)
    source = (1 - 5 * PI**2) * torch.sin(2 * PI * inside[:, 0]) * torch.sin(PI * inside[:, 1])
    return network(2, 16, 16, 1), (
        Residual(lambda u, p, f: pinn.laplacian(u, p) + u(p)[0] - f, inside, source),
        Residual(lambda u, p: 10 * u(p)[0], faces),
    )


class Exponentials(nn.Module):
    """Three exponentials, whose rates are all but exchangeable."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.heights = nn.Parameter(torch.rand(3, generator=generator, dtype=torch.float64))
        self.rates = nn.Parameter(torch.rand(3, generator=generator, dtype=torch.float64) * 4)

    def forward(self, t: Tensor) -> Tensor:
        return (self.heights * torch.exp(-self.rates * t)).sum(dim=-1, keepdim=True)


def exponentials(seed: int) -> Fit:
    """Lanczos' curve, 0.0951 e^−t + 0.8607 e^−3t + 1.5576 e^−5t: ill-conditioned."""
    t = torch.linspace(0, 1.15, 24, dtype=torch.float64)[:, None]
    return Exponentials(seed), (t, 0.0951 * torch.exp(-t) + 0.8607 * torch.exp(-3 * t) + 1.5576 * torch.exp(-5 * t))


class Valley(nn.Module):
    """Rosenbrock's curved valley with steep sides, five times: residuals 100 (y − x²) and 1 − x."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.place = nn.Parameter(torch.randn(10, generator=generator, dtype=torch.float64))

    def forward(self, given: Tensor) -> Tensor:
        x, y = self.place[0::2], self.place[1::2]
        return torch.cat([100 * (y - x * x), 1 - x])[None].expand(len(given), -1)


def valley(seed: int) -> Fit:
    return Valley(seed), (torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 10, dtype=torch.float64))


CASES = {
    "rectifiers": Case(rectifiers, 1e-6),
    "smooth": Case(smooth, 1e-8),
    "classes": Case(classes, 1e-3, 10.0, (("loss", "cross_entropy"),)),
    "narrow": Case(narrow, 1e-6),
    "heat": Case(equation(heat, minus_sine, 2, 32, 1), 1e-9),
    "burgers": Case(equation(burgers, minus_sine, 2, 16, 16, 1), 1e-7, 15.0),
    "allen-cahn": Case(equation(allen_cahn, minus_sine, 2, 16, 16, 1), 1e-7, 15.0),
    "convection": Case(convection, 1e-7, 15.0),
    "helmholtz": Case(helmholtz, 1e-4, 15.0),
    "exponentials": Case(exponentials, 1e-14, 5.0),
    "valley": Case(valley, 1e-16, 5.0),
}


def follow(case: Case, seed: int) -> dict[str, float]:
    """Steps and processor seconds to the goal, infinite where it is not reached; the loss at the end."""
    module, data = case.make(seed)
    optimizer = GaussNewton(module, **dict(case.options))
    began = time.process_time()
    idle = 0
    while True:
        info = optimizer.step(*data)
        spent = time.process_time() - began
        if info.loss <= case.goal:
            return {"steps": info.step, "seconds": spent, "loss": info.loss}
        idle = 0 if info.accepted else idle + 1
        if spent > case.seconds or idle >= 3 or optimizer.stationary:
            return {"steps": math.inf, "seconds": math.inf, "loss": info.loss, "taken": info.step}


def run(size: str, cases: str = "", seeds: int = 0, against: str = "") -> dict:
    """Fit every case from several seeds.

    Parameters
    ----------
    size
        "quick": two seeds of the cases that take a second; "default": five seeds of all; "full": ten.
    cases
        Comma-separated names; empty: by size.
    seeds
        Number of them; 0: by size.
    against
        Result of another run in JSON, to compare with.
    """
    torch.set_num_threads(1)
    quick = ["rectifiers", "exponentials", "valley"]
    names = cases.split(",") if cases else quick if size == "quick" else list(CASES)
    count = seeds or {"quick": 2, "default": 5, "full": 10}[size]
    earlier = (
        {line["name"]: line["value"] for line in json.loads(Path(against).read_text())["figures"]} if against else {}
    )
    figures, runs = [], {}
    for name in names:
        found = runs[name] = [follow(CASES[name], seed) for seed in range(count)]
        for unit, key in (("steps", "steps"), ("s", "seconds")):
            values = [one[key] for one in found]
            for kind, value in (("median", statistics.median(values)), ("worst", max(values))):
                title = f"{name} to {CASES[name].goal:.0e}, {key}, {kind} of {count}"
                other = earlier.get(title)
                ratio = (math.inf if other is None else other) / value if title in earlier else None
                figures.append(entry(title, value, unit, against or None, ratio))
    return {
        "machine": describe_machine(),
        "settings": {"seeds": count, "cases": names},
        "figures": figures,
        "runs": runs,
    }


if __name__ == "__main__":
    main("policy", run)
