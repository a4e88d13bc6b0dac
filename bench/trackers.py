"""Every tracker on the same runs: time, operations and memory against m, n and d, and what "auto" picks."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import describe_machine, entry, main
from two_layer_peers import largest_eigenvalue
from two_layer_problems import Problem, digits_parity, members, sphere
from two_layer_runs import Fit, dense_network, fit

import widefit.rules
import widefit.trackers
from widefit.kernels.memory import available_memory
from widefit.nn import TwoLayer
from widefit.rules import Rule
from widefit.trackers import Tracker

REPEATS = {"quick": 2, "default": 3, "full": 5}
# Seconds for one run; a run that is expected to take longer by a smaller one is left out.
LIMITS = {"quick": 2.0, "default": 20.0, "full": 300.0}
# A tracker that took so many times as long as the fastest is not run on the next sizes of the sweep.
FAR = {"quick": 4.0, "default": 4.0, "full": math.inf}
BATCH_SIZE = 32
EPOCHS = {"quick": 1, "default": 5, "full": 20}
STEPS, TOLERANCE = 6, 1e-8
# A choice is good when no tracker is faster than it by more.
GOOD = 1.2


@dataclass(frozen=True)
class Case:
    """A run for every tracker; cases of one sweep differ in one size and come in ascending order."""

    axis: str
    rule: str
    problem: Problem
    exponent: int

    @property
    def name(self) -> str:
        samples, features = self.problem.inputs.shape
        return f"{self.rule}, {self.problem.name}, m = 2^{self.exponent}, n = {samples}, d = {features}"

    @property
    def pairs(self) -> int:
        return self.problem.inputs.shape[0] << self.exponent


def cases(size: str, rule: str) -> list[Case]:
    """Against m on the digits; against n and d on random points of the sphere."""
    widths, samples, features, exponent = {
        "quick": ((12, 14), (), (2, 8), 12),
        "default": ((12, 14, 16, 18), (250, 1000, 4000), (2, 8, 64), 14),
        "full": ((12, 14, 16, 18, 20), (250, 1000, 4000, 8000), (2, 8, 64), 16),
    }[size]
    held = 500 if size == "quick" else 1000
    return [
        *(Case("m", rule, digits_parity(held), width) for width in widths),
        *(Case("n", rule, sphere(n, 8), exponent) for n in samples),
        *(Case("d", rule, sphere(held, d), exponent) for d in features),
    ]


def run(size: str, trackers: str = "", rules: str = "gauss-newton,sgd", limit: float = 0.0) -> dict:
    """The order of the trackers alternates; medians of a few runs, or of fewer where that takes too long.

    Parameters
    ----------
    size
        Which cases.
    trackers
        Comma-separated names instead of all.
    rules
        Comma-separated: which of the two.
    limit
        Seconds for one run; 0: by size.
    """
    known = members(widefit.trackers, Tracker)
    chosen = trackers.split(",") if trackers else list(known)
    if set(chosen) - set(known):
        raise ValueError(f"trackers must be some of {', '.join(known)}, got {trackers}")
    limit = limit or LIMITS[size]
    result = {
        "machine": describe_machine(),
        "settings": {"size": size, "limit": limit, "repeats": REPEATS[size], "dtype": "float32", "trackers": chosen},
        "figures": [], "skipped": [], "records": [],
    }  # fmt: skip
    good = []
    for rule in rules.split(","):
        if rule not in members(widefit.rules, Rule):
            result["skipped"].append({"name": rule, "reason": "this version of widefit has no such rule"})
            continue
        for name in chosen:
            title = f"{rule}, {name}, first run of the process (kernels compiled or loaded), m = 2^10"
            result["figures"].append(entry(title, _first_run(known[name](), rule), "s"))
        before: dict[str, tuple[Case, Fit]] = {}
        for case in cases(size, rule):
            if before and next(iter(before.values()))[0].axis != case.axis:
                before = {}
            runs = _measure(case, {name: known[name]() for name in chosen}, size, limit, before, result)
            if set(runs) - {"auto"}:
                result["figures"] += _figures(case, runs, good)
                result["records"] += [_record(case, name, fits, _steps(runs)) for name, fits in runs.items()]
    if good:
        title = f"cases in which auto is within {GOOD - 1:.0%} of the fastest"
        result["figures"].append(entry(title, sum(good), f"of {len(good)}"))
    return result


def _first_run(tracker: Tracker, rule: str) -> float:
    case = Case("m", rule, sphere(100, 8), 10)
    network = TwoLayer(8, 1 << case.exponent)
    return fit(network, case.problem, tracker=tracker, **_settings(case, network, 1)).seconds


def _measure(
    case: Case, trackers: dict[str, Tracker], size: str, limit: float, before: dict[str, tuple[Case, Fit]], result: dict
) -> dict[str, list[Fit]]:  # fmt: skip
    """Runs of every tracker that can be run, and of "auto"; `before` holds the last run of each in this sweep."""
    network = TwoLayer(case.problem.inputs.shape[1], 1 << case.exponent)
    start = network.weight.detach().clone()
    settings = _settings(case, network, EPOCHS[size])
    contestants: dict[str, Tracker | str] = {**trackers, "auto": "auto"}
    runs: dict[str, list[Fit]] = {name: [] for name in contestants}
    longest = FAR[size] * min((one.seconds for _, one in before.values()), default=math.inf)
    for repeat in range(REPEATS[size]):
        for name in list(contestants) if repeat % 2 == 0 else list(reversed(contestants)):
            judged = repeat == 0 and name in before and name != "auto"
            reason = _refusal(case, *before[name], limit, longest) if judged else None
            if reason is None and (repeat == 0 or runs[name][-1].seconds < limit / REPEATS[size]):
                with torch.no_grad():
                    network.weight.copy_(start)
                try:
                    runs[name].append(fit(network, case.problem, tracker=contestants[name], limit=limit, **settings))
                except MemoryError as refused:
                    reason = str(refused)
            if reason is not None:
                del contestants[name], runs[name]
                result["skipped"].append({"name": f"{case.name}, {name}", "reason": reason})
    before.update({name: (case, fits[0]) for name, fits in runs.items()})
    return runs


def _settings(case: Case, network: TwoLayer, epochs: int) -> dict:
    """Keywords of `fit` for the rule of a case."""
    if case.rule == "gauss-newton":
        return {"rule": case.rule, "max_iter": STEPS, "tol": TOLERANCE}
    kind = members(widefit.rules, Rule)[case.rule]
    dense = dense_network(network, network.weight.detach())
    lr = 1 / largest_eigenvalue(dense, torch.from_numpy(case.problem.inputs), BATCH_SIZE)
    return {"rule": kind(lr=lr, batch_size=BATCH_SIZE), "max_iter": epochs, "tol": 0.0}


def _refusal(case: Case, smaller: Case, measured: Fit, limit: float, longest: float) -> str | None:
    """Why a run is not tried, judging by the one before it in the sweep; None: it is."""
    if measured.seconds > longest:
        return f"took {measured.seconds:.2g} s in {smaller.name}, far from the fastest"
    growth = case.pairs / smaller.pairs
    seconds, held = measured.seconds * growth, measured.report.bytes_held * growth
    if seconds > limit and growth > 1:
        return f"would take about {seconds:.2g} s, more than {limit:g} s, judging by m n = {smaller.pairs:,}"
    if held > 0.7 * available_memory():
        return f"would hold about {held / 1e9:.1f} GB, judging by m n = {smaller.pairs:,}"
    return None


def _figures(case: Case, runs: dict[str, list[Fit]], good: list[bool]) -> list[dict]:
    steps = _steps(runs)
    seconds = {name: statistics.median(one.seconds_for(steps) for one in fits) for name, fits in runs.items()}
    dense = seconds.get("dense")
    figures = []
    for name, fits in runs.items():
        if name == "auto":
            continue
        report, done = fits[0].report, len(fits[0].steps) - 1
        how = f" (extrapolated from {done} of {steps} steps)" if fits[0].cut else ""
        ratio = dense / seconds[name] if dense and name != "dense" else None
        operations = report.pairs_evaluated + report.nodes_visited + report.keys_updated
        figures += [
            entry(f"{case.name}, {name}, time{how}", seconds[name], "s", "dense" if ratio else None, ratio),
            entry(f"{case.name}, {name}, pairs, nodes and keys in {done} steps", operations, ""),
            entry(f"{case.name}, {name}, memory", report.bytes_held / 1e6, "MB"),
        ]
    forced = {name: spent for name, spent in seconds.items() if name != "auto"}
    if len(runs) > 1:
        figures.append(entry(f"{case.name}, largest difference of losses", _apart(list(runs.values())), "relative"))
    if "auto" in seconds:
        best = min(forced, key=lambda name: forced[name])
        picked = runs["auto"][0].report.tracker
        # Of the same tracker under two names the faster run says what the choice was worth.
        good.append(min(seconds["auto"], forced.get(picked, math.inf)) <= GOOD * forced[best])
        title = f"{case.name}, auto ({picked}), time"
        figures.append(entry(title, seconds["auto"], "s", f"the fastest ({best})", forced[best] / seconds["auto"]))
    return figures


def _steps(runs: dict[str, list[Fit]]) -> int:
    """Steps of the whole run, which the trackers share; of the longest where the limit ended them all."""
    every = [one for fits in runs.values() for one in fits]
    return max(len(one.steps) - 1 for one in [one for one in every if not one.cut] or every)


def _apart(runs: list[list[Fit]]) -> float:
    """Largest relative difference of the losses above 1e-6 from those of the first tracker."""
    reference = [info.loss for info in runs[0][0].steps]
    differences = [
        abs(info.loss - loss) / loss
        for fits in runs[1:]
        for info, loss in zip(fits[0].steps, reference, strict=False)
        if loss > 1e-6
    ]
    return max(differences, default=math.nan)


def _record(case: Case, name: str, fits: list[Fit], steps: int) -> dict:
    samples, features = case.problem.inputs.shape
    return {
        "case": case.name, "axis": case.axis, "rule": case.rule, "m": 1 << case.exponent, "n": samples,
        "d": features, "contestant": name, "seconds": [one.seconds_for(steps) for one in fits], "cut": fits[0].cut,
        "step_seconds": [info.seconds for info in fits[0].steps], "losses": [info.loss for info in fits[0].steps],
        "plan": fits[0].plan.to_dict(), "report": fits[0].report.__dict__,
    }  # fmt: skip


def draw(result: dict, path: Path) -> None:
    """Time against m, n and d, a line a tracker: one panel a sweep and rule."""
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((record["rule"], record["axis"]) for record in result["records"]))
    figure, grid = plt.subplots(
        -(-len(panels) // 3), 3, figsize=(12, 3.5 * -(-len(panels) // 3)), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (rule, axis) in zip(grid.flat, panels, strict=False):
        chosen = [record for record in result["records"] if (record["rule"], record["axis"]) == (rule, axis)]
        for name in dict.fromkeys(record["contestant"] for record in chosen):
            lines = [record for record in chosen if record["contestant"] == name]
            style = "k--" if name == "auto" else "o-"
            axes.plot([line[axis] for line in lines], [statistics.median(line["seconds"]) for line in lines], style,
                      label=name)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel=axis, ylabel="seconds", title=f"{rule} against {axis}")
        axes.legend(fontsize="small")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main("trackers", run, draw)
