"""A billion neurons whose weights are never stored, trained to convergence, beside dense by extrapolation."""

import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from harness import describe_machine, entry, main, peak_memory_gb
from two_layer_peers import DenseNetwork, gauss_newton
from two_layer_problems import Problem, digits_parity
from two_layer_runs import Fit, accuracy, fit

from widefit.kernels.memory import available_memory
from widefit.nn import TwoLayer
from widefit.trackers import Certificate, Tracker
from widefit.training.train import Training

# The last is the one to be measured, those before it tell how it will grow.
EXPONENTS = {"quick": (18, 20), "default": (18, 20, 22, 30), "full": (18, 20, 22, 24, 30)}
TOLERANCE, MAX_STEPS = 1e-10, 20
# Neurons of the dense block that is timed, and how often.
BLOCK, REPEATS = 1 << 16, 3
# A prediction is a pass over all neurons, one more than training may need: only narrower networks are tested.
WIDEST_TESTED = 24


def run(size: str, exponents: str = "", samples: int = 1000, store: str = "regenerate") -> dict:
    """Digits parity, d = 64, float32, Gauss-Newton to loss 1e-10; a line to standard error after every step.

    Widths come in ascending order. One whose memory, by the plan, exceeds what is free is skipped and extrapolated.

    Parameters
    ----------
    size
        Which widths.
    exponents
        Comma-separated log₂ m instead.
    samples
        n.
    store
        Where the network has its weights, see `widefit.nn.TwoLayer`.
    """
    chosen = tuple(sorted(int(one) for one in exponents.split(","))) if exponents else EXPONENTS[size]
    problem, tracker = digits_parity(samples), Certificate()
    cold = fit(TwoLayer(64, 1 << 12, store=store), problem, tracker=tracker, max_iter=MAX_STEPS).seconds
    result = {
        "machine": describe_machine(),
        "settings": {
            "samples": samples, "features": 64, "dtype": "float32", "exponents": list(chosen), "store": store,
            "tolerance": TOLERANCE, "size": size,
        },
        "figures": [entry("first fit of the process (kernels compiled or loaded), m = 2^12", cold, "s")],
        "skipped": [], "records": [],
    }  # fmt: skip
    for exponent in chosen:
        _width(result, problem, tracker, exponent, store)
    return result


def _width(result: dict, problem: Problem, tracker: Tracker, exponent: int, store: str) -> None:
    """Figures and the record of one width, into `result`."""
    network = TwoLayer(problem.inputs.shape[1], 1 << exponent, store=store)
    m, records = f"m = 2^{exponent}", result["records"]
    planned = Training(network, problem.inputs, problem.targets, tracker=tracker, memory=sys.maxsize).plan.bytes_needed
    result["figures"].append(entry(f"planned memory, {m}", planned / 1e9, "GB"))
    say(f"{m} = {network.width:,}, b = {network.threshold:.3f}, {planned / 1e9:.2f} GB planned")
    if records[1:]:
        say(_expected(records, exponent))
    if planned > available_memory():
        reason = f"{planned / 1e9:.1f} GB planned, {available_memory() / 1e9:.1f} GB are free"
        result["skipped"].append({"name": f"fit, {m}", "reason": reason})
        if len(records) > 1:
            figure = entry(
                f"fit, {m} (extrapolated from {len(records)} narrower ones)", _extrapolated(records, exponent), "s"
            )
            result["figures"].append(figure)
        return
    before = peak_memory_gb()
    found = fit(network, problem, tracker=tracker, max_iter=MAX_STEPS, tol=TOLERANCE, progress=True)
    peak, held = peak_memory_gb(), found.report.bytes_held
    result["figures"] += [
        *(entry(f"loss after step {info.step}, {m}", info.loss, "mean squared residual") for info in found.steps),
        *(entry(f"seconds to the end of step {info.step}, {m}", info.seconds, "s") for info in found.steps),
        *_against(network, problem, found, exponent),
        entry(f"peak memory of the process so far, {m}", peak, "GB"),
        entry(f"of which before this width, {m}", before, "GB"),
        entry(f"tracker's own state, {m}", held / network.width, "bytes a neuron"),
    ]
    if exponent <= WIDEST_TESTED and len(problem.test_inputs):
        result["figures"].append(entry(f"test accuracy, {m}", accuracy(network, problem), "of the other digits"))
    records.append({
        "m": network.width, "seconds": found.seconds, "steps": [info.__dict__ for info in found.steps],
        "plan": found.plan.to_dict(), "report": found.report.__dict__, "peak_gb": peak,
    })  # fmt: skip


def _against(network: TwoLayer, problem: Problem, found: Fit, exponent: int) -> list[dict]:
    """The fit beside dense torch and the bare product, both extrapolated from a block; the pass beside the product."""
    m, steps = f"m = 2^{exponent}", len(found.steps) - 1
    dense = _dense_seconds(problem, network.threshold, exponent, steps)
    product = _product_seconds(problem, exponent)
    opening = found.steps[0].seconds
    how = f"dense torch (extrapolated from {BLOCK:,} neurons, {steps} steps)"
    return [
        entry(f"fit, {m}", found.seconds, "s", how, dense / found.seconds),
        entry(f"{how}, {m}", dense, "s"),
        entry(f"bare product W Xᵀ (extrapolated from {BLOCK:,} neurons), {m}", product, "s"),
        entry(f"first pass, weights drawn, {m}", opening, "s", "bare product", product / opening),
        entry(f"fit in bare products, {m}", found.seconds / product, "products"),
        entry(f"steps, {m}", steps, f"of which {sum(info.rebased for info in found.steps)} full passes"),
    ]


def _product_seconds(problem: Problem, exponent: int) -> float:
    inputs = torch.from_numpy(problem.inputs)
    weight, out = torch.randn(BLOCK, inputs.shape[1]), torch.empty(1024, inputs.shape[0])
    times = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        for first in range(0, BLOCK, 1024):
            torch.mm(weight[first : first + 1024], inputs.T, out=out)
        times.append(time.perf_counter() - begun)
    return 2.0**exponent / BLOCK * statistics.median(times[1:])


def _extrapolated(records: list[dict], exponent: int) -> float:
    """Seconds by the power law through the last two widths, and no less than in proportion to the width."""
    (m0, s0), (m1, s1) = ((math.log(record["m"]), math.log(record["seconds"])) for record in records[-2:])
    slope = max(1.0, (s1 - s0) / (m1 - m0))
    return math.exp(s1 + slope * (exponent * math.log(2) - m1))


def _expected(records: list[dict], exponent: int) -> str:
    """How long it will take, in words."""
    seconds = _extrapolated(records, exponent)
    until = time.strftime("%H:%M", time.localtime(time.time() + seconds))
    return f"about {seconds / 60:.1f} minutes, until {until}, judging by narrower networks"


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
    """Seconds and memory over the width."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    records = result["records"]
    widths = np.array([record["m"] for record in records])
    left.loglog(widths, [record["seconds"] for record in records], "o-", label="fit")
    left.loglog(widths, [record["steps"][0]["seconds"] for record in records], "o--", label="first pass")
    left.set(xlabel="width m", ylabel="seconds")
    left.legend()
    right.loglog(
        widths, [record["report"]["bytes_held"] / 1e9 for record in records], "o-", label="tracker's own state"
    )
    right.loglog(
        widths, 4 * result["settings"]["features"] * widths / 1e9, "--", label="the weights, if they were stored"
    )
    right.set(xlabel="width m", ylabel="GB")
    right.legend()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main("billion", run, draw)
