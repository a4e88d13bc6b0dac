"""Δu + k² u = f in an L: points of a polygon, learnt frequencies, and points added where the residual is large."""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
STEPS, ROUNDS, WAVE = 25, 3, 6.0
CORNERS = [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]


def exact(p):
    return torch.sin(math.pi * p[..., 0]) * torch.sin(2 * math.pi * p[..., 1])


def equation(u, p):
    return pinn.laplacian(u, p) + WAVE**2 * u(p)[0] - (WAVE**2 - 5 * math.pi**2) * exact(p)


def edge(u, p, value):
    return u(p)[0] - value


features = pinn.Fourier(2, 16, scale=3.0)
network = nn.Sequential(features, nn.Linear(features.out_features, 16), nn.Tanh(), nn.Linear(16, 1))
rim = pinn.polygon_edge(CORNERS, 300)
points = pinn.polygon(CORNERS, 1200)
optimizer = widefit.GaussNewton(network)
for _ in range(ROUNDS):
    blocks = [widefit.Residual(equation, points), widefit.Residual(edge, rim, exact(rim), weight=100.0)]
    history = optimizer.minimize(*blocks, max_iter=STEPS)
    print(f"{len(points)} points: loss {history.losses[-1]:.1e}, {history[-1].seconds:.1f} s")
    added = pinn.adaptive(equation, network, pinn.polygon(CORNERS, 4000), 200)
    points = torch.cat([points, added])

unseen = pinn.polygon(CORNERS, 4000)
error = (network(unseen)[:, 0] - exact(unseen)).detach()
print(f"relative error {error.norm() / exact(unseen).norm():.1e}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
figure.colorbar(left.scatter(*unseen.T, c=network(unseen)[:, 0].detach(), s=4), ax=left)
left.set(title="u", aspect="equal")
figure.colorbar(right.scatter(*unseen.T, c=error.abs().log10(), s=4), ax=right)
right.set(title="log₁₀ |error|", aspect="equal")
figure.tight_layout()
figure.savefig("helmholtz.png")
