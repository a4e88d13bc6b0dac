"""u_t + β u_x = 0, β = 40, solved: many waves in time need a network that begins with many waves in time."""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

STEPS, POINTS, BETA = 50, 2500, 40

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
LOW, HIGH = [0, 0], [2 * math.pi, 1]  # (x, t)


def equation(u, p):
    u_x, u_t = pinn.partials(u, p, (0,), (1,))
    return u_t + BETA * u_x


def solution(p):
    return torch.sin(p[..., :1] - BETA * p[..., 1:])


def relative_error(network):
    with torch.no_grad():
        return float((network(grid) - solution(grid)).norm() / solution(grid).norm())


def network(*layers):
    """A network of period 2π in x that is sin x at t = 0, whatever the layers between say."""
    inner = nn.Sequential(pinn.Periodic(2, {0: 2 * math.pi}), *layers)
    return pinn.Constrained(inner, lambda p: p[..., 1:], lambda p: torch.sin(p[..., :1]))


networks = {
    "perceptron": network(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)),
    # Waves of cos x, sin x and t, whose frequencies are learnt; those of time begin at about β / 2.
    "waves first": network(pinn.Fourier(3, 32, scale=[1, 1, BETA / 2]), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 1)),
}
grid = pinn.grid(LOW, HIGH, [100, 100])
block = widefit.Residual(equation, pinn.sobol(LOW, HIGH, POINTS))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, trained in networks.items():
    history = widefit.GaussNewton(trained).minimize(block, max_iter=STEPS, metric=relative_error)
    print(f"{name}: loss {history[-1].loss:.1e}, relative error {history[-1].metric:.1e}, {history[-1].seconds:.0f} s")
    right.semilogy([info.step for info in history], [info.metric for info in history], label=name)

found = networks["waves first"](grid).detach().reshape(100, 100)
shown = left.imshow(found, origin="lower", extent=(0, 1, 0, 2 * math.pi), aspect="auto", interpolation="nearest")
figure.colorbar(shown, ax=left)
left.set(xlabel="t", ylabel="x")
right.set(xlabel="step", ylabel="relative error")
right.legend()
figure.savefig("travelling_wave.png", dpi=72)
