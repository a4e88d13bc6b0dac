"""Burgers' equation u_t + u u_x = ν u_xx with a steepening front: a deeper network, the same lines of training."""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

STEPS, POINTS = 100, 2000

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
LOW, HIGH, VISCOSITY = [-1, 0], [1, 1], 0.01  # (x, t)


def equation(u, point):
    slope, rate = pinn.gradient(u, point)
    return rate + u(point)[0] * slope - VISCOSITY * pinn.derivative(u, point, axis=0, order=2)


def start(u, point):
    return u(point)[0] + torch.sin(math.pi * point[0])


def ends(u, point):
    return u(point)


network = nn.Sequential(
    nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
)
blocks = [
    widefit.Residual(equation, pinn.sobol(LOW, HIGH, POINTS)),
    widefit.Residual(start, pinn.initial(LOW, HIGH, 100)),
    widefit.Residual(ends, pinn.boundary(LOW, HIGH, 60, axes=[0])),
]
optimizer = widefit.GaussNewton(network)
for _ in range(STEPS):
    info = optimizer.step(*blocks)
    if info.step % 10 == 0:
        print(f"step {info.step}: loss {info.loss:.2e}, {info.seconds:.1f} s")

space, time = torch.linspace(-1, 1, 201), torch.linspace(0, 1, 101)
grid = torch.stack(torch.meshgrid(space, time, indexing="ij"), dim=-1)
found = network(grid)[..., 0].detach()

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
figure.colorbar(left.pcolormesh(time, space, found), ax=left)
left.set(xlabel="t", ylabel="x")
for column in (0, 25, 50, 100):
    right.plot(space, found[:, column], label=f"t = {float(time[column]):.2f}")
right.set(xlabel="x", ylabel="u")
right.legend()
figure.tight_layout()
figure.savefig("burgers.png", dpi=80)
