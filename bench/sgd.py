"""Steps of SGD with every tracker and in dense torch: time against m and d, on samples seen before or not; memory."""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import describe_machine, entry, main
from sgd_figures import TORCH, crossovers, draw, figures_of
from two_layer_peers import largest_eigenvalue, sgd
from two_layer_problems import Problem, digits_parity, sphere
from two_layer_runs import dense_network

from widefit.gram import CurrentGrams
from widefit.kernels.memory import available_memory
from widefit.nn import TwoLayer
from widefit.rules import SGD, Objective
from widefit.trackers import Certificate, DataTree, Dense, HalfSpaceTree, Minibatches, Tracker, WeightTree

TRACKERS: dict[str, Tracker] = {
    "dense": Dense(),
    "certificate": Certificate(),
    "weight-tree": WeightTree(),
    "data-tree": DataTree(),
    "half-space tree of data": HalfSpaceTree("data"),
    "half-space tree of weights": HalfSpaceTree("weights"),
}
# A step of these looks at the batch and nothing else: it costs the same on samples that never came before.
UNSEEN = ("dense", "half-space tree of weights")
BATCH_SIZE = 32
# Steps whose losses are compared, steps of a measurement, and measurements.
COMPARED, LEAST, STEPS, REPEATS = 8, 16, 320, 3
# Samples of a prediction, and of a run in which every sample comes once.
FRESH = 1024
# Seconds for one measurement.
LIMITS = {"quick": 0.05, "default": 1.0, "full": 20.0}

# A process of its own for each size: the peak of a process never falls.
MEMORY = """
import json, resource, sys
import sgd
name, exponent = sys.argv[1], int(sys.argv[2])
sgd.few_steps(name, 10)
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
weights = sgd.few_steps(name, exponent)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"weights": weights, "used": peak - before}))
"""


@dataclass(frozen=True)
class Case:
    """A problem and a width; the cases of a sweep differ in one size, in ascending order."""

    axis: str
    seen: bool
    problem: Problem
    exponent: int

    @property
    def sweep(self) -> str:
        samples, features = self.problem.inputs.shape
        sizes = {"d": f"d = {features}", "m": f"m = 2^{self.exponent}"}
        kind = f"{self.problem.name}, n = {samples}" if self.seen else f"{self.problem.name}, unseen samples"
        return ", ".join([kind, *(text for axis, text in sizes.items() if axis != self.axis)])

    @property
    def size(self) -> int:
        return 1 << self.exponent if self.axis == "m" else self.problem.inputs.shape[1]

    @property
    def name(self) -> str:
        return f"{self.sweep}, {self.axis} = " + (f"2^{self.exponent}" if self.axis == "m" else f"{self.size}")

    @property
    def pairs(self) -> int:
        return self.problem.inputs.shape[0] << self.exponent


@dataclass(frozen=True)
class Cost:
    """Time and memory of a contestant; times in seconds.

    Attributes
    ----------
    build
        Of the tracker.
    step
        One step.
    loss
        Mean squared residual of all samples after the steps that are compared.
    bytes_held
        By the tracker.
    predict
        One sample; NaN where the tracker has no way of its own.
    """

    build: float
    step: float
    loss: float
    bytes_held: int
    predict: float = math.nan


def cases(size: str) -> list[Case]:
    """Fixed data: digits against m, the sphere against d. Unseen samples: two and three features against m, and d."""
    widths, features, exponent = {
        "quick": ((10, 12), (2, 64), 12),
        "default": ((12, 14, 16, 18, 20), (2, 3, 4, 8, 16, 64, 256, 784), 16),
        "full": ((12, 14, 16, 18, 20), (2, 3, 4, 8, 16, 64, 256, 784), 18),
    }[size]
    held = 500 if size == "quick" else 1000
    return [
        *(Case("m", True, digits_parity(held), width) for width in widths),
        *(Case("d", True, sphere(held, d), exponent) for d in features),
        *(Case("m", False, sphere(FRESH, d), width) for d in (2, 3) for width in widths),
        *(Case("d", False, sphere(FRESH, d), exponent) for d in features),
    ]


def run(size: str, trackers: str = "", limit: float = 0.0) -> dict:
    """A step is the mean of a run, the fastest of three (two for torch), without the pass for the loss at its end.

    Parameters
    ----------
    size
        Which cases.
    trackers
        Comma-separated names instead of all.
    limit
        Seconds for one measurement; 0: by size.
    """
    chosen = trackers.split(",") if trackers else list(TRACKERS)
    if set(chosen) - set(TRACKERS):
        raise ValueError(f"trackers must be some of {', '.join(TRACKERS)}, got {trackers}")
    limit = limit or LIMITS[size]
    result = {
        "machine": describe_machine(),
        "settings": {"size": size, "batch_size": BATCH_SIZE, "limit": limit, "dtype": "float32", "trackers": chosen},
        "figures": [], "skipped": [], "records": [],
    }  # fmt: skip
    for name in (TORCH, *chosen):
        few_steps(name, 10)
    before: dict[str, tuple[Case, Cost]] = {}
    for case in cases(size):
        if before and next(iter(before.values()))[0].sweep != case.sweep:
            before = {}
        costs = _measure(case, [name for name in chosen if case.seen or name in UNSEEN], limit, before, result)
        result["figures"] += figures_of(case.name, costs, COMPARED)
        result["records"] += [
            {"sweep": case.sweep, "axis": case.axis, "size": case.size, "contestant": name, **cost.__dict__}
            for name, cost in costs.items()
        ]
    result["figures"] += crossovers(result["records"])
    weighed = [name for name in chosen if name in UNSEEN] if size == "quick" else chosen
    _memory(result, weighed, {"quick": [16], "default": [14, 18], "full": [12, 14, 16, 18, 20]}[size])
    return result


def _measure(
    case: Case, names: list[str], limit: float, before: dict[str, tuple[Case, Cost]], result: dict
) -> dict[str, Cost]:
    """Dense torch first and last, the trackers between; `before` holds the last case of each in this sweep."""
    network = TwoLayer(case.problem.inputs.shape[1], 1 << case.exponent)
    start = network.weight.detach().clone()
    lr = 1 / largest_eigenvalue(dense_network(network, start), torch.from_numpy(case.problem.inputs), BATCH_SIZE)
    batches = _batches(case, lr)
    theirs = [_torch(case, network, start, batches, lr, limit)]
    costs = {}
    for name in names:
        reason = _refusal(case, *before[name], limit) if name in before else None
        if reason is None:
            with torch.no_grad():
                network.weight.copy_(start)
            measure = _tracked if case.seen else _streamed
            costs[name] = measure(case, network, TRACKERS[name], batches, limit)
            before[name] = case, costs[name]
        else:
            result["skipped"].append({"name": f"{case.name}, {name}", "reason": reason})
    theirs.append(_torch(case, network, start, batches, lr, limit))
    step, predict = (min(cost) for cost in zip(*[(cost.step, cost.predict) for cost in theirs], strict=True))
    return {TORCH: Cost(0.0, step, theirs[0].loss, 0, predict), **costs}


def _batches(case: Case, lr: float) -> Minibatches:
    """The steps that all take: epochs of the rule on fixed data, one epoch where every sample comes once."""
    samples = case.problem.inputs.shape[0]
    objective = Objective(case.problem.targets[:, None], np.ones(samples), 0.0)
    rule, full = SGD(lr, BATCH_SIZE), samples // BATCH_SIZE
    epochs = [rule.epoch(objective, t, lr).part(0, full) for t in range(-(-STEPS // full) + 1 if case.seen else 1)]
    order = np.concatenate([epoch.samples for epoch in epochs])
    edges = np.arange(0, order.size + 1, BATCH_SIZE)
    return Minibatches(order, edges, np.full(edges.size - 1, lr), objective.targets, objective.sample_weight)


def _tracked(case: Case, network: TwoLayer, tracker: Tracker, batches: Minibatches, limit: float) -> Cost:
    """A tracker over the batches in order; what is left over is begun again."""
    inputs, threads = case.problem.inputs, torch.get_num_threads()
    begun = time.perf_counter()
    tracking = tracker.start(network, inputs, threads=threads)
    build = time.perf_counter() - begun
    similarity = inputs.astype(np.float64)
    grams = CurrentGrams(tracking, similarity @ similarity.T, network.coefficients, held=1, threads=threads)

    def seconds(first: int, last: int) -> float:
        begun = time.perf_counter()
        tracking.descend(batches.part(first, last), grams)
        return time.perf_counter() - begun

    estimate = seconds(0, COMPARED) / COMPARED
    loss = float(np.mean((tracking.outputs[:, 0] - case.problem.targets) ** 2))
    steps = int(min(len(batches) - COMPARED, max(LEAST, limit / estimate)))
    # The pass at the end of a measurement is in the short one as well.
    pairs = [(seconds(COMPARED, COMPARED + 1), seconds(COMPARED, COMPARED + steps)) for _ in range(REPEATS)]
    short, long = (min(spent) for spent in zip(*pairs, strict=True))
    # A machine that others use may take longer for less.
    step = (long - short) / (steps - 1) if long > short else long / steps
    return Cost(build, step, loss, tracking.report().bytes_held)


def _streamed(case: Case, network: TwoLayer, tracker: Tracker, batches: Minibatches, limit: float) -> Cost:
    """A tracker over samples that come once; no pattern is kept, so that nothing but steps is timed."""
    inputs = case.problem.inputs
    begun = time.perf_counter()
    stream = tracker.stream(network, threads=torch.get_num_threads())
    build = time.perf_counter() - begun
    stream.descend(inputs, batches.part(0, COMPARED))
    loss = float(np.mean((stream.evaluate(inputs)[:, 0] - case.problem.targets) ** 2))
    spent, steps = [], len(batches) - COMPARED
    while len(spent) < REPEATS or sum(spent) < min(limit, 1.0):
        begun = time.perf_counter()
        stream.descend(inputs, batches.part(COMPARED, len(batches)))
        spent.append(time.perf_counter() - begun)
    stream.publish()
    predict = math.nan
    if isinstance(tracker, HalfSpaceTree):
        stream.evaluate(inputs[:1])
        predict = _median(lambda: stream.evaluate(inputs)) / inputs.shape[0]
    return Cost(build, min(spent) / steps, loss, stream.nbytes, predict)


def _torch(
    case: Case, network: TwoLayer, start: torch.Tensor, batches: Minibatches, lr: float, limit: float
) -> Cost:  # fmt: skip
    inputs, targets = torch.from_numpy(case.problem.inputs), torch.from_numpy(case.problem.targets)
    every = [torch.from_numpy(batches.batch(step)).long() for step in range(len(batches))]
    # The last step is not timed; its losses are those of all samples.
    compared = sgd(dense_network(network, start), inputs, targets, every[:COMPARED], lr=lr)
    steps = int(min(len(every), max(LEAST, limit / statistics.median(compared.steps))))
    timed = sgd(dense_network(network, start), inputs, targets, every[:steps], lr=lr)
    peer, fires = dense_network(network, start), torch.empty(network.width, BATCH_SIZE, dtype=torch.bool)

    def predict() -> None:
        for first in range(0, 8 * BATCH_SIZE, BATCH_SIZE):
            peer.sweep(inputs[first : first + BATCH_SIZE], fires)

    predicting = math.nan if case.seen else _median(predict) / (8 * BATCH_SIZE)
    return Cost(0.0, statistics.fmean(timed.steps), compared.losses[-1], 0, predicting)


def _median(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


def _refusal(case: Case, smaller: Case, measured: Cost, limit: float) -> str | None:
    """Why a measurement is not tried, judging by the one before it in the sweep; None: it is."""
    growth = case.pairs / smaller.pairs
    seconds, held = LEAST * measured.step * growth, measured.bytes_held * growth
    if seconds > 3 * limit and growth > 1:
        return f"{LEAST} steps would take about {seconds:.2g} s, judging by m n = {smaller.pairs:,}"
    if held > 0.5 * available_memory():
        return f"would hold about {held / 1e9:.1f} GB, judging by m n = {smaller.pairs:,}"
    return None


def few_steps(name: str, exponent: int) -> int:
    """A network on the digits with 2^exponent neurons takes a few steps; returns the bytes of its weights."""
    case = Case("m", True, digits_parity(), exponent)
    network, batches = TwoLayer(64, 1 << exponent), _batches(case, 1.0)
    if name == TORCH:
        _torch(case, network, network.weight.detach(), batches.part(0, COMPARED), 1.0, 0.0)
    else:
        tracking = TRACKERS[name].start(network, case.problem.inputs, threads=torch.get_num_threads())
        similarity = case.problem.inputs.astype(np.float64)
        tracking.descend(
            batches.part(0, COMPARED), CurrentGrams(tracking, similarity @ similarity.T, network.coefficients, 1)
        )
    return network.weight.nelement() * network.weight.element_size()


def _memory(result: dict, names: list[str], exponents: list[int]) -> None:
    """Peak memory of building and of a few steps, a process for each, into `result`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    for name in (TORCH, *names):
        each = 0.0
        for exponent in exponents:
            title = f"digits, n = 1000, d = 64, m = 2^{exponent}, {name}, peak memory"
            if each * 2**exponent > 0.5 * available_memory():
                reason = f"would take about {each * 2**exponent / 1e9:.1f} GB, judging by a narrower one"
                result["skipped"].append({"name": title, "reason": reason})
                continue
            command = [sys.executable, "-c", MEMORY, name, str(exponent)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            used = json.loads(printed.splitlines()[-1])
            each = used["used"] / 2**exponent
            ratio = used["weights"] / used["used"]
            result["figures"].append(entry(title, used["used"] / 1e6, "MB", "the weights", ratio))
            result["records"].append(
                {"sweep": "peak memory, digits, n = 1000, d = 64", "axis": "m", "size": 1 << exponent,
                 "contestant": name, **used}
            )  # fmt: skip


if __name__ == "__main__":
    main("sgd", run, draw)
