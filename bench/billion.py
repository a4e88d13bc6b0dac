"""A billion neurons whose weights are never stored, trained to convergence, beside dense by extrapolation."""

import statistics
import sys
from pathlib import Path

import torch
from harness import describe_machine, entry, main, peak_memory_gb
from two_layer_peers import DenseNetwork, gauss_newton
from two_layer_problems import Problem, digits_parity
from two_layer_runs import accuracy, fit

from widefit.nn import TwoLayer

EXPONENTS = {"quick": 22, "default": 30, "full": 30}
TOLERANCE, MAX_STEPS = 1e-10, 20
# Neurons of the dense block that is timed, and how often.
BLOCK, REPEATS = 1 << 16, 3
# A prediction is a pass over all neurons, one more than training may need: only narrower networks are tested.
WIDEST_TESTED = 24


def run(
    size: str, exponent: int = 0, samples: int = 1000, tracker: str = "certificate", store: str = "regenerate"
) -> dict:
    """Digits parity, d = 64, float32, Gauss-Newton to loss 1e-10; a line to standard error after every step.

    Parameters
    ----------
    size
        m = 2^22 for "quick", 2^30 otherwise.
    exponent
        log₂ m instead; 0: by size.
    samples
        n.
    tracker
        By name.
    store
        Where the network has its weights, see `widefit.nn.TwoLayer`; "": in memory.
    """
    exponent = exponent or EXPONENTS[size]
    problem = digits_parity(samples)
    stored = {"store": store} if store else {}
    cold = fit(TwoLayer(64, 1 << 12, **stored), problem, tracker=tracker, max_iter=MAX_STEPS).seconds
    before = peak_memory_gb()
    network = TwoLayer(64, 1 << exponent, **stored)
    say(f"m = 2^{exponent} = {network.width:,}, b = {network.threshold:.3f}, n = {samples}, d = 64")
    found = fit(network, problem, tracker=tracker, max_iter=MAX_STEPS, tol=TOLERANCE, progress=True)
    peak = peak_memory_gb()
    steps = len(found.steps) - 1
    m = f"m = 2^{exponent}"
    figures = [
        entry("first fit of the process (kernels compiled or loaded), m = 2^12", cold, "s"),
        *(entry(f"loss after step {info.step}, {m}", info.loss, "mean squared residual") for info in found.steps),
        *(entry(f"seconds to the end of step {info.step}, {m}", info.seconds, "s") for info in found.steps),
        entry(f"steps, {m}", steps, f"of which {sum(info.rebased for info in found.steps)} full passes"),
    ]
    if exponent <= WIDEST_TESTED and len(problem.test_inputs):
        figures.append(entry(f"test accuracy, {m}", accuracy(network, problem), "of the other digits"))
    threshold = network.threshold
    del network
    say(f"timing dense torch on {BLOCK:,} neurons")
    dense = _dense_seconds(problem, threshold, exponent, steps)
    weights = 4 * problem.inputs.shape[1] * 2.0**exponent / 1e9
    how = f"dense torch (extrapolated from {BLOCK:,} neurons, {steps} steps)"
    figures += [
        entry(f"fit, {m}", found.seconds, "s", how, dense / found.seconds),
        entry(f"{how}, {m}", dense, "s"),
        entry(f"peak memory, {m}", peak, "GB", "the weights alone", weights / peak),
        entry(f"of which before training, {m}", before, "GB"),
        entry(f"tracker's own state, {m}", found.report.bytes_held / 1e9, "GB"),
    ]
    settings = {
        "samples": samples, "features": 64, "dtype": "float32", "width": 1 << exponent, "tracker": tracker,
        "store": store, "tolerance": TOLERANCE, "size": size,
    }  # fmt: skip
    record = {
        "steps": [info.__dict__ for info in found.steps],
        "plan": found.plan.to_dict(),
        "report": found.report.__dict__,
    }
    return {"machine": describe_machine(), "settings": settings, "figures": figures, "records": [record]}


def _dense_seconds(problem: Problem, threshold: float, exponent: int, steps: int) -> float:
    """A dense fit of so many steps: one step of a block of neurons, what depends on the width multiplied by it."""
    inputs, targets = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)
    scale = 2.0**exponent / BLOCK
    totals = []
    for seed in range(REPEATS):
        block = TwoLayer(inputs.shape[1], BLOCK, threshold=threshold, seed=seed)
        dense = DenseNetwork(block.weight.detach(), torch.from_numpy(block.coefficients()).float(), threshold)
        timed = gauss_newton(dense, inputs, targets, tol=0.0, max_iter=1, limit=0.0)
        one, solve = timed.steps[0], timed.solves[0]
        totals.append(scale * (timed.start + steps * (one - solve)) + steps * solve)
    return statistics.median(totals)


def say(line: str) -> None:
    """To standard error, at once."""
    print(line, file=sys.stderr, flush=True)


def draw(result: dict, path: Path) -> None:
    """Loss over seconds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    steps = result["records"][0]["steps"]
    axes.semilogy([step["seconds"] for step in steps], [step["loss"] for step in steps], "o-")
    for step in steps:
        axes.annotate("full pass" if step["rebased"] or not step["step"] else "", (step["seconds"], step["loss"]))
    axes.set(xlabel="seconds", ylabel="mean squared residual", title=f"{result['settings']['width']:,} neurons")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main("billion", run, draw)
