"""u_t + u u_x + 0.0025 u_xxx = 0: a wave falls apart into solitons. Periodic by construction, slab after slab."""

import copy
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import widefit
from widefit import pinn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
STEPS, POINTS, SLABS = 60, 1500, 4
LOW, HIGH = [-1, 0], [1, 1]  # (x, t)


def equation(u, p):
    value, u_x, u_t, u_xxx = pinn.partials(u, p, (), (0,), (1,), (0, 0, 0))
    return u_t + value * u_x + 0.0025 * u_xxx


def start(u, p, value):
    return u(p) - value


embedding = pinn.Periodic(2, {0: 2.0}, harmonics=2)
network = nn.Sequential(
    embedding, nn.Linear(embedding.out_features, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
)
space = torch.linspace(-1, 1, 201)
values = torch.cos(math.pi * space)[:, None]
rows, energies = [], []
for low, high in pinn.slabs(LOW, HIGH, SLABS):
    first = torch.stack([space, torch.full_like(space, low[1])], dim=1)
    blocks = [
        widefit.Residual(equation, pinn.sobol(low, high, POINTS)),
        widefit.Residual(start, first, values, weight=100.0),
    ]
    network = copy.deepcopy(network)  # the last slab is a good start for the next
    history = widefit.GaussNewton(network).minimize(*blocks, max_iter=STEPS)
    for time in torch.linspace(low[1], high[1], 26)[1:]:
        values = network(torch.stack([space, time.expand(201)], dim=1)).detach()
        rows.append(values[:, 0])
        energies.append(float(values[:-1].square().mean()))
    print(f"until t = {high[1]:.2f}: loss {history.losses[-1]:.1e}, {history[-1].seconds:.1f} s")
# The integral of u² stays as it is, exactly.
print(f"energy {energies[0]:.5f} … {energies[-1]:.5f}, should be 0.5")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
times = torch.linspace(0, 1, len(rows) + 1)[1:]
figure.colorbar(left.pcolormesh(times, space, torch.stack(rows, dim=1), shading="auto"), ax=left)
left.set(xlabel="t", ylabel="x")
for part in (0.25, 0.5, 1.0):
    right.plot(space, rows[int(part * len(rows)) - 1], label=f"t = {part}")
right.set(xlabel="x", ylabel="u")
right.legend()
figure.tight_layout()
figure.savefig("korteweg_de_vries.png")
