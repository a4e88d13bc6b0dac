"""Kovasznay's flow behind a grid: three equations, three outputs, and what is learnt between the points."""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
STEPS, REYNOLDS = 60, 40
LOW, HIGH = [-0.5, -0.5], [1.0, 1.5]
DECAY = REYNOLDS / 2 - math.sqrt(REYNOLDS**2 / 4 + 4 * math.pi**2)


def exact(p):
    growth, angle = torch.exp(DECAY * p[..., 0]), 2 * math.pi * p[..., 1]
    return torch.stack([1 - growth * torch.cos(angle), DECAY / (2 * math.pi) * growth * torch.sin(angle)], dim=-1)


def equations(flow, p):
    value, d_x, d_y, d_xx, d_yy = pinn.partials(flow, p, (), (0,), (1,), (0, 0), (1, 1))
    momentum = value[0] * d_x[:2] + value[1] * d_y[:2] - (d_xx[:2] + d_yy[:2]) / REYNOLDS
    return torch.stack([momentum[0] + d_x[2], momentum[1] + d_y[2], d_x[0] + d_y[1]])


def edge(flow, p, velocity):
    return flow(p)[:2] - velocity


flow = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3))
faces = pinn.boundary(LOW, HIGH, 200)
blocks = [
    widefit.Residual(equations, pinn.sobol(LOW, HIGH, 700)),
    widefit.Residual(edge, faces, exact(faces)),
]
unseen = [widefit.Residual(equations, pinn.sobol(LOW, HIGH, 300, seed=1))]
optimizer = widefit.GaussNewton(flow)
history = optimizer.minimize(*blocks, max_iter=STEPS, validation=unseen)
print(f"loss {history.losses[-1]:.1e}, of unseen points {history[-1].metric:.1e}; {history.why}")

grid = pinn.grid(LOW, HIGH, [60, 80])
found, wanted = flow(grid)[:, :2].detach(), exact(grid)
print(f"relative error {(found - wanted).norm() / wanted.norm():.1e}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
x, y = (grid[:, axis].reshape(60, 80) for axis in (0, 1))
speed = found.norm(dim=1).reshape(60, 80)
figure.colorbar(left.pcolormesh(x, y, speed, shading="auto"), ax=left)
left.streamplot(
    x[:, 0].numpy(), y[0].numpy(), *(v.reshape(60, 80).T.numpy() for v in found.T), color="white", density=0.8
)
left.set(title="speed and streamlines", xlabel="x", ylabel="y")
right.semilogy(history.losses, label="loss")
right.semilogy([info.step for info in history[1:]], [info.metric for info in history[1:]], label="unseen points")
right.set(xlabel="step")
right.legend()
figure.tight_layout()
figure.savefig("kovasznay.png")
