"""u_t + β u_x = 0 with β = 30: few fixed points make the loss small without solving it; more of them solve it."""

import math
import warnings

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

torch.set_default_dtype(torch.float64)
STEPS, BETA, FEW, ENOUGH = 150, 30, 150, 2000
LOW, HIGH = [0, 0], [2 * math.pi, 1]  # (x, t)


def equation(u, p):
    u_x, u_t = pinn.partials(u, p, (0,), (1,))
    return u_t + BETA * u_x


def solve(points):
    torch.manual_seed(0)
    inner = nn.Sequential(
        pinn.Periodic(2, {0: 2 * math.pi}), nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
    )
    # sin x at t = 0, whatever the network says.
    network = pinn.Constrained(inner, lambda p: p[..., 1:], lambda p: torch.sin(p[..., :1]))
    history = widefit.GaussNewton(network).minimize(widefit.Residual(equation, points), max_iter=STEPS, tol=1e-9)
    return network, history


warnings.simplefilter("always")  # the few points are warned of
grid = pinn.grid(LOW, HIGH, [100, 100])
wanted = torch.sin(grid[:, :1] - BETA * grid[:, 1:])
figure, panels = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
shown = {"exact": wanted}
for title, count in (("few points", FEW), ("enough points", ENOUGH)):
    network, history = solve(pinn.sobol(LOW, HIGH, count))
    found = network(grid).detach()
    error = float((found - wanted).norm() / wanted.norm())
    print(f"{count} points: loss {history.losses[-1]:.1e}, relative error {error:.1e}, {history[-1].seconds:.1f} s")
    shown[f"{title}: error {error:.1e}"] = found
for panel, (title, field) in zip(panels, shown.items(), strict=True):
    panel.imshow(field.reshape(100, 100), origin="lower", extent=(0, 1, 0, 2 * math.pi), aspect="auto")
    panel.set(title=title, xlabel="t", ylabel="x")
figure.savefig("convection.png")
