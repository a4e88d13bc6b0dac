"""u_t + β u_x = 0, β = 30, on few fixed points: the loss vanishes, nothing is solved, and other points tell."""

import math
import warnings

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
STEPS, BETA, POINTS = 150, 30, 150
LOW, HIGH = [0, 0], [2 * math.pi, 1]  # (x, t)


def equation(u, p):
    u_x, u_t = pinn.partials(u, p, (0,), (1,))
    return u_t + BETA * u_x


inner = nn.Sequential(
    pinn.Periodic(2, {0: 2 * math.pi}), nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
)
# sin x at t = 0, whatever the network says.
network = pinn.Constrained(inner, lambda p: p[..., 1:], lambda p: torch.sin(p[..., :1]))
trained = widefit.Residual(equation, pinn.sobol(LOW, HIGH, POINTS))
unseen = widefit.Residual(equation, pinn.sobol(LOW, HIGH, 500, seed=1))
warnings.simplefilter("always")  # so few points are warned of
history = widefit.GaussNewton(network).minimize(trained, max_iter=STEPS, tol=1e-9, validation=[unseen])

grid = pinn.grid(LOW, HIGH, [100, 100])
wanted = torch.sin(grid[:, :1] - BETA * grid[:, 1:])
found = network(grid).detach()
error = float((found - wanted).norm() / wanted.norm())
print(f"loss {history[-1].loss:.1e}, at other points {history[-1].metric:.1e}, relative error {error:.1e}")

figure, panels = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
for panel, title, field in zip(panels, ("exact", f"found: error {error:.1e}"), (wanted, found), strict=False):
    panel.imshow(field.reshape(100, 100), origin="lower", extent=(0, 1, 0, 2 * math.pi), aspect="auto")
    panel.set(title=title, xlabel="t", ylabel="x")
panels[2].semilogy(history.losses, label="loss")
panels[2].semilogy([info.step for info in history[1:]], [info.metric for info in history[1:]], label="at other points")
panels[2].set(xlabel="step")
panels[2].legend()
figure.savefig("convection.png")
