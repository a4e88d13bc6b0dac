"""An unknown conductivity from noisy measurements: −κ Δu = f, κ is one more parameter of the model."""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

STEPS, KAPPA, NOISE = 60, 2.5, 1e-3

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        self.log_kappa = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.temperature(x)


def exact(x):
    return torch.sin(math.pi * x).prod(dim=-1)


def equation(body, x):
    return body.log_kappa.exp() * pinn.laplacian(body, x) + KAPPA * 2 * math.pi**2 * exact(x)


def edge(body, x):
    return body(x)


def measured(body, x, value):
    return body(x)[0] - value


sensors = pinn.box([0, 0], [1, 1], 100)
readings = exact(sensors) + NOISE * torch.randn(100)
blocks = [
    widefit.Residual(equation, pinn.box([0, 0], [1, 1], 600)),
    widefit.Residual(edge, pinn.boundary([0, 0], [1, 1], 80)),
    widefit.Residual(measured, sensors, readings),
]
body = Body()
optimizer = widefit.GaussNewton(body)
path = []
for _ in range(STEPS):
    optimizer.step(*blocks)
    path.append(float(body.log_kappa.detach().exp()))
print(f"conductivity {path[-1]:.4f}, truth {KAPPA}")

figure, panel = plt.subplots(figsize=(6, 4))
panel.plot(path, label="found")
panel.axhline(KAPPA, color="black", linestyle=":", label="truth")
panel.set(xlabel="step", ylabel="conductivity", ylim=(0, 2 * KAPPA))
panel.legend()
figure.tight_layout()
figure.savefig("inverse_problem.png", dpi=80)
