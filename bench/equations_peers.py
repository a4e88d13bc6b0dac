"""Other packages on two problems of the equations bench, in an environment of theirs.

`python equations_peers.py FILE METHOD SECONDS` reads points, start and solution from FILE (`equations.py` writes it),
and prints [[processor seconds, error], …] as its last line. What is compiled is compiled before the clock starts.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PI = math.pi
Array = Any
Curve = list[tuple[float, float]]


class OutOfTimeError(Exception):
    """Ends a package's own loop."""


class Clock:
    """Processor time of the steps alone, and the parameters after each of them."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.spent = 0.0
        self.seen: list[tuple[float, Array]] = []
        self._began = time.process_time()

    def start(self) -> None:
        self._began = time.process_time()

    def mark(self, parameters: Array) -> None:
        """Note the parameters after a step; raise OutOfTimeError when time is over."""
        self.spent += time.process_time() - self._began
        self.seen.append((self.spent, parameters))
        if self.spent > self.seconds:
            raise OutOfTimeError
        self._began = time.process_time()

    def curve(self, error: Callable[[Array], float], count: int = 40) -> Curve:
        """Errors at some of the marks, the last among them."""
        kept = np.unique(np.linspace(0, len(self.seen) - 1, count).astype(int)) if self.seen else []
        return [(self.seen[i][0], error(self.seen[i][1])) for i in kept]


def in_jax(path: str) -> tuple[Any, Callable[..., Array], Callable[[Array], float], list[tuple[Any, Array]]]:
    """Start, residuals(parameters), error(parameters), and pairs of the residual at one point with points."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    given = np.load(path)
    kind = str(given["kind"])
    start = [jnp.asarray(given[f"weight{i}"]) for i in range(int(given["weights"]))]
    inside, edge, test, truth = (jnp.asarray(given[name]) for name in ("inside", "edge", "test", "truth"))

    def network(parameters: Array, z: Array) -> Array:
        *hidden, (last, shift) = list(zip(parameters[::2], parameters[1::2], strict=True))
        for weight, bias in hidden:
            z = jnp.tanh(weight @ z + bias)
        return (last @ z + shift)[0]

    def u(parameters: Array, p: Array) -> Array:
        if kind == "poisson-2d":
            return network(parameters, p)
        angle = PI * p[0]
        return p[1] * network(parameters, jnp.stack([jnp.cos(angle), jnp.sin(angle), p[1]])) - jnp.sin(angle)

    def along(f: Callable[[Array], Array], p: Array, axis: int) -> tuple[Array, Array]:
        return jax.jvp(f, (p,), (jnp.eye(2)[axis],))

    def second(f: Callable[[Array], Array], p: Array, axis: int) -> tuple[Array, Array]:
        return along(lambda q: along(f, q, axis)[1], p, axis)

    def equation(parameters: Array, p: Array) -> Array:
        def f(q: Array) -> Array:
            return u(parameters, q)

        slope, curve = second(f, p, 0)
        if kind == "poisson-2d":
            return curve + second(f, p, 1)[1] + 2 * PI**2 * jnp.prod(jnp.sin(PI * p))
        value, rate = along(f, p, 1)
        return rate + value * slope - 0.01 * curve

    def boundary(parameters: Array, p: Array) -> Array:
        return u(parameters, p) - jnp.prod(jnp.sin(PI * p))

    terms = [(equation, inside)] + ([(boundary, edge)] if kind == "poisson-2d" else [])

    def residuals(parameters: Array) -> Array:
        parts = [jax.vmap(lambda p, f=f: f(parameters, p))(points) / len(points) ** 0.5 for f, points in terms]
        return jnp.concatenate(parts)

    @jax.jit
    def norm(parameters: Array) -> Array:
        found = jax.vmap(lambda p: u(parameters, p))(test)
        return jnp.linalg.norm(found - truth) / jnp.linalg.norm(truth)

    return start, residuals, lambda parameters: float(norm(parameters)), terms


def of_optimistix(name: str) -> Callable[..., Any]:
    """Make a solver of optimistix."""

    def make(*_: Any) -> Any:
        import optimistix as optx

        return getattr(optx, name)(rtol=1e-14, atol=1e-14)

    return make


def quasi_newton(*_: Any) -> Any:
    """Self-scaled Broyden with a Zoom line search."""
    import ssbroyden_optimistix as sso

    return sso.SSBroyden(rtol=1e-14, atol=1e-14)


def natural_gradient(start: Any, terms: list[tuple[Any, Array]]) -> Any:
    """Natural gradients behind a randomized Nyström preconditioner, with the defaults of the package."""
    import randngd

    metric = randngd.metrics.gauss_newton(terms, start)
    rank = min(500, sum(part.size for part in start))
    return randngd.ngd_solver(randngd.NystromNGD(metric, kind="gaussian", ell_max=rank, key=0))


def with_optimistix(path: str, seconds: float, make: Callable[[Any, Any], Any]) -> Curve:
    """A solver of optimistix, one compiled step at a time."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optimistix as optx

    start, residuals, error, terms = in_jax(path)
    solver = make(start, terms)
    squares = isinstance(solver, optx.AbstractLeastSquaresSolver)

    def function(parameters: Array, _: Array) -> tuple[Array, None]:
        found = residuals(parameters)
        return (found if squares else 0.5 * jnp.sum(found**2)), None

    shape = jax.eval_shape(lambda: function(start, None)[0])
    state = solver.init(function, start, None, {}, shape, None, frozenset())
    step = eqx.filter_jit(lambda y, s: solver.step(function, y, None, {}, s, frozenset())[:2])
    return stepped(step, start, state, seconds, error)


def with_nlls_gram(path: str, seconds: float) -> Curve:
    """Levenberg-Marquardt of nlls-gram, with its geodesic acceleration, one compiled step at a time."""
    import jax
    import nlls_gram

    start, residuals, error, _ = in_jax(path)
    solver = nlls_gram.LevenbergMarquardt(residuals)
    state = solver.init(start)
    step = jax.jit(lambda x, before: solver.update(x, before)[:2])
    return stepped(step, start, state, seconds, error)


def stepped(
    step: Callable[[Any, Any], tuple[Any, Any]], start: Any, state: Any, seconds: float, error: Callable[[Any], float]
) -> Curve:
    """Errors over time of one compiled step after the other; compilation is not on the clock."""
    import jax

    # The second state may have other static parts than the first.
    jax.block_until_ready(step(*step(*step(start, state)))[0])
    clock, parameters = Clock(seconds), start
    try:
        while True:
            parameters, state = step(parameters, state)
            jax.block_until_ready(parameters)
            clock.mark(parameters)
    except OutOfTimeError:
        return clock.curve(error)


def in_torch(path: str) -> tuple[list[Any], Callable[..., Any], Callable[[Any], float], Any]:
    """The same in torch, where parameters are a list of tensors, and one row a point in place of the terms.

    `residuals(parameters, rows)` are those of some rows: coordinates, and 1 for a point of the edge.
    """
    import torch
    from torch.func import jvp, vmap

    given = np.load(path)
    kind = str(given["kind"])
    start = [torch.from_numpy(given[f"weight{i}"].copy()) for i in range(int(given["weights"]))]
    inside, edge, test, truth = (torch.from_numpy(given[name]) for name in ("inside", "edge", "test", "truth"))
    unit = torch.eye(2, dtype=torch.float64)

    def u(parameters: list[Any], p: Any) -> Any:
        z = p
        if kind != "poisson-2d":
            z = torch.stack([torch.cos(PI * p[0]), torch.sin(PI * p[0]), p[1]])
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        for weight, bias in pairs[:-1]:
            z = torch.tanh(weight @ z + bias)
        value = (pairs[-1][0] @ z + pairs[-1][1])[0]
        return value if kind == "poisson-2d" else p[1] * value - torch.sin(PI * p[0])

    def along(f: Callable[[Any], Any], p: Any, axis: int) -> tuple[Any, Any]:
        return jvp(f, (p,), (unit[axis],))

    def equation(parameters: list[Any], p: Any) -> Any:
        def f(q: Any) -> Any:
            return u(parameters, q)

        slope, curve = along(lambda q: along(f, q, 0)[1], p, 0)
        if kind == "poisson-2d":
            return curve + along(lambda q: along(f, q, 1)[1], p, 1)[1] + 2 * PI**2 * torch.sin(PI * p).prod()
        value, rate = along(f, p, 1)
        return rate + value * slope - 0.01 * curve

    def single(parameters: list[Any], row: Any) -> Any:
        interior = equation(parameters, row[:2]) / len(inside) ** 0.5
        if kind != "poisson-2d":
            return interior
        missed = (u(parameters, row[:2]) - torch.sin(PI * row[:2]).prod()) / len(edge) ** 0.5
        return torch.where(row[2] > 0, missed, interior)

    def residuals(parameters: list[Any], some: Any = None) -> Any:
        if some is not None:
            return vmap(lambda row: single(parameters, row))(some)
        interior = vmap(lambda p: equation(parameters, p))(inside) / len(inside) ** 0.5
        if kind != "poisson-2d":
            return interior
        missed = vmap(lambda p: u(parameters, p))(edge) - torch.sin(PI * edge).prod(dim=1)
        return torch.cat([interior, missed / len(edge) ** 0.5])

    def error(parameters: list[Any]) -> float:
        with torch.no_grad():
            found = vmap(lambda p: u(parameters, p))(test)
        return float(torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth))

    pad = torch.nn.functional.pad
    return start, residuals, error, torch.cat([pad(inside, (0, 1)), pad(edge, (0, 1), value=1.0)])


def with_torch_levenberg_marquardt(path: str, seconds: float) -> Curve:
    """torch-levenberg-marquardt on a module whose outputs are the residuals, one a row; its targets are 0."""
    import torch
    import torch_levenberg_marquardt as tlm

    start, residuals, error, rows = in_torch(path)

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.nn.ParameterList(start)

        def forward(self, some: torch.Tensor) -> torch.Tensor:
            return residuals(list(self.own), some)[:, None]

    targets = torch.zeros(len(rows), 1, dtype=torch.float64)
    model = Outputs()
    module = tlm.training.LevenbergMarquardtModule(model, tlm.loss.MSELoss())
    clock = Clock(seconds)
    try:
        while True:
            module.training_step(rows, targets)
            clock.mark([p.detach().clone() for p in model.own])
    except OutOfTimeError:
        return clock.curve(error)


def flat(start: list[Any]) -> tuple[Any, Callable[[Any], list[Any]]]:
    """One vector of all parameters, and the way back."""
    import torch

    sizes, shapes = [p.numel() for p in start], [p.shape for p in start]

    def split(vector: Any) -> list[Any]:
        return [part.reshape(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]

    return torch.cat([p.reshape(-1) for p in start]), split


def with_pytorch_minimize(path: str, seconds: float, method: str) -> Curve:
    """A method of torchmin.minimize."""
    import torchmin

    start, residuals, error, _ = in_torch(path)
    vector, split = flat(start)
    clock = Clock(seconds)
    with contextlib.suppress(OutOfTimeError):
        torchmin.minimize(
            lambda x: 0.5 * residuals(split(x)).square().sum(),
            vector,
            method=method,
            max_iter=10**6,
            tol=0.0,
            callback=lambda x: clock.mark(x.detach().clone()),
        )
    return clock.curve(lambda x: error(split(x)))


def with_nncg(path: str, seconds: float) -> Curve:
    """DeepXDE's NysNewtonCG, after L-BFGS for a half of the time, as its authors advise."""
    import torch
    from deepxde.optimizers.pytorch.nncg import NNCG

    torch.set_default_dtype(torch.float64)  # that of its sketches
    start, residuals, error, _ = in_torch(path)
    parameters = [p.requires_grad_() for p in start]
    clock = Clock(seconds)

    def loss() -> torch.Tensor:
        return 0.5 * residuals(parameters).square().sum()

    def closure() -> torch.Tensor:
        first.zero_grad()
        value = loss()
        value.backward()
        return value

    def now() -> list[torch.Tensor]:
        return [p.detach().clone() for p in parameters]

    first = torch.optim.LBFGS(parameters, history_size=100, line_search_fn="strong_wolfe", tolerance_change=0.0)
    second = NNCG(parameters, lr=1.0, mu=1e-6, rank=60, update_freq=20, line_search_fn="armijo")
    try:
        while clock.spent < seconds / 2:
            first.step(closure)
            clock.mark(now())
        while True:
            second.step(loss)
            clock.mark(now())
    except OutOfTimeError:
        return clock.curve(error)


METHODS: dict[str, Callable[[str, float], Curve]] = {
    "optimistix LM": lambda path, seconds: with_optimistix(path, seconds, of_optimistix("LevenbergMarquardt")),
    "optimistix BFGS": lambda path, seconds: with_optimistix(path, seconds, of_optimistix("BFGS")),
    "ssbroyden-optimistix": lambda path, seconds: with_optimistix(path, seconds, quasi_newton),
    "nlls-gram LM": with_nlls_gram,
    "randngd": lambda path, seconds: with_optimistix(path, seconds, natural_gradient),
    "torch-levenberg-marquardt": with_torch_levenberg_marquardt,
    "pytorch-minimize BFGS": lambda path, seconds: with_pytorch_minimize(path, seconds, "bfgs"),
    "pytorch-minimize L-BFGS": lambda path, seconds: with_pytorch_minimize(path, seconds, "l-bfgs"),
    "DeepXDE NNCG": with_nncg,
}


if __name__ == "__main__":
    print(json.dumps(METHODS[sys.argv[2]](sys.argv[1], float(sys.argv[3]))))
