"""Nonlinear regression problems with certified answers: NIST Statistical Reference Datasets (StRD), public domain.

`nist.json` holds the observations, both starting points, and the certified parameters, standard deviations and residual
sum of squares of https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml, as published.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn


def _sum_of_exponentials(x, b1, b2, b3, b4, b5, b6):
    return b1 * torch.exp(-b2 * x) + b3 * torch.exp(-b4 * x) + b5 * torch.exp(-b6 * x)


def _two_peaks(x, b1, b2, b3, b4, b5, b6, b7, b8):
    peaks = b3 * torch.exp(-((x - b4) ** 2) / b5**2) + b6 * torch.exp(-((x - b7) ** 2) / b8**2)
    return b1 * torch.exp(-b2 * x) + peaks


def _cubic_ratio(x, b1, b2, b3, b4, b5, b6, b7):
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def _saturation(x, b1, b2):
    return b1 * (1 - torch.exp(-b2 * x))


def _damped_ratio(x, b1, b2, b3):
    return torch.exp(-b1 * x) / (b2 + b3 * x)


def _oscillation(x, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    def wave(period, cosine, sine):
        angle = 2 * math.pi * x / period
        return cosine * torch.cos(angle) + sine * torch.sin(angle)

    return b1 + wave(12, b2, b3) + wave(b4, b5, b6) + wave(b7, b8, b9)


MODELS: dict[str, Callable[..., Tensor]] = {
    "Bennett5": lambda x, b1, b2, b3: b1 * (b2 + x) ** (-1 / b3),
    "BoxBOD": _saturation,
    "Chwirut1": _damped_ratio,
    "Chwirut2": _damped_ratio,
    "DanWood": lambda x, b1, b2: b1 * x**b2,
    "ENSO": _oscillation,
    "Eckerle4": lambda x, b1, b2, b3: b1 / b2 * torch.exp(-0.5 * ((x - b3) / b2) ** 2),
    "Gauss1": _two_peaks,
    "Gauss2": _two_peaks,
    "Gauss3": _two_peaks,
    "Hahn1": _cubic_ratio,
    "Kirby2": lambda x, b1, b2, b3, b4, b5: (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2),
    "Lanczos1": _sum_of_exponentials,
    "Lanczos2": _sum_of_exponentials,
    "Lanczos3": _sum_of_exponentials,
    "MGH09": lambda x, b1, b2, b3, b4: b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4),
    "MGH10": lambda x, b1, b2, b3: b1 * torch.exp(b2 / (x + b3)),
    "MGH17": lambda x, b1, b2, b3, b4, b5: b1 + b2 * torch.exp(-x * b4) + b3 * torch.exp(-x * b5),
    "Misra1a": _saturation,
    "Misra1b": lambda x, b1, b2: b1 * (1 - (1 + b2 * x / 2) ** -2),
    "Misra1c": lambda x, b1, b2: b1 * (1 - (1 + 2 * b2 * x) ** -0.5),
    "Misra1d": lambda x, b1, b2: b1 * b2 * x / (1 + b2 * x),
    "Nelson": lambda x, b1, b2, b3: b1 - b2 * x[..., 0] * torch.exp(-b3 * x[..., 1]),
    "Rat42": lambda x, b1, b2, b3: b1 / (1 + torch.exp(b2 - b3 * x)),
    "Rat43": lambda x, b1, b2, b3, b4: b1 / (1 + torch.exp(b2 - b3 * x)) ** (1 / b4),
    "Roszman1": lambda x, b1, b2, b3, b4: b1 - b2 * x - torch.arctan(b3 / (x - b4)) / math.pi,
    "Thurber": _cubic_ratio,
}


@dataclass(frozen=True)
class Reference:
    """One problem.

    Attributes
    ----------
    x, y
        Observations, shapes (n,) or (n, 2) and (n,); the logarithm of y for Nelson, whose model is of that.
    starts
        The two published starting points, from the hard to the easy one.
    parameters, deviations
        Certified estimates and their standard deviations.
    squares
        Certified residual sum of squares.
    """

    name: str
    x: Tensor
    y: Tensor
    starts: tuple[list[float], list[float]]
    parameters: Tensor
    deviations: Tensor
    squares: float

    @property
    def model(self) -> Callable[..., Tensor]:
        """The regression function, model(x, *parameters)."""
        return MODELS[self.name]

    def worst_error(self, found: Tensor) -> float:
        """The largest relative error of the parameters."""
        return float(((found - self.parameters) / self.parameters).abs().max())


class Curve(nn.Module):
    """A regression function as a module of scalar parameters."""

    def __init__(self, function: Callable[..., Tensor], start: list[float], dtype: torch.dtype = torch.float64):
        super().__init__()
        self.function = function
        self.coefficients = nn.ParameterList([nn.Parameter(torch.tensor(value, dtype=dtype)) for value in start])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.coefficients)

    def found(self) -> Tensor:
        """The parameters, shape (P,)."""
        return torch.stack([value.detach() for value in self.coefficients]).double()


@cache
def reference(name: str) -> Reference:
    """One of the problems of `MODELS`."""
    record = json.loads(Path(__file__).with_name("nist.json").read_text())[name]
    y = torch.tensor(record["y"], dtype=torch.float64)
    return Reference(
        name,
        torch.tensor(record["x"], dtype=torch.float64),
        y.log() if name == "Nelson" else y,
        tuple(record["starts"]),
        torch.tensor(record["parameters"], dtype=torch.float64),
        torch.tensor(record["deviations"], dtype=torch.float64),
        record["squares"],
    )
