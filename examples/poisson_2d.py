"""−Δu = f on the unit square, u = 0 on its edge: a network to an error of 1e-6 in about a hundred steps."""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

STEPS = 120

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def exact(x):
    return torch.sin(math.pi * x).prod(dim=-1)


def interior(u, x):
    return pinn.laplacian(u, x) + 2 * math.pi**2 * exact(x)


def boundary(u, x):
    return u(x)


network = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
inside = widefit.Residual(interior, pinn.sobol([0, 0], [1, 1], 900))
edge = widefit.Residual(boundary, pinn.boundary([0, 0], [1, 1], 120))

optimizer = widefit.GaussNewton(network)
for _ in range(STEPS):
    info = optimizer.step(inside, edge)
    if info.step % 20 == 0:
        print(f"step {info.step}: loss {info.loss:.2e}, damping {info.damping:.1e}, {info.seconds:.1f} s")

axis = torch.linspace(0, 1, 101)
grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
error = (network(grid)[..., 0] - exact(grid)).detach()
print(f"RMS error {error.square().mean().sqrt():.1e}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
left.semilogy(optimizer.history.losses)
left.set(title="loss", xlabel="step")
figure.colorbar(right.pcolormesh(axis, axis, error.T), ax=right)
right.set(title="error")
figure.tight_layout()
figure.savefig("poisson_2d.png", dpi=80)
