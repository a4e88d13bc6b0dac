"""Relative error over time on the equations of `equation_problems.py`, defaults untouched; the clock is the process's.

With `--peers PYTHON` other packages are given the same points, start and processor seconds (`equations_peers.py`).
"""

import json
import math
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equation_problems import EQUATIONS, Equation, Slabs, Truth
from equations_peers import METHODS
from harness import describe_machine, entry, main
from torch import nn

from widefit import GaussNewton, pinn

# (processor seconds, steps, loss, error) over a run.
Curve = list[tuple[float, int, float, float]]
# Problems that other packages are given.
SHARED = ("poisson-2d", "burgers")


def follow(equation: Equation, network: nn.Module, seed: int, seconds: float, truth: Truth) -> Curve:
    """The curve of a network that is trained in `seconds`, about twenty points of it."""
    optimizer = GaussNewton(network)
    blocks: Any = equation.blocks(seed)
    curve, spent, marks = [], 0.0, 0
    while spent < seconds:
        began = time.process_time()
        info = optimizer.step(*blocks)
        if equation.resampled:
            blocks = equation.blocks(10**6 * (seed + 1) + info.step)
        spent += time.process_time() - began
        ended = optimizer.stationary and not equation.resampled
        if spent > seconds * marks / 20 or ended:
            marks = int(20 * spent / seconds) + 1
            curve.append((spent, info.step, info.loss, equation.error(network, truth)))
        if ended:
            break
    return curve


def solve(equation: Equation | Slabs, seed: int, seconds: float, truth: Truth) -> Curve:
    """The curve of a fresh network, or of those of all slabs one after the other; a slab adds one point to it."""
    torch.manual_seed(seed)
    if isinstance(equation, Equation):
        return follow(equation, equation.network(), seed, seconds, truth)
    points, values = truth
    curve, missed, size, last = [(0.0, 0, math.inf, math.inf)], 0.0, 0.0, None
    for start, end in pinn.slabs([-1, 0], [1, 1], equation.count):
        low, high = start[1], end[1]
        part = equation.part(last, low, high)
        network = part.network()
        if last is not None:  # rates change little from one slab to the next
            network.get_submodule("network").load_state_dict(last.get_submodule("network").state_dict())
        here = (points[:, 1] >= low) & (points[:, 1] < high + (high == 1))
        ended = follow(part, network, seed, seconds / equation.count, (points[here], values[here]))[-1]
        own = float(values[here].square().sum())
        missed, size = missed + ended[3] ** 2 * own, size + own
        curve.append((curve[-1][0] + ended[0], curve[-1][1] + ended[1], ended[2], math.sqrt(missed / size)))
        last = network
    return curve


def export(name: str, seed: int, truth: Truth, path: Path) -> None:
    """Write points, start and solution of a problem for packages of another environment."""
    equation = EQUATIONS[name]
    if not isinstance(equation, Equation):
        raise ValueError(f"{name} is solved in slabs: other packages are given one system")
    torch.manual_seed(seed)
    network = equation.network()
    inside, *others = (block.data[0] for block in equation.blocks(seed))
    edge = others[0] if others else torch.zeros(0, 2, dtype=torch.float64)
    weights = {f"weight{i}": p.detach().numpy() for i, p in enumerate(network.parameters())}
    some = slice(None, None, max(1, len(truth[0]) // 10_000))
    places = {"inside": inside, "edge": edge, "test": truth[0][some], "truth": truth[1][some, 0]}
    np.savez(path, kind=name, weights=len(weights), **weights, **{key: part.numpy() for key, part in places.items()})


def peers_beside(
    python: str, name: str, seconds: float, seed: int, truth: Truth, methods: list[str]
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str]]:
    """Curves of the packages that are installed there, and why others have none."""
    script, curves, reasons = Path(__file__).with_name("equations_peers.py"), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        export(name, seed, truth, path)
        for method in methods:
            call = [python, str(script), str(path), method, str(seconds)]
            ran = subprocess.run(call, capture_output=True, text=True)
            if ran.returncode == 0:
                curves[method] = json.loads(ran.stdout.splitlines()[-1])
            else:
                reasons[method] = (ran.stderr.strip().splitlines() or ["it printed nothing"])[-1][:200]
    return curves, reasons


def run(
    size: str, problems: str = "", seconds: float = 0.0, seeds: int = 1, peers: str = "", methods: str = ""
) -> dict:
    """Solve each equation.

    Parameters
    ----------
    size
        "quick": convection and Kovasznay, ten seconds each; "default": all, 60 seconds each; "full": 300.
    problems
        Comma-separated names; empty: by size.
    seconds
        For each; 0: by size.
    seeds
        Runs of each; the median is given.
    peers
        Interpreter of an environment with other packages, which are then given Poisson 2d and Burgers, the first seed,
        for as many processor seconds; empty: none.
    methods
        Comma-separated, of `equations_peers.py`; empty: all.
    """
    names = problems.split(",") if problems else ["convection", "kovasznay"] if size == "quick" else list(EQUATIONS)
    limit = seconds or {"quick": 10.0, "default": 60.0, "full": 300.0}[size]
    chosen = methods.split(",") if methods else list(METHODS)
    figures, curves, skipped, others = [], {}, [], {}
    for name in names:
        truth = EQUATIONS[name].truth()
        runs = [solve(EQUATIONS[name], seed, limit, truth) for seed in range(seeds)]
        curves[name] = runs
        ends = [curve[-1] for curve in runs]
        for place, (what, unit) in enumerate((("processor time", "s"), ("steps", ""), ("loss", ""), ("error", ""))):
            figures.append(entry(f"{name}, {what}", float(statistics.median(end[place] for end in ends)), unit))
        if seeds > 1:
            figures.append(entry(f"{name}, worst error of {seeds} seeds", max(end[3] for end in ends), ""))
        if not peers or name not in SHARED:
            continue
        others[name], reasons = peers_beside(peers, name, limit, 0, truth, chosen)
        for method, curve in others[name].items():
            title = f"{name}, error of {method} after {curve[-1][0]:.0f} s"
            figures.append(entry(title, curve[-1][1], "", "widefit", runs[0][-1][3] / curve[-1][1]))
        skipped += [{"name": f"{name}, {method}", "reason": reason} for method, reason in reasons.items()]
    settings = {"seconds": limit, "seeds": seeds, "problems": names, "dtype": "float64"}
    result = {"machine": describe_machine(), "settings": settings, "figures": figures, "curves": curves}
    return result | {"peers": others, "skipped": skipped}


def draw(result: dict, path: Path) -> None:
    """Error over processor time."""
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(7, 5))
    for name, runs in result["curves"].items():
        panel.loglog([point[0] for point in runs[0]], [point[3] for point in runs[0]], label=name)
    panel.set(xlabel="processor seconds", ylabel="relative error")
    panel.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main("equations", run, draw)
