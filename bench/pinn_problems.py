"""The equations of the gauss-newton bench: points, residuals and exact solutions.

Poisson 2d u = Π sin πxᵢ, heat 1d u_t = u_xx/4, Poisson 5d u = Σ cos πxᵢ, Poisson 10d u = Σ x_{2i−1} x_{2i} / 1.34,
heat 4+1d u_t = Δu/4, u = e^−t Σ sin 2xᵢ; points uniform in the unit cube, Dirichlet data from u, loss ½ mean(interior
residual²) + ½ mean(boundary residual²), error = RMS on unseen points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from widefit import Residual, pinn

PI = math.pi


@dataclass(frozen=True)
class Problem:
    """One equation on the unit cube.

    Attributes
    ----------
    widths
        Of the tanh network.
    interior, boundary
        Numbers of points.
    resampled
        Whether every step draws new points.
    equation
        residual(network, point) in the interior.
    solution
        Exact values at points (n, d).
    space
        Coordinates that have boundary values; the last coordinate is time where it is not among them.
    goals
        Errors to time.
    seconds
        Given to every method.
    """

    widths: tuple[int, ...]
    interior: int
    boundary: int
    resampled: bool
    equation: Callable[..., Tensor]
    solution: Callable[[Tensor], Tensor]
    goals: tuple[float, ...]
    seconds: float
    space: tuple[int, ...] | None = None

    @property
    def dimension(self) -> int:
        return self.widths[0]

    def network(self, seed: int) -> nn.Module:
        """A fresh network in float64."""
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for size, following in pairwise(self.widths):
            layers += [nn.Linear(size, following), nn.Tanh()]
        return nn.Sequential(*layers[:-1]).double()

    def points(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Interior and boundary (and initial) points."""
        low, high = [0.0] * self.dimension, [1.0] * self.dimension
        inside = pinn.box(low, high, self.interior, generator, torch.float64)
        if self.space is None:
            return inside, pinn.boundary(low, high, self.boundary, generator, torch.float64)
        third = self.boundary // 3
        faces = pinn.boundary(low, high, self.boundary - third, generator, torch.float64, axes=self.space)
        return inside, torch.cat([faces, pinn.initial(low, high, third, generator, torch.float64)])

    def blocks(self, generator: torch.Generator) -> tuple[Residual, ...]:
        """The residuals at new points."""
        inside, faces = self.points(generator)
        return Residual(self.equation, inside), Residual(difference, faces, self.solution(faces))

    def error(self, network: nn.Module, points: Tensor) -> float:
        """RMS over points."""
        with torch.no_grad():
            return float((network(points)[:, 0] - self.solution(points)).square().mean().sqrt())

    def test_points(self) -> Tensor:
        """Unseen points."""
        generator = torch.Generator().manual_seed(10**6)
        return torch.rand(4000, self.dimension, generator=generator, dtype=torch.float64)


KAPPA = 2.5


class Conducting(nn.Module):
    """A temperature and an unknown conductivity exp(log_kappa), which begins at 1."""

    def __init__(self, temperature: nn.Module):
        super().__init__()
        self.temperature = temperature
        self.log_kappa = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature(x)


@dataclass(frozen=True)
class InverseProblem(Problem):
    """−κ Δu = f on the square with κ unknown: 100 readings of u with noise of 1e-3; error = |κ found / κ − 1|."""

    def network(self, seed: int) -> nn.Module:
        return Conducting(super().network(seed))

    def blocks(self, generator: torch.Generator) -> tuple[Residual, ...]:
        sensors = pinn.box([0.0, 0.0], [1.0, 1.0], 100, generator, torch.float64)
        noise = torch.randn(100, generator=generator, dtype=torch.float64)
        readings = Residual(difference, sensors, self.solution(sensors) + 1e-3 * noise)
        return (*super().blocks(generator), readings)

    def error(self, network: nn.Module, points: Tensor) -> float:
        return abs(float(network.get_parameter("log_kappa").detach().exp()) / KAPPA - 1)


def conducted(network: Conducting, x: Tensor) -> Tensor:
    source = KAPPA * 2 * PI**2 * product_of_sines(x)
    return network.log_kappa.exp() * pinn.laplacian(network, x) + source


def difference(network: nn.Module, point: Tensor, value: Tensor) -> Tensor:
    return network(point)[0] - value


def product_of_sines(x: Tensor) -> Tensor:
    return torch.sin(PI * x).prod(dim=-1)


def sum_of_cosines(x: Tensor) -> Tensor:
    return torch.cos(PI * x).sum(dim=-1)


def sum_of_products(x: Tensor) -> Tensor:
    return (x[..., 0::2] * x[..., 1::2]).sum(dim=-1) / 1.34


def decaying_sines(x: Tensor) -> Tensor:
    return torch.exp(-x[..., -1]) * torch.sin(2 * x[..., :-1]).sum(dim=-1)


def heated(network: nn.Module, x: Tensor) -> Tensor:
    return pinn.derivative(network, x, axis=4) - pinn.laplacian(network, x, axes=range(4)) / 4


def decaying_sine(x: Tensor) -> Tensor:
    return torch.exp(-(PI**2) * x[..., 1] / 4) * torch.sin(PI * x[..., 0])


PROBLEMS = {
    "poisson-2d": Problem(
        (2, 64, 1), 900, 120, False,
        lambda network, x: pinn.laplacian(network, x) + 2 * PI**2 * product_of_sines(x),
        product_of_sines, (1e-3, 1e-5, 1e-6, 1e-7), 20.0,
    ),
    "heat-1d": Problem(
        (2, 64, 1), 900, 120, False,
        lambda network, x: pinn.derivative(network, x, axis=1) - pinn.derivative(network, x, axis=0, order=2) / 4,
        decaying_sine, (1e-3, 1e-5, 1e-6), 20.0, (0,),
    ),
    "conductivity": InverseProblem(
        (2, 32, 1), 600, 80, False, conducted, product_of_sines, (1e-1, 1e-2, 2e-3), 10.0,
    ),
    "poisson-5d": Problem(
        (5, 64, 64, 48, 48, 1), 3000, 500, True,
        lambda network, x: pinn.laplacian(network, x) + PI**2 * sum_of_cosines(x),
        sum_of_cosines, (1e-2, 1e-3, 1e-4), 90.0,
    ),
    "poisson-10d": Problem(
        (10, 256, 256, 128, 128, 1), 100, 50, True,
        lambda network, x: pinn.laplacian(network, x),
        sum_of_products, (1e-1, 1e-2, 1e-3), 30.0,
    ),
    "heat-4d": Problem(
        (5, 256, 256, 128, 128, 1), 300, 50, True, heated, decaying_sines, (1e-1, 1e-2, 1e-3), 19.0, (0, 1, 2, 3),
    ),
}  # fmt: skip
