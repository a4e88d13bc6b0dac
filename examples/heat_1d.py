"""u_t = u_xx / 4 on a rod with cold ends: three kinds of residual in one system."""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

STEPS = 120

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
LOW, HIGH = [0, 0], [1, 1]  # (x, t)


def equation(u, point):
    return pinn.derivative(u, point, axis=1) - pinn.derivative(u, point, axis=0, order=2) / 4


def start(u, point):
    return u(point)[0] - torch.sin(math.pi * point[0])


def ends(u, point):
    return u(point)


network = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
blocks = [
    widefit.Residual(equation, pinn.sobol(LOW, HIGH, 900)),
    widefit.Residual(start, pinn.initial(LOW, HIGH, 60)),
    widefit.Residual(ends, pinn.boundary(LOW, HIGH, 80, axes=[0])),
]
optimizer = widefit.GaussNewton(network)
for _ in range(STEPS):
    info = optimizer.step(*blocks)
    if info.step % 20 == 0:
        print(f"step {info.step}: loss {info.loss:.2e}, {info.seconds:.1f} s")

axis = torch.linspace(0, 1, 101)
grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
exact = torch.exp(-(math.pi**2) * grid[..., 1] / 4) * torch.sin(math.pi * grid[..., 0])
found = network(grid)[..., 0].detach()
print(f"RMS error {(found - exact).square().mean().sqrt():.1e}")

figure, panel = plt.subplots(figsize=(6, 4))
for column in range(0, 101, 20):
    panel.plot(axis, found[:, column], label=f"t = {float(axis[column]):.1f}")
panel.set(xlabel="x", ylabel="u")
panel.legend()
figure.tight_layout()
figure.savefig("heat_1d.png", dpi=80)
