"""One watched run of `widefit.train`: what the benches of the two-layer network need to know of it."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from harness import peak_memory_gb
from torch import Tensor
from two_layer_peers import DenseNetwork
from two_layer_problems import Problem

import widefit
from widefit.callbacks import Callback, describe
from widefit.nn import TwoLayer
from widefit.plan.base import Plan
from widefit.rules import SGD, Rule
from widefit.trackers import Minibatches, Tracker, TrackerReport
from widefit.training.history import History, StepInfo
from widefit.training.loop import Loop


@dataclass(frozen=True)
class Fit:
    """Outcome of a run of widefit.

    Attributes
    ----------
    steps
        The history, step 0 included.
    seconds
        All of `widefit.train`: building the tracker, the steps, writing the weights back.
    report
        Operations and memory of the tracker.
    plan
        What "auto" chose.
    cut
        True when the limit ended it.
    """

    steps: list[StepInfo]
    seconds: float
    report: TrackerReport
    plan: Plan
    cut: bool

    @property
    def loss(self) -> float:
        return self.steps[-1].loss

    @property
    def loop_seconds(self) -> float:
        """The steps alone."""
        return self.steps[-1].seconds - self.steps[0].seconds

    def seconds_for(self, steps: int) -> float:
        """Time of so many steps: as measured, but for a run that the limit ended, which goes on at its mean pace."""
        return self.seconds + self.loop_seconds * (steps / (len(self.steps) - 1) - 1) if self.cut else self.seconds


class Watch(Callback):
    """Keeps what a run leaves, and ends it after `limit` seconds.

    Parameters
    ----------
    limit
        Seconds, counted from the start of the first step.
    progress
        A line to standard error after every step.
    """

    def __init__(self, limit: float = math.inf, progress: bool = False):
        self.limit, self.progress = limit, progress
        self.report: TrackerReport | None = None
        self.plan = Plan()

    def start(self, run: Loop) -> None:
        self.begun, self.plan = time.perf_counter(), run.stepper.model.plan
        self.say(run.history[-1])

    def step(self, run: Loop, info: StepInfo) -> bool:
        self.say(info)
        return time.perf_counter() - self.begun > self.limit

    def finish(self, run: Loop, history: History) -> None:
        self.report = run.stepper.model.report

    def say(self, info: StepInfo) -> None:
        if self.progress:
            line = f"{describe(info)} · {info.seconds:,.1f} s · peak {peak_memory_gb():.2f} GB"
            print(line, file=sys.stderr, flush=True)


def fit(
    network: TwoLayer,
    problem: Problem,
    *,
    rule: str | Rule = "gauss-newton",
    tracker: str | Tracker = "auto",
    max_iter: int = 20,
    tol: float = 1e-10,
    limit: float = math.inf,
    progress: bool = False,
    device: str = "auto",
) -> Fit:
    """Train a network in place and keep what it cost."""
    watch = Watch(limit, progress)
    begun = time.perf_counter()
    history = widefit.train(
        network, problem.inputs, problem.targets, rule=rule, tracker=tracker, max_iter=max_iter, tol=tol,
        callbacks=[watch], device=device,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    assert watch.report is not None
    return Fit(history.steps, seconds, watch.report, watch.plan, history.stop_reason == "callback")


def accuracy(network: TwoLayer, problem: Problem) -> float:
    """Part of the test samples whose sign is right."""
    with torch.no_grad():
        outputs = network(torch.from_numpy(problem.test_inputs).to(network.weight.device))[:, 0].cpu().numpy()
    return float(np.mean(np.sign(outputs) == problem.test_targets))


def dense_network(network: TwoLayer, weight: Tensor) -> DenseNetwork:
    """The same network for the peers, with weights of its own."""
    return DenseNetwork(weight.clone(), torch.from_numpy(network.coefficients()).float(), network.threshold)


def recording(kind: type[SGD], **settings) -> tuple[SGD, list[Minibatches]]:
    """A stochastic rule, and the list to which it adds the minibatches that it takes."""
    seen: list[Minibatches] = []

    class Recording(kind):
        def epoch(self, *arguments):
            seen.append(super().epoch(*arguments))
            return seen[-1]

    return Recording(**settings), seen


def batches_of(seen: Sequence[Minibatches]) -> list[Tensor]:
    """The samples of every batch, in order."""
    return [torch.from_numpy(group.batch(step).copy()).long() for group in seen for step in range(len(group))]
