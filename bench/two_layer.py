"""How training a two-layer network to convergence scales with its width, against plain dense torch."""

import json
import math
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from harness import describe_machine, entry, main, peak_memory_gb
from torch import Tensor
from two_layer_first_order import FIRST_ORDER, first_order
from two_layer_peers import Timed, gauss_newton
from two_layer_problems import Problem, digits_parity
from two_layer_runs import Fit, accuracy, dense_network, fit

from widefit.kernels.memory import available_memory
from widefit.nn import TwoLayer
from widefit.trackers import Certificate

WIDTHS = {"quick": (12, 14, 16), "default": tuple(range(12, 21)), "full": tuple(range(12, 23))}
FIRST_ORDER_WIDTHS = {"quick": (14,), "default": (14, 16, 18, 20), "full": tuple(range(14, 21))}
REPEATS = {"quick": 3, "default": 5, "full": 5}
# Seconds for one run of one contestant; what is longer is extrapolated from the steps that were taken.
LIMITS = {"quick": 2.0, "default": 120.0, "full": 600.0}
TOLERANCE = 1e-10
MAX_STEPS = 20
# Steps of the runs that tell what a step on certificates takes, and how many runs.
FOLLOWED, FOLLOWED_RUNS = 5, 3
# Rows of W a product at a time: the fastest of 256, 1024 and all of them on the machine this was written on.
GEMM_ROWS = 1024


def run(
    size: str,
    rules: str = "gauss-newton,gradient-descent,sgd",
    tracker: str = "auto",
    limit: float = 0.0,
    exponents: str = "",
    device: str = "auto",
) -> dict:
    """Digits parity, n = 1000, d = 64, float32: Gauss-Newton to loss 1e-10, and 10,000 first-order steps.

    Parameters
    ----------
    size
        Which widths.
    rules
        Comma-separated: which of the sections.
    tracker
        widefit's tracker, by name.
    limit
        Seconds for one run of one contestant; 0: by size.
    exponents
        Comma-separated: log₂ of the widths, instead of those of the size.
    device
        Where widefit trains by Gauss-Newton, in memory that is not the processor's; all else is on the CPU.
    """
    problem, limit = digits_parity(), limit or LIMITS[size]
    result = {
        "machine": describe_machine(),
        "settings": {
            "samples": 1000, "features": 64, "dtype": "float32", "size": size, "tracker": tracker, "limit": limit,
            "device": device,
            "tolerance": TOLERANCE,
            "peer": "torch: blocked passes, SᵀS by float32 GEMM over the lower triangle, float64 Cholesky",
        },
        "figures": [], "skipped": [], "curves": {}, "records": [],
    }  # fmt: skip
    chosen = rules.split(",")
    unknown = set(chosen) - {"gauss-newton", *FIRST_ORDER}
    if unknown:
        raise ValueError(f"rules: {', '.join(sorted(unknown))} is not measured here")
    asked = tuple(map(int, exponents.split(","))) if exponents else ()
    if "gauss-newton" in chosen:
        _second_order(result, problem, asked or WIDTHS[size], REPEATS[size], tracker, limit, device)
    for rule in FIRST_ORDER:
        if rule in chosen:
            first_order(result, problem, rule, asked or FIRST_ORDER_WIDTHS[size], tracker, limit)
    return result


def _second_order(
    result: dict, problem: Problem, widths: tuple[int, ...], repeats: int, tracker: str, limit: float, device: str
) -> None:
    """The Gauss-Newton section, into `result`."""
    first = TwoLayer(64, 1 << 12)
    cold = fit(first, problem, tracker=tracker, tol=TOLERANCE, max_iter=MAX_STEPS, device=device).seconds
    result["figures"].append(entry("first fit of the process (kernels compiled or loaded), m = 2^12", cold, "s"))
    curves = result["curves"].setdefault("gauss-newton", {})
    losing = []
    for exponent in widths:
        figures, points, record = _width(problem, exponent, tracker, repeats, limit, device)
        result["figures"] += figures
        result["records"].append(record)
        for label, seconds in points.items():
            curves.setdefault(label, []).append([1 << exponent, seconds])
        if points["dense torch fit"] < points["fit"]:
            losing.append(f"2^{exponent}")
    for label, points in curves.items():
        if len(points) > 1:
            title = f"growth of {label}: exponent of m, 2^{int(math.log2(points[0][0]))} and wider"
            result["figures"].append(entry(title, slope(points), "log-log slope"))
    title = f"widths where dense torch is faster: {', '.join(losing) or 'none'}"
    result["figures"].append(entry(title, len(losing), f"of {len(widths)}"))


def _width(
    problem: Problem, exponent: int, tracker: str, repeats: int, limit: float, device: str
) -> tuple[list[dict], dict[str, float], dict]:
    """Figures, points of the curves and the record of one width."""
    network = TwoLayer(problem.inputs.shape[1], 1 << exponent)
    start = network.weight.detach().clone()
    inputs, targets = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)
    ours: list[Fit] = []
    theirs: list[Timed] = []

    def train() -> None:
        with torch.no_grad():
            network.weight.copy_(start)
        ours.append(fit(network, problem, tracker=tracker, tol=TOLERANCE, max_iter=MAX_STEPS, device=device))

    def train_dense() -> None:
        taken = dense_network(network, start[: 1 << held])
        theirs.append(gauss_newton(taken, inputs, targets, tol=TOLERANCE, max_iter=MAX_STEPS, limit=limit))

    held = largest_dense(exponent, *problem.inputs.shape)
    begun = time.perf_counter()
    for repeat in range(repeats):
        for contestant in (train, train_dense) if repeat % 2 == 0 else (train_dense, train):
            contestant()
        if time.perf_counter() - begun > limit:
            break
    product = bare_product(start, inputs)
    right, memory = accuracy(network, problem), _peak_memory(exponent, tracker)
    followed = _followed(network, start, problem) if network.weight.device.type == "cpu" else {}
    return _figures(exponent, ours, theirs, held, product, right, memory, followed)


def _followed(network: TwoLayer, start: Tensor, problem: Problem) -> dict[str, tuple[float, int | None]]:
    """Seconds and flips of the steps on certificates, each by its number: later ones flip fewer pairs, at any width."""
    runs, flips = [], []
    for _ in range(FOLLOWED_RUNS):
        with torch.no_grad():
            network.weight.copy_(start)
        # The first step is a pass, at any width.
        steps = fit(network, problem, tracker=Certificate(first=0.0), tol=0.0, max_iter=FOLLOWED).steps
        runs.append([after.seconds - before.seconds for before, after in pairwise(steps)][1:])
        flips = [info.flips for info in steps[2:]]
    return {
        f"step {number} on certificates": (statistics.median(seconds), flipped)
        for number, (flipped, *seconds) in enumerate(zip(flips, *runs, strict=True), 2)
    }


def _figures(
    exponent: int,
    ours: list[Fit],
    theirs: list[Timed],
    held: int,
    product: float,
    right: float,
    memory: float,
    followed: dict[str, tuple[float, int | None]],
) -> tuple[list[dict], dict[str, float], dict]:
    m = f"m = 2^{exponent}"
    seconds = statistics.median(run.seconds for run in ours)
    steps = len(ours[0].steps) - 1
    dense, how = dense_seconds(theirs, steps, 2.0 ** (exponent - held))
    figures = [
        entry(f"fit, {m}", seconds, "s", "dense torch", dense / seconds),
        entry(f"dense torch fit, {m}{how}", dense, "s"),
        entry(f"bare product W Xᵀ, {m}", product, "s"),
        entry(f"fit in bare products, {m}", seconds / product, "products"),
    ]
    points = {"fit": seconds, "dense torch fit": dense, "bare product": product}
    points |= {title: spent for title, (spent, _) in followed.items()}
    figures += [
        *(entry(f"{title}, {flips:,} pairs flip, {m}", spent, "s") for title, (spent, flips) in followed.items()),
        entry(f"steps, {m}", steps, f"of which {sum(info.rebased for info in ours[0].steps)} full passes"),
        entry(f"loss reached, {m}", ours[0].loss, "mean squared residual"),
        entry(
            f"loss of dense torch after {len(theirs[0].steps)} steps, {m}",
            theirs[0].losses[-1],
            "mean squared residual",
        ),
        entry(f"test accuracy, {m}", right, "of the other 797 digits"),
        entry(f"peak memory of a process that trains, {m}", memory, "GB"),
    ]
    record = {
        "m": 1 << exponent, "seconds": [run.seconds for run in ours], "losses": [info.loss for info in ours[0].steps],
        "flips": [info.flips for info in ours[0].steps], "rebased": [info.rebased for info in ours[0].steps],
        "dense": [{"start": run.start, "steps": run.steps, "losses": run.losses} for run in theirs],
        "dense_width": 1 << held, "plan": ours[0].plan.to_dict(), "report": ours[0].report.__dict__,
    }  # fmt: skip
    return figures, points, record


def dense_seconds(runs: list[Timed], steps: int, scale: float) -> tuple[float, str]:
    """Median time of the dense fit, and in words how it was obtained.

    Runs that the limit ended are extended to `steps` steps by their mean step; runs on a part of the network are
    multiplied by `scale`, but for what does not depend on the width.
    """
    totals, how = [], ""
    for run in runs:
        taken, solves = len(run.steps), sum(run.solves)
        cut = taken < steps and run.losses[-1] > TOLERANCE
        longer = steps / taken if cut else 1.0
        totals.append(scale * (run.start + longer * (sum(run.steps) - solves)) + longer * solves)
        if cut:
            how = f" (extrapolated from {taken} of {steps} steps)"
    if scale > 1:
        how = f" (extrapolated from {1 / scale:.3g} of the neurons)"
    return statistics.median(totals), how


def largest_dense(exponent: int, samples: int, features: int) -> int:
    """Exponent of the widest network, at most this one, of which the dense peer fits into half of the memory."""
    while exponent > 12 and (1 << exponent) * (2 * samples + 8 * features) > available_memory() / 2:
        exponent -= 1
    return exponent


def bare_product(weight: Tensor, inputs: Tensor) -> float:
    """Seconds of W Xᵀ in cache-sized blocks that are thrown away: the median of 5, after one that is not counted."""
    out = torch.empty(GEMM_ROWS, inputs.shape[0])
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        for first in range(0, weight.shape[0], GEMM_ROWS):
            torch.mm(weight[first : first + GEMM_ROWS], inputs.T, out=out)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def slope(points: list[list[float]]) -> float:
    """Exponent of the power law nearest to (m, seconds) in logarithms."""
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def _peak_memory(exponent: int, tracker: str) -> float:
    """Peak memory of a fit in a process of its own, since the peak of a process never falls."""
    command = [sys.executable, __file__, "--one", str(exponent), tracker]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def draw(result: dict, path: Path) -> None:
    """Time over width on logarithmic axes, the slopes in the legend: fits on the left, first-order steps beside."""
    import matplotlib.pyplot as plt

    panels = {
        "Gauss-Newton to loss 1e-10": ["gauss-newton"],
        "first-order steps": [rule for rule in FIRST_ORDER if rule in result["curves"]],
    }
    panels = {title: keys for title, keys in panels.items() if any(key in result["curves"] for key in keys)}
    figure, row = plt.subplots(1, len(panels), figsize=(6.5 * len(panels), 4.5), layout="constrained", squeeze=False)
    for axes, (title, keys) in zip(row[0], panels.items(), strict=True):
        for key in keys:
            for label, points in result["curves"][key].items():
                shown = label if len(keys) == 1 else f"{key}, {label}"
                shown += f": $m^{{{slope(points):.2f}}}$" if len(points) > 1 else ""
                axes.loglog(*zip(*points, strict=True), "o--" if "dense" in label else "o-", label=shown)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="width m", ylabel="seconds", title=title)
        # Below, where no curve is.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize="small")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--one":
        one = TwoLayer(64, 1 << int(sys.argv[2]))
        fit(one, digits_parity(), tracker=sys.argv[3], tol=TOLERANCE, max_iter=MAX_STEPS)
        print(json.dumps(peak_memory_gb()))
    else:
        main("two-layer", run, draw)
