"""Seconds to a given error on differential equations: GaussNewton untuned beside Adam, L-BFGS and two LM packages.

The packages live in an environment of their own: give its interpreter with --peers (torch-levenberg-marquardt,
optimistix, jax).
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import describe_machine, entry, main
from pinn_problems import PROBLEMS, Problem
from torch import nn
from torch.func import functional_call, vmap

from widefit import GaussNewton, Residual

Curve = list[tuple[float, float]]  # (seconds, error) after every step


def train(problem: Problem, seed: int, make: Callable[[nn.Module], Callable[..., None]], seconds: float) -> Curve:
    """Errors over time of one method; a few steps on a throw-away network come first, so that times are warm."""
    step = make(problem.network(seed))
    for _ in range(2):
        step(*problem.blocks(torch.Generator().manual_seed(0)))
    network = problem.network(seed)
    step = make(network)
    generator = torch.Generator().manual_seed(seed)
    blocks = problem.blocks(generator)
    test = problem.test_points()
    wanted = problem.solution(test)
    curve: Curve = []
    spent = 0.0
    while spent < seconds:
        began = time.perf_counter()
        step(*blocks)
        if problem.resampled:
            blocks = problem.blocks(generator)
        spent += time.perf_counter() - began
        with torch.no_grad():
            curve.append((spent, float((network(test)[:, 0] - wanted).square().mean().sqrt())))
        if curve[-1][1] < problem.goals[-1]:
            break
    return curve


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


def adam(network: nn.Module) -> Callable[..., None]:
    """torch.optim.Adam at the best rate of a sweep (1e-3 … 1e-2, Poisson 2d)."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2.7e-3)

    def step(*blocks: Residual) -> None:
        optimizer.zero_grad()
        total_loss(network, blocks).backward()
        optimizer.step()

    return step


def lbfgs(network: nn.Module) -> Callable[..., None]:
    """torch.optim.LBFGS with strong Wolfe line search and a history of 100."""
    optimizer = torch.optim.LBFGS(
        network.parameters(), history_size=100, max_iter=20, line_search_fn="strong_wolfe", tolerance_change=1e-15
    )

    def step(*blocks: Residual) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = total_loss(network, blocks)
            loss.backward()
            return loss

        optimizer.step(closure)

    return step


METHODS = {"adam": adam, "l-bfgs": lbfgs}


def reached(curve: Curve, goal: float) -> float:
    """Seconds to an error, infinity where it is never reached."""
    return next((seconds for seconds, error in curve if error <= goal), float("inf"))


def peer_curves(python: str, name: str, seconds: float) -> dict[str, Curve]:
    """The curves of the packages in another environment."""
    script = Path(__file__).with_name("gauss_newton_peers.py")
    ran = subprocess.run([python, str(script), name, str(seconds)], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def run(size: str, peers: str = "", problems: str = "", seeds: int = 0) -> dict:
    """Time every method on every problem.

    Parameters
    ----------
    size
        "quick": Poisson 2d and heat 1d, three seeds, widefit alone; "default": ten seeds and the other optimizers;
        "full": 5d and 10d too.
    peers
        Interpreter of the environment with the LM packages; empty: torch's own optimizers only.
    problems
        Comma-separated names instead of those of the size.
    seeds
        Number of seeds; 0: by size.
    """
    names = problems.split(",") if problems else list(PROBLEMS) if size == "full" else ["poisson-2d", "heat-1d"]
    count = seeds or (3 if size == "quick" else 10)
    figures, curves = [], {}
    for name in names:
        problem = PROBLEMS[name]
        repeats = count if problem.seconds < 25 else max(1, count // 3)
        limit = 5.0 if size == "quick" else problem.seconds
        ours = [train(problem, seed, gauss_newton, limit) for seed in range(repeats)]
        theirs = {} if size == "quick" else {m: train(problem, 0, make, limit) for m, make in METHODS.items()}
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
        figures.append(entry(f"{name} error at the end, median", last, "RMS"))
        figures += [
            entry(f"{name} error at the end of {method}", curve[-1][1], "RMS") for method, curve in theirs.items()
        ]
        curves[name] = {"widefit": ours[0]} | theirs
    settings = {"size": size, "dtype": "float64", "seeds": count, "problems": names, "peers": bool(peers)}
    return {"machine": describe_machine(), "settings": settings, "figures": figures, "curves": curves}


def draw(result: dict, path: Path) -> None:
    """Error over time, one panel a problem."""
    import matplotlib.pyplot as plt

    curves = result["curves"]
    figure, panels = plt.subplots(1, len(curves), figsize=(5 * len(curves), 4), squeeze=False)
    for panel, (name, methods) in zip(panels[0], curves.items(), strict=True):
        for method, curve in methods.items():
            panel.loglog([max(seconds, 1e-3) for seconds, _ in curve], [error for _, error in curve], label=method)
        panel.set(title=name, xlabel="seconds", ylabel="RMS error")
        panel.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main("gauss-newton", run, draw)
