"""Seconds to a given error on differential equations: GaussNewton untuned beside Adam, L-BFGS and two LM packages.

Adam's learning rate and the history of L-BFGS are tuned in the same run: every value of a small grid gets a fifth of
the time on the first seed, and the one with the least error the whole of it. L-BFGS is left out where every step
draws new points.

The packages live in an environment of their own: give its interpreter with --peers (torch-levenberg-marquardt,
optimistix, jax).
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from drawing import drawn
from harness import describe_machine, entry, main
from pinn_problems import PROBLEMS, Problem
from torch import nn
from torch.func import functional_call, vmap

from widefit import GaussNewton, Residual

Curve = list[tuple[float, float]]  # (seconds, error) after every step
LABELS = {"widefit": "widefit, defaults", "adam": "Adam, tuned", "l-bfgs": "L-BFGS, tuned"}
TITLES = {"poisson-2d": "Poisson's equation on the square, 257 parameters"}


def train(
    problem: Problem,
    seed: int,
    make: Callable[[nn.Module], Callable[..., None]],
    seconds: float,
    now: Callable[[], float],
    device: str = "cpu",
) -> Curve:
    """Errors over time of one method; a few steps on a throw-away network come first, so that times are warm."""
    step = make(problem.network(seed).to(device))
    for _ in range(2):
        step(*moved(problem.blocks(torch.Generator().manual_seed(0)), device))
    network = problem.network(seed).to(device)
    step = make(network)
    generator = torch.Generator().manual_seed(seed)
    blocks = moved(problem.blocks(generator), device)
    test = problem.test_points().to(device)
    curve: Curve = []
    spent = 0.0
    while spent < seconds:
        began = now()
        step(*blocks)
        if problem.resampled:
            blocks = moved(problem.blocks(generator), device)
        spent += now() - began
        curve.append((spent, problem.error(network, test)))
        if curve[-1][1] < problem.goals[-1]:
            break
    return curve


def moved(blocks: tuple[Residual, ...], device: str) -> tuple[Residual, ...]:
    """Blocks with their points on a device."""
    if device == "cpu":
        return blocks
    return tuple(Residual(one.function, *(part.to(device) for part in one.data), weight=one.weight) for one in blocks)


def gauss_newton(network: nn.Module) -> Callable[..., None]:
    """The optimizer with its defaults."""
    optimizer = GaussNewton(network)
    return lambda *blocks: (optimizer.step(*blocks), None)[1]


def total_loss(network: nn.Module, blocks: tuple[Residual, ...]) -> torch.Tensor:
    """Σ ½ mean(residual²), differentiable."""
    parameters = dict(network.named_parameters())

    class Bound(nn.Module):
        def __init__(self, function: Callable[..., torch.Tensor]):
            super().__init__()
            self.network, self.function = network, function

        def forward(self, *sample: torch.Tensor) -> torch.Tensor:
            return self.function(self.network, *sample)

    total = torch.zeros((), dtype=torch.float64)
    for block in blocks:
        bound = Bound(block.function)
        named = {f"network.{name}": parameter for name, parameter in parameters.items()}
        values = vmap(lambda *sample, bound=bound, named=named: functional_call(bound, named, sample))(*block.data)
        total = total + 0.5 * values.square().mean()
    return total


def adam(lr: float) -> Callable[[nn.Module], Callable[..., None]]:
    """torch.optim.Adam."""

    def make(network: nn.Module) -> Callable[..., None]:
        optimizer = torch.optim.Adam(network.parameters(), lr=lr)

        def step(*blocks: Residual) -> None:
            optimizer.zero_grad()
            total_loss(network, blocks).backward()
            optimizer.step()

        return step

    return make


def lbfgs(history: int) -> Callable[[nn.Module], Callable[..., None]]:
    """torch.optim.LBFGS with strong Wolfe line search."""

    def make(network: nn.Module) -> Callable[..., None]:
        optimizer = torch.optim.LBFGS(
            network.parameters(), history_size=history, line_search_fn="strong_wolfe", tolerance_change=1e-15
        )

        def step(*blocks: Residual) -> None:
            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = total_loss(network, blocks)
                loss.backward()
                return loss

            optimizer.step(closure)

        return step

    return make


GRIDS = {"adam": (adam, (1e-3, 3e-3, 1e-2)), "l-bfgs": (lbfgs, (20, 100))}


def tuned(problem: Problem, method: str, seconds: float, now: Callable[[], float], device: str) -> tuple[float, Curve]:
    """The best value of a method's grid and its curve."""
    make, grid = GRIDS[method]
    short = {value: train(problem, 0, make(value), seconds / 5, now, device) for value in grid}
    best = min(grid, key=lambda value: min((error for _, error in short[value]), default=float("inf")))
    return best, train(problem, 0, make(best), seconds, now, device)


def reached(curve: Curve, goal: float) -> float:
    """Seconds to an error, infinity where it is never reached."""
    return next((seconds for seconds, error in curve if error <= goal), float("inf"))


def peer_curves(python: str, name: str, seconds: float) -> dict[str, Curve]:
    """The curves of the packages in another environment."""
    script = Path(__file__).with_name("gauss_newton_peers.py")
    ran = subprocess.run([python, str(script), name, str(seconds)], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def run(
    size: str,
    peers: str = "",
    problems: str = "",
    seeds: int = 0,
    seconds: float = 0.0,
    clock: str = "wall",
    device: str = "cpu",
) -> dict:
    """Time every method on every problem.

    Parameters
    ----------
    size
        "quick": Poisson 2d, heat 1d and the conductivity, three seeds, five seconds each, widefit alone; "default": ten
        seeds and the other optimizers; "full": 5d (one seed) and 10d (three) too.
    peers
        Interpreter of the environment with the LM packages; empty: torch's own optimizers only.
    problems
        Comma-separated names instead of those of the size: poisson-2d, heat-1d, conductivity, poisson-5d, poisson-10d.
    seeds
        Number of seeds; 0: by size and problem.
    seconds
        Given to every method on every problem; 0: by problem.
    clock
        "wall", or "cpu": the processor time of this process, which other work on the machine does not lengthen.
    device
        Of torch, for all but the packages of another environment. Points are drawn on the CPU.
    """
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    names = (
        problems.split(",")
        if problems
        else list(PROBLEMS)
        if size == "full"
        else ["poisson-2d", "heat-1d", "conductivity"]
    )
    count = seeds or (3 if size == "quick" else 10)
    figures, curves, skipped = [], {}, []
    settings = {"size": size, "dtype": "float64", "seeds": count, "problems": names, "peers": bool(peers)}
    settings |= {"clock": clock, "device": device}
    for name in names:
        problem = PROBLEMS[name]
        repeats = seeds or (count if problem.seconds < 25 else 3 if problem.seconds < 60 else 1)
        limit = seconds or (min(5.0, problem.seconds) if size == "quick" else problem.seconds)
        ours = [train(problem, seed, gauss_newton, limit, now, device) for seed in range(repeats)]
        theirs: dict[str, Curve] = {}
        for method in () if size == "quick" else GRIDS:
            if method == "l-bfgs" and problem.resampled:
                skipped.append({"name": f"{name}, l-bfgs", "reason": "it needs the same points in every step"})
                continue
            settings[f"{method} on {name}"], theirs[method] = tuned(problem, method, limit, now, device)
        if peers and name == "poisson-2d":
            theirs |= peer_curves(peers, name, 4 * limit)
        for goal in problem.goals:
            times = [reached(curve, goal) for curve in ours]
            value = statistics.median(times)
            figures.append(entry(f"{name} to {goal:.0e}, median of {repeats} seeds", value, "s"))
            figures.append(entry(f"{name} to {goal:.0e}, slowest of {repeats} seeds", max(times), "s"))
            figures += [
                entry(f"{name} to {goal:.0e}", value, "s", method, reached(curve, goal) / value)
                for method, curve in theirs.items()
            ]
        last = statistics.median(curve[-1][1] for curve in ours)
        figures.append(entry(f"{name} error at the end, median", last, ""))
        figures += [entry(f"{name} error at the end of {method}", curve[-1][1], "") for method, curve in theirs.items()]
        curves[name] = {method: thinned(curve) for method, curve in ({"widefit": ours[0]} | theirs).items()}
    result = {"machine": describe_machine(), "settings": settings, "figures": figures, "skipped": skipped}
    return result | {"curves": curves}


def draw(result: dict, path: Path) -> None:
    """Error over time, one panel a problem; widefit's line is the thick one."""
    curves = result["curves"]
    time_of = {"wall": "seconds", "cpu": "seconds of processor time"}[result["settings"]["clock"]]
    with drawn(path, len(curves), (1.6 + 4.8 * len(curves), 3.4)) as panels:
        for panel, (name, methods) in zip(np.atleast_2d(panels)[0], curves.items(), strict=True):
            for method, curve in methods.items():
                times, errors = zip(*curve, strict=True)
                width = 2.5 if method == "widefit" else 1.3
                (line,) = panel.loglog(times, errors, label=LABELS.get(method, method), linewidth=width)
                panel.plot(times[-1:], errors[-1:], "o", color=line.get_color(), markersize=4)
            panel.set(title=TITLES.get(name, name), xlabel=time_of, ylabel="RMS error")
            panel.legend()


def thinned(curve: Curve, count: int = 120) -> Curve:
    """Points of a curve that lie apart on a logarithmic axis of time, the first and the last among them."""
    if len(curve) <= count:
        return curve
    times = np.array([seconds for seconds, _ in curve])
    kept = np.unique(np.searchsorted(times, np.geomspace(times[0], times[-1], count)))
    return [(float(f"{curve[i][0]:.4g}"), float(f"{curve[i][1]:.4g}")) for i in kept]


if __name__ == "__main__":
    main("gauss-newton", run, draw)
