"""What is said and drawn of steps of SGD: ratios to dense torch, sizes where one overtakes the other."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness import entry

TORCH = "dense torch"


def figures_of(title: str, costs: dict[str, Any], compared: int) -> list[dict]:
    """Steps and predictions a second beside dense torch, what building takes, and how far the losses are apart."""
    dense, figures = costs[TORCH], []
    for name, cost in costs.items():
        rival = None if name == TORCH else TORCH
        ratio = dense.step / cost.step if rival else None
        figures.append(entry(f"{title}, {name}, steps", 1 / cost.step, "a second", rival, ratio))
        if not math.isnan(cost.predict):
            ratio = dense.predict / cost.predict if rival else None
            figures.append(entry(f"{title}, {name}, predictions", 1 / cost.predict, "a second", rival, ratio))
        if rival:
            apart = abs(cost.loss - dense.loss) / dense.loss
            figures += [
                entry(f"{title}, {name}, building", cost.build, "s"),
                entry(f"{title}, {name}, loss after {compared} steps, from that of torch", apart, "relative"),
            ]
    return figures


def crossovers(records: list[dict]) -> list[dict]:
    """Where a tracker overtakes dense torch, or falls behind, by interpolation between the sizes measured."""
    figures = []
    for sweep, axis in dict.fromkeys((record["sweep"], record["axis"]) for record in records):
        lines = [record for record in records if (record["sweep"], record["axis"]) == (sweep, axis)]
        dense = {line["size"]: line for line in lines if line["contestant"] == TORCH}
        for name in dict.fromkeys(line["contestant"] for line in lines if line["contestant"] != TORCH):
            for what in ("step", "predict"):
                own = [line for line in lines if line["contestant"] == name and not math.isnan(line[what])]
                ratios = [(line["size"], dense[line["size"]][what] / line[what]) for line in own]
                faster = sum(ratio > 1 for _, ratio in ratios)
                title = f"{sweep}, {name}, {'steps' if what == 'step' else 'predictions'}"
                if own:
                    unit = f"of {len(own)} values of {axis}"
                    figures.append(entry(f"{title} faster than in {TORCH} at", faster, unit))
                figures += [
                    entry(f"{title} {'overtake' if rising else 'fall behind'} {TORCH} at {axis}", where, "")
                    for where, rising in _crossings(ratios)
                ]
    return figures


def _crossings(ratios: list[tuple[int, float]]) -> list[tuple[float, bool]]:
    """Sizes at which a ratio passes 1, on a line through its logarithms, and whether it rises there."""
    found = []
    for (low, before), (high, after) in pairwise(ratios):
        if (before > 1) != (after > 1):
            share = math.log(before) / (math.log(before) - math.log(after))
            found.append((low * (high / low) ** share, after > before))
    return found


def draw(result: dict, path: Path) -> None:
    """A panel a sweep, a line a contestant."""
    import matplotlib.pyplot as plt

    panels = [
        (sweep, axis, what)
        for sweep, axis in dict.fromkeys((record["sweep"], record["axis"]) for record in result["records"])
        for what in ("step", "predict", "used")
        if any(not math.isnan(r.get(what, math.nan)) for r in result["records"] if r["sweep"] == sweep)
    ]
    rows = -(-len(panels) // 3)
    figure, grid = plt.subplots(rows, 3, figsize=(13, 3.6 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    titles = {"step": "seconds a step", "predict": "seconds a prediction", "used": "bytes"}
    for axes, (sweep, axis, what) in zip(grid.flat, panels, strict=False):
        for color, name in enumerate(dict.fromkeys(record["contestant"] for record in result["records"])):
            lines = [r for r in result["records"] if (r["sweep"], r["axis"], r["contestant"]) == (sweep, axis, name)]
            lines = [line for line in lines if not math.isnan(line.get(what, math.nan))]
            if lines:
                style = "k--" if name == TORCH else f"C{color}o-"
                axes.plot([line["size"] for line in lines], [line[what] for line in lines], style, label=name)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel=axis, ylabel=titles[what], title=sweep)
        axes.legend(fontsize="x-small")
    figure.savefig(path)
    plt.close(figure)
