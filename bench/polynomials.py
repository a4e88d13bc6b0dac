"""SGD on polynomials of known norm M: steps to an error ε and the width it needs, against M / ε and the theorem."""

import itertools
import math
import statistics
from pathlib import Path

import numpy as np
import torch
from harness import describe_machine, entry, main

from widefit.nn import TwoLayer
from widefit.trackers import Minibatches
from widefit.trackers.descent import Layer, descend

FEATURES, DEGREE = 3, 3
TEST_POINTS = 2000
# Errors are looked at after so many steps: four times per doubling.
FIRST, PER_DOUBLING = 16, 4
# What a network may take, in units of what the widest one takes to the same error.
PATIENCE = 4
# Exponents of M / ε that the theorem allows to steps and to width.
ALLOWED = 2.0


def run(size: str, seeds: int = 3) -> dict:
    """Samples uniform on the sphere, each seen once, batches of one, squared loss; ε is the RMS error on 2000 others.

    Parameters
    ----------
    size
        How many widths, norms and steps.
    seeds
        Polynomials and networks to take the median over; one with "quick".
    """
    widths, norms, steps = {
        "quick": ((6, 8, 10), (1.0, 4.0), 1 << 11),
        "default": (tuple(range(4, 15)), (1.0, 2.0, 4.0, 8.0), 1 << 15),
        "full": (tuple(range(4, 17)), (1.0, 2.0, 4.0, 8.0, 16.0), 1 << 17),
    }[size]
    seeds = 1 if size == "quick" else seeds
    times = looks(steps)
    curves = {
        (width, norm, seed): _errors(1 << width, norm, seed, times)
        for width in widths
        for norm in norms
        for seed in range(seeds)
    }
    targets = [(norm, norm / ratio) for norm in norms for ratio in 2.0 ** np.arange(1, 9)]
    needed = [_needed(curves, widths, times, norm, error, seeds) for norm, error in targets]
    reached = [line for line in needed if line["steps"] is not None]
    settings = {
        "size": size, "features": FEATURES, "degree": DEGREE, "widths": [1 << width for width in widths],
        "norms": norms, "steps": steps, "seeds": seeds, "batch_size": 1, "dtype": "float32",
    }  # fmt: skip
    return {
        "machine": describe_machine(), "settings": settings, "figures": _figures(reached, 1 << widths[-1]),
        "skipped": [
            {"name": f"M = {line['norm']:g}, error {line['error']:.2g}", "reason": f"not reached in {steps:,} steps"}
            for line in needed if line["steps"] is None
        ],
        "records": reached,
        "curves": [
            {"width": 1 << width, "norm": norm, "seed": seed, "steps": times, "errors": errors}
            for (width, norm, seed), errors in curves.items()
        ],
    }  # fmt: skip


def looks(steps: int) -> list[int]:
    """When the error is looked at."""
    count = int(PER_DOUBLING * math.log2(steps / FIRST)) + 1
    return sorted({round(FIRST * 2 ** (number / PER_DOUBLING)) for number in range(count)})


class Polynomial:
    """p(x) = Σ_α c_α x^α over |α| ≤ degree, ‖c‖ = M: random coefficients, scaled."""

    def __init__(self, features: int, degree: int, norm: float, generator: np.random.Generator):
        powers = itertools.product(range(degree + 1), repeat=features)
        self.powers = np.array([power for power in powers if sum(power) <= degree])
        coefficients = generator.standard_normal(len(self.powers))
        self.coefficients = norm * coefficients / np.linalg.norm(coefficients)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.prod(x[:, None, :] ** self.powers, axis=2) @ self.coefficients


def _errors(width: int, norm: float, seed: int, times: list[int]) -> list[float]:
    """RMS error on unseen points after so many steps of one sample each."""
    generator = np.random.default_rng(seed)
    target = Polynomial(FEATURES, DEGREE, norm, generator)
    network = TwoLayer(FEATURES, width, paired=True, seed=seed)
    weight = network.weight.detach().numpy()
    layer = Layer(weight, None, network.coefficients(), weight.dtype.type(network.threshold), np.zeros(1), [(0, width)])
    unseen = _sphere(TEST_POINTS, generator)
    wanted = target(unseen)
    # ‖J‖² at a point is what fires there over m; a longer step than its inverse overshoots on the sample itself.
    fired = (weight @ unseen.T > network.threshold).sum(0)
    rate = width / max(1, int(fired.max()))
    errors, done = [], 0
    for time in times:
        x = _sphere(time - done, generator)
        order = np.arange(len(x))
        batches = Minibatches(
            order, np.arange(len(x) + 1), np.full(len(x), rate), target(x)[:, None], np.ones(len(x))
        )  # fmt: skip
        descend(layer, x.astype(np.float32), batches, threads=1)
        with torch.no_grad():
            found = network(torch.from_numpy(unseen.astype(np.float32)))[:, 0].numpy()
        errors.append(float(np.sqrt(np.mean((found - wanted) ** 2))))
        done = time
    return errors


def _sphere(count: int, generator: np.random.Generator) -> np.ndarray:
    rows = generator.standard_normal((count, FEATURES))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _needed(curves: dict, widths: tuple[int, ...], times: list[int], norm: float, error: float, seeds: int) -> dict:
    """Steps of the widest network to an error, and the narrowest that gets there in `PATIENCE` times as many."""

    def steps_of(width: int) -> float:
        found = [zip(times, curves[width, norm, seed], strict=True) for seed in range(seeds)]
        return statistics.median(next((time for time, left in curve if left <= error), math.inf) for curve in found)

    steps = steps_of(widths[-1])
    narrow = next((width for width in widths if steps_of(width) <= PATIENCE * steps), None)
    known = math.isfinite(steps)
    return {
        "norm": norm, "error": error, "ratio": norm / error,
        "steps": steps if known else None, "width": 1 << narrow if known and narrow is not None else None,
    }  # fmt: skip


def _figures(reached: list[dict], widest: int) -> list[dict]:
    figures = []
    for line in reached:
        name = f"M = {line['norm']:g}, error {line['error']:.2g}"
        figures.append(entry(f"{name}, steps at m = {widest:,}", line["steps"], "samples"))
        figures.append(entry(f"{name}, narrowest network", line["width"], "neurons"))
    for what in ("steps", "width"):
        figures += _slopes(reached, what)
    return figures


def _slopes(lines: list[dict], what: str) -> list[dict]:
    """The exponent in M / ε over all points, at one M and at one ε, and the largest constant."""
    # The first steps, and the narrowest network tried, are no measurement.
    least = min((line[what] for line in lines), default=0)
    found = [line for line in lines if line[what] > least]
    figures = []
    fits = [("all points", found)]
    for axis, symbol in (("norm", "M"), ("error", "ε")):
        values = sorted({line[axis] for line in found})
        fits += [(f"{symbol} = {value:.3g}", [line for line in found if line[axis] == value]) for value in values]
    for name, points in fits:
        if len({point["ratio"] for point in points}) >= 3:
            logs = np.log([[point["ratio"], point[what]] for point in points])
            slope = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
            figures.append(entry(f"exponent of {what} in M / ε, {name}", slope, f"(the theorem allows {ALLOWED:g})"))
    if found:
        constant = max(line[what] / line["ratio"] ** ALLOWED for line in found)
        figures.append(entry(f"largest {what} / (M / ε)²", constant, ""))
    return figures


def draw(result: dict, path: Path) -> None:
    """Steps and width against M / ε, with the slope of the theorem; error curves of the widest network."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    lines = result["records"]
    for axes, what in ((left, "steps"), (middle, "width")):
        for norm in sorted({line["norm"] for line in lines}):
            own = [line for line in lines if line["norm"] == norm]
            axes.plot([line["ratio"] for line in own], [line[what] for line in own], "o-", label=f"M = {norm:g}")
        if lines:
            ratios = np.array(sorted({line["ratio"] for line in lines}))
            top = max(line[what] / line["ratio"] ** 2 for line in lines)
            axes.plot(ratios, top * ratios**2, "k--", label="(M / ε)²")
        axes.set(xscale="log", yscale="log", xlabel="M / ε", ylabel=what)
        axes.legend(fontsize="small")
    widest = max(curve["width"] for curve in result["curves"])
    for curve in result["curves"]:
        if curve["width"] == widest and curve["seed"] == 0:
            right.plot(curve["steps"], curve["errors"], label=f"M = {curve['norm']:g}")
    right.set(xscale="log", yscale="log", xlabel="steps", ylabel="RMS error", title=f"m = {widest:,}")
    right.legend(fontsize="small")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main("polynomials", run, draw)
