"""The first-order half of the two-layer bench: many small steps, full-batch and stochastic."""

import statistics

import torch
from harness import entry
from torch import Tensor
from two_layer_peers import Timed, gradient_descent, largest_eigenvalue, sgd
from two_layer_problems import Problem, members
from two_layer_runs import Fit, accuracy, batches_of, dense_network, fit, recording

import widefit.rules
from widefit.nn import TwoLayer
from widefit.rules import Rule

FIRST_ORDER = ("gradient-descent", "sgd")
STEPS = 10_000
BATCH_SIZE = 32
# Steps of the dense peer that are timed, and steps whose losses are compared.
PEER_STEPS = 24
COMPARED = 10


def first_order(
    result: dict, problem: Problem, rule: str, exponents: tuple[int, ...], tracker: str, limit: float
) -> None:
    """One rule at every width, into `result`; a width that would take too long by the one before it is left out."""
    kinds = members(widefit.rules, Rule)
    if rule not in kinds:
        result["skipped"].append({"name": rule, "reason": "this version of widefit has no such rule"})
        return
    measure = _descent if rule == "gradient-descent" else _stochastic
    curves = result["curves"].setdefault(rule, {})
    shortest: tuple[int, float] | None = None
    for exponent in exponents:
        name = f"{rule}, m = 2^{exponent}"
        expected = shortest[1] * 2.0 ** (exponent - shortest[0]) if shortest else 0.0
        if expected > limit:
            reason = f"its shortest run would take {expected:.0f} s, judging by a narrower one"
            result["skipped"].append({"name": name, "reason": reason})
            continue
        network = TwoLayer(problem.inputs.shape[1], 1 << exponent)
        ours, per_step, theirs, apart = measure(network, problem, kinds[rule], tracker, limit)
        figures = _figures(name, ours, per_step, theirs, apart)
        figures.append(entry(f"{name}, test accuracy", accuracy(network, problem), "of the other 797 digits"))
        result["figures"] += figures
        curves.setdefault("step", []).append([1 << exponent, figures[0]["value"]])
        curves.setdefault("dense torch step", []).append([1 << exponent, figures[1]["value"]])
        # The start and one entry of the history, once for the check and once for the clock.
        shortest = exponent, 2 * (ours.steps[0].seconds + ours.loop_seconds / (len(ours.steps) - 1))


def _descent(
    network: TwoLayer, problem: Problem, kind: type[Rule], tracker: str, limit: float
) -> tuple[Fit, int, Timed, float]:
    """Our run, steps an entry of its history, the peer's run, and how far the losses are apart at first."""
    start, inputs, targets = _tensors(network, problem)
    lr = 1 / largest_eigenvalue(dense_network(network, start), inputs)
    checked = fit(network, problem, rule=kind(lr=lr), tracker=tracker, tol=0.0, max_iter=COMPARED)
    theirs = gradient_descent(dense_network(network, start), inputs, targets, lr=lr, steps=PEER_STEPS, limit=limit)
    apart = _apart([info.loss for info in checked.steps], theirs.losses)
    _reset(network, start)
    ours = fit(network, problem, rule=kind(lr=lr), tracker=tracker, tol=0.0, max_iter=STEPS, limit=limit)
    return ours, 1, theirs, apart


def _stochastic(
    network: TwoLayer, problem: Problem, kind: type[Rule], tracker: str, limit: float
) -> tuple[Fit, int, Timed, float]:
    """The same; the peer repeats the batches of our first entry of the history."""
    start, inputs, targets = _tensors(network, problem)
    settings = {"lr": 1 / largest_eigenvalue(dense_network(network, start), inputs, BATCH_SIZE)}
    settings["batch_size"] = BATCH_SIZE
    rule, seen = recording(kind, **settings)
    checked = fit(network, problem, rule=rule, tracker=tracker, tol=0.0, max_iter=1)
    batches = batches_of(seen)
    theirs = sgd(dense_network(network, start), inputs, targets, batches, lr=settings["lr"])
    apart = _apart([info.loss for info in checked.steps], theirs.losses)
    _reset(network, start)
    entries = -(-STEPS // len(batches))
    ours = fit(network, problem, rule=kind(**settings), tracker=tracker, tol=0.0, max_iter=entries, limit=limit)
    return ours, len(batches), theirs, apart


def _figures(name: str, ours: Fit, per_step: int, theirs: Timed, apart: float) -> list[dict]:
    entries = -(-STEPS // per_step)
    done = (len(ours.steps) - 1) * per_step
    how = f" (extrapolated from {done} steps)" if ours.cut else ""
    total, dense = ours.seconds_for(entries), statistics.median(theirs.steps)
    step = total / (entries * per_step)
    counted = f"median of {len(theirs.steps)}"
    return [
        entry(f"{name}, a step of {STEPS:,}, building included{how}", step, "s", "dense torch", dense / step),
        entry(f"{name}, a step of dense torch, {counted}", dense, "s"),
        entry(f"{name}, {STEPS:,} steps{how}", total, "s", "dense torch, extrapolated", STEPS * dense / total),
        entry(f"{name}, first losses, largest difference from dense torch", apart, "relative"),
        entry(f"{name}, loss after {done:,} steps", ours.loss, "mean squared residual"),
        entry(f"{name}, pairs that flip in entry {len(ours.steps) - 1:,}", ours.steps[-1].flips or 0, "pairs"),
        entry(f"{name}, full passes in {done:,} steps", ours.report.full_passes, "passes"),
    ]


def _apart(ours: list[float], theirs: list[float]) -> float:
    """Largest relative difference; the runs may be of different length."""
    return max(abs(mine - other) / other for mine, other in zip(ours, theirs, strict=False))


def _tensors(network: TwoLayer, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    start = network.weight.detach().clone()
    return start, torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)


def _reset(network: TwoLayer, start: Tensor) -> None:
    with torch.no_grad():
        network.weight.copy_(start)
