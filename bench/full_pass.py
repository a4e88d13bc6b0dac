"""A full pass of the dense tracker, co-firing counts included, against the bare product W Xᵀ."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import describe_machine, entry, main
from sklearn.datasets import load_digits

from widefit.gram import CurrentGrams, co_firing
from widefit.nn import TwoLayer
from widefit.trackers import Dense, Update

SIZES = {"quick": (14, 16), "default": (14, 16, 18), "full": (14, 16, 18, 20)}
REPEATS = 7
# Rows of W a product at a time: the fastest of 256, 1024 and all of them on the machine this was written on.
GEMM_ROWS = 1024


def run(size: str) -> dict:
    """Digits, n = 1000, d = 64, float32; the order of the contestants alternates, medians are reported."""
    rows = load_digits().data[:1000]
    rows = rows - rows.mean(0)
    inputs = np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
    figures = []
    for exponent in SIZES[size]:
        network = TwoLayer(inputs.shape[1], 1 << exponent)
        product, pass_alone, with_counts = _times(network, inputs)
        name = f"m = 2^{exponent}, b = {network.threshold:.2f}"
        figures += [
            entry(f"bare product, {name}", product, "s"),
            entry(f"pass, {name}", pass_alone, "s", "bare product", product / pass_alone),
            entry(f"pass and co-firing counts, {name}", with_counts, "s", "bare product", product / with_counts),
        ]
    settings = {"samples": 1000, "features": 64, "dtype": "float32", "repeats": REPEATS, "size": size}
    return {"machine": describe_machine(), "settings": settings, "figures": figures}


def _times(network: TwoLayer, inputs: np.ndarray) -> tuple[float, float, float]:
    threads = torch.get_num_threads()
    weight, x = network.weight.detach(), torch.from_numpy(inputs)
    out = torch.empty(GEMM_ROWS, inputs.shape[0])
    tracking = Dense().start(network, inputs, threads=threads)
    similarity = inputs.astype(np.float64) @ inputs.astype(np.float64).T
    generator = np.random.default_rng(0)
    update = Update(generator.standard_normal((inputs.shape[0], 1)), np.zeros(1))
    coefficients = network.coefficients()

    def product() -> None:
        for first in range(0, weight.shape[0], GEMM_ROWS):
            torch.mm(weight[first : first + GEMM_ROWS], x.T, out=out)

    def trial() -> None:
        tracking.propose(update, grams)

    def counts() -> None:
        co_firing(tracking.patterns(), similarity, coefficients, threads)

    grams = CurrentGrams(tracking, similarity, network.coefficients, held=1, threads=threads)
    contestants = [product, trial, counts]
    for contestant in contestants:
        contestant()
    times: dict[Callable, list[float]] = {contestant: [] for contestant in contestants}
    for repeat in range(REPEATS):
        for contestant in contestants if repeat % 2 else reversed(contestants):
            begun = time.perf_counter()
            contestant()
            times[contestant].append(time.perf_counter() - begun)
    middle = {contestant: statistics.median(times[contestant]) for contestant in contestants}
    return middle[product], middle[trial], middle[trial] + middle[counts]


def draw(result: dict, path: Path) -> None:
    """Time over width on logarithmic axes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for label in ("bare product", "pass", "pass and co-firing counts"):
        lines = [line for line in result["figures"] if line["name"].startswith(f"{label}, ")]
        widths = [2 ** int(line["name"].split("2^")[1].split(",")[0]) for line in lines]
        axes.loglog(widths, [line["value"] for line in lines], "o-", label=label)
    axes.set(xlabel="width m", ylabel="seconds", title="A full pass against the bare product W Xᵀ")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main("full-pass", run, draw)
