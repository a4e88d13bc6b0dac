"""Poisson 2d with the Levenberg-Marquardt of optimistix and of torch-levenberg-marquardt, in an environment of theirs.

Prints {method: [[seconds, error], …]} as its last line; both are warmed up (compiled) before the clock starts.
"""

import json
import math
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
import torch
import torch_levenberg_marquardt as tlm
from torch import nn
from torch.func import functional_call, hessian, vmap

jax.config.update("jax_enable_x64", True)
PI = math.pi
SEED = 0


def network() -> nn.Sequential:
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).double()


def points() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Interior, boundary and test points."""
    generator = torch.Generator().manual_seed(SEED)
    inside = torch.rand(900, 2, generator=generator, dtype=torch.float64)
    faces = torch.rand(120, 2, generator=generator, dtype=torch.float64)
    face = torch.arange(120) % 4
    faces[torch.arange(120), face // 2] = (face % 2).double()
    test = torch.rand(4000, 2, generator=torch.Generator().manual_seed(10**6), dtype=torch.float64)
    return inside, faces, test


def with_optimistix(seconds: float) -> list[tuple[float, float]]:
    """optimistix.LevenbergMarquardt, one compiled step at a time."""
    inside, faces, test = (jnp.asarray(p.numpy()) for p in points())
    start = [jnp.asarray(p.detach().numpy()) for p in network().parameters()]

    def u(parameters, x):
        return (parameters[2] @ jnp.tanh(parameters[0] @ x + parameters[1]) + parameters[3])[0]

    def solution(x):
        return jnp.prod(jnp.sin(PI * x), axis=-1)

    def residuals(parameters, _):
        laplacian = jax.vmap(lambda x: jnp.trace(jax.hessian(lambda z: u(parameters, z))(x)))(inside)
        interior = laplacian + 2 * PI**2 * solution(inside)
        boundary = jax.vmap(lambda x: u(parameters, x))(faces) - solution(faces)
        return jnp.concatenate([interior / len(inside) ** 0.5, boundary / len(faces) ** 0.5])

    solver = optx.LevenbergMarquardt(rtol=1e-14, atol=1e-14)
    shape = jax.eval_shape(lambda: residuals(start, None))
    fn = lambda parameters, args: (residuals(parameters, args), None)  # noqa: E731
    state = solver.init(fn, start, None, {}, shape, None, frozenset())
    step = eqx.filter_jit(lambda y, s: solver.step(fn, y, None, {}, s, frozenset())[:2])
    error = jax.jit(lambda y: jnp.sqrt(jnp.mean((jax.vmap(lambda x: u(y, x))(test) - solution(test)) ** 2)))
    jax.block_until_ready(step(start, state)[0])
    float(error(start))
    y, spent, curve = start, 0.0, []
    while spent < seconds and (not curve or curve[-1][1] > 1e-7):
        began = time.perf_counter()
        y, state = step(y, state)
        jax.block_until_ready(y)
        spent += time.perf_counter() - began
        curve.append((spent, float(error(y))))
    return curve


class Equations(nn.Module):
    """A module whose outputs are the residuals, for a package that fits outputs to targets."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parameters = dict(self.network.named_parameters())

        def u(point: torch.Tensor) -> torch.Tensor:
            return functional_call(self.network, parameters, (point,))[0]

        def single(row: torch.Tensor) -> torch.Tensor:
            point = row[:2]
            exact = torch.sin(PI * point).prod()
            interior = (hessian(u)(point).diagonal().sum() + 2 * PI**2 * exact) / 900**0.5
            return torch.where(row[2] > 0, (u(point) - exact) / 120**0.5, interior).reshape(1)

        return vmap(single)(x)


def with_torch_package(seconds: float) -> list[tuple[float, float]]:
    """torch-levenberg-marquardt on the same residuals."""
    inside, faces, test = points()
    rows = torch.cat([torch.nn.functional.pad(inside, (0, 1)), torch.nn.functional.pad(faces, (0, 1), value=1.0)])
    targets = torch.zeros(len(rows), 1, dtype=torch.float64)
    exact = torch.sin(PI * test).prod(dim=1)
    warm = tlm.training.LevenbergMarquardtModule(Equations(), tlm.loss.MSELoss())
    warm.training_step(rows, targets)
    model = Equations()
    module = tlm.training.LevenbergMarquardtModule(model, tlm.loss.MSELoss())
    spent, curve = 0.0, []
    while spent < seconds and (not curve or curve[-1][1] > 1e-7):
        began = time.perf_counter()
        module.training_step(rows, targets)
        spent += time.perf_counter() - began
        with torch.no_grad():
            curve.append((spent, float((model.network(test)[:, 0] - exact).square().mean().sqrt())))
    return curve


if __name__ == "__main__":
    limit = float(sys.argv[2])
    print(json.dumps({"optimistix LM": with_optimistix(limit), "torch-levenberg-marquardt": with_torch_package(limit)}))
