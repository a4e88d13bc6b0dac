"""u_t + u u_x + 0.0025 u_xxx = 0: a wave falls apart into solitons. Periodic by construction, slab after slab."""

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


embedding = pinn.Periodic(2, {0: 2.0}, harmonics=2)
inner = nn.Sequential(
    embedding, nn.Linear(embedding.out_features, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
)
space = torch.linspace(-1, 1, 201)
network, rows, energies = None, [], []
for low, high in pinn.slabs(LOW, HIGH, SLABS):
    # cos πx at first, then the end of the last slab: u = lift + (t − t₀) · inner.
    lift = (lambda p: torch.cos(math.pi * p[..., :1])) if network is None else pinn.Held(network, {1: low[1]})
    # What the last slab has learnt, the rate of change above all, is a good start for the next.
    network = pinn.Constrained(inner, lambda p, began=low[1]: p[..., 1:] - began, lift)
    block = widefit.Residual(equation, pinn.sobol(low, high, POINTS))
    history = widefit.GaussNewton(network).minimize(block, max_iter=STEPS)
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
