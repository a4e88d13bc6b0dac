"""Deep networks: a Gauss-Newton iteration on sparse layers against the same mathematics dense in torch."""

import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from deep_peers import DenseGaussNewton
from harness import describe_machine, entry, main, peak_memory_gb
from sklearn.datasets import load_digits

import widefit
from widefit.nn import Deep, LowRankLinear, SparseRows
from widefit.training.train import Training

ALL_WIDTHS = (1024, 2048, 4096, 8192, 16384)
WIDTHS = {"quick": (1024, 2048), "default": ALL_WIDTHS, "full": ALL_WIDTHS}
LAYERS = {"quick": (2,), "default": (2, 3), "full": (2, 3)}
# Up to here the dense contestants run; beyond, their time is extrapolated from the last two widths.
DENSE_UP_TO = {"quick": 2048, "default": 8192, "full": 16384}
SAMPLES = 1000
# Iterations timed: after the first two little is left to learn, and what a step costs hardly changes.
STEPS = 4
DENSE_STEPS = 3
# Beyond this width, where an iteration of dense torch takes many seconds, it takes fewer of them.
MANY_STEPS = 8192
REPEATS = 5
# The network that one would otherwise take. Contestants are "widefit", "dense" (the same network), "plain" (this one,
# dense) and "products", one product of a hidden layer.
PLAIN = {"threshold": 0.0, "readouts": "last", "paired": False, "input_share": 0.0}
# A process for each of them: the peak of a process never falls.
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, deep
torch.set_num_threads(int(sys.argv[2]))
print(json.dumps(deep.measure(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6]))))
"""


def run(size: str, widths: str = "", layers: str = "", threshold: float = 0.0, keep: str = "") -> dict:
    """Digits, even against odd, n = 1000, float32; `threshold` 0 stands for the automatic one.

    `widths` and `layers` are lists such as 1024,2048 in place of those of the size. `keep` is a folder where what was
    measured is kept, one file a network: a run goes on from what it finds there, so that sizes can be run one by one.
    """
    chosen_widths = tuple(int(width) for width in widths.split(",")) if widths else WIDTHS[size]
    chosen_layers = tuple(int(count) for count in layers.split(",")) if layers else LAYERS[size]
    figures = []
    for count in chosen_layers:
        times: dict[str, dict[int, float]] = {"widefit": {}, "dense": {}}
        for width in chosen_widths:
            name = f"m = {width}, {count} layers"
            found = {"widefit": _kept("widefit", count, width, threshold, keep)}
            figures += _ours_figures(name, found["widefit"])
            if width <= DENSE_UP_TO[size]:
                found |= {other: _kept(other, count, width, threshold, keep) for other in ("dense", "plain")}
                figures += _dense_figures(name, found["widefit"], found["dense"], found["plain"])
                if count == chosen_layers[0]:
                    figures += _product_figures(f"m = {width}", _kept("products", count, width, threshold, keep))
            elif len(times["dense"]) > 1:
                expected = _extrapolated(times["dense"], width)
                ratio = expected / found["widefit"]["iteration"]
                figures.append(entry(f"dense iteration, extrapolated, {name}", expected, "s"))
                figures.append(entry(f"widefit iteration, {name}", found["widefit"]["iteration"], "s", "dense", ratio))
            for label in times.keys() & found.keys():
                times[label][width] = found[label]["iteration"]
        for label, seconds in times.items():
            if len(seconds) > 1:
                slope = float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])
                name = f"{label}: exponent of the width in the time of an iteration, {count} layers"
                figures.append(entry(name, slope, ""))
    chosen = {"samples": SAMPLES, "threshold": threshold or "auto", "dtype": "float32", "size": size}
    return {"machine": describe_machine(), "settings": chosen, "figures": figures}


def _kept(name: str, layers: int, width: int, threshold: float, keep: str) -> dict[str, float]:
    """Measure in a process of its own, or read the file in `keep` that an earlier run left."""
    place = Path(keep) / f"deep-{name}-{layers}-{width}-{threshold:g}.json" if keep else None
    if place is not None and place.exists():
        return json.loads(place.read_text())
    arguments = (Path(__file__).parent, torch.get_num_threads(), name, layers, width, threshold)
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found))
    return found


def measure(name: str, layers: int, width: int, threshold: float) -> dict[str, float]:
    """One contestant at one size."""
    train, test = _digits()
    before, sizes = peak_memory_gb(), (width,) * layers
    if name == "products":
        return _products(width, threshold)
    settings = PLAIN if name == "plain" else {"threshold": threshold or "auto", "seed": 0}
    network = Deep(train[0].shape[1], sizes, **settings)
    found = _ours(network, train, test) if name == "widefit" else _dense(network, train, test)
    return {**found, "memory": peak_memory_gb() - before}


def _extrapolated(seconds: dict[int, float], width: int) -> float:
    """A power of the width through the last two times."""
    (a, first), (b, last) = list(seconds.items())[-2:]
    return last * (last / first) ** (math.log(width / b) / math.log(b / a))


def _ours_figures(name: str, widefit: dict) -> list[dict]:
    return [
        entry(f"widefit start, packing included, {name}", widefit["start"], "s"),
        entry(f"widefit loss after {STEPS} steps, {name}", widefit["loss"], ""),
        entry(f"part of the last layer that fires, {name}", widefit["firing"], ""),
        entry(f"widefit accuracy, {name}", widefit["accuracy"], "%"),
        entry(f"widefit memory, {name}", widefit["memory"], "GB"),
        entry(f"widefit memory predicted, {name}", widefit["predicted"], "GB"),
    ]


def _dense_figures(name: str, widefit: dict, dense: dict, plain: dict) -> list[dict]:
    ratio = dense["iteration"] / widefit["iteration"]
    return [
        entry(f"dense iteration, {name}", dense["iteration"], "s"),
        entry(f"widefit iteration, {name}", widefit["iteration"], "s", "dense", ratio),
        entry(f"dense loss after {dense['steps']:.0f} steps, {name}", dense["loss"], ""),
        entry(f"dense accuracy, {name}", dense["accuracy"], "%"),
        entry(f"dense plain ReLU accuracy, {name}", plain["accuracy"], "%"),
        entry(f"dense memory, {name}", dense["memory"], "GB"),
    ]


def _product_figures(name: str, products: dict) -> list[dict]:
    return [
        entry(f"dense product, {name}", products["dense"], "s"),
        entry(f"sparse product, {name}", products["sparse"], "s", "dense", products["dense"] / products["sparse"]),
        entry(f"sparse product, {name}, operations on active inputs", products["rate"], "GFLOP/s"),
    ]


def _digits() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    data = load_digits()
    rows = data.data - data.data.mean(0)
    rows = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
    parity = torch.from_numpy(np.where(data.target % 2, 1.0, -1.0)).float()[:, None]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    train, test = order[:SAMPLES], order[SAMPLES:]
    return (rows[train], parity[train]), (rows[test], parity[test])


def _accuracy(network: Deep, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    with torch.no_grad():
        return 100 * float((torch.sign(network(data[0])) == data[1]).float().mean())


def _ours(network: Deep, train: tuple, test: tuple) -> dict[str, float]:
    plan = Training(network, *train).plan
    held = sum(tensor.nbytes for tensor in network.state_dict().values())
    begun = time.perf_counter()
    history = widefit.train(network, *train, max_iter=STEPS, tol=0)
    total = time.perf_counter() - begun
    seconds = np.diff([info.seconds for info in history])
    with torch.no_grad():
        z = train[0] @ network.input_weights[0].T
        firing = float((z > network.thresholds[0]).float().mean())
    return {
        "iteration": statistics.median(seconds),
        "start": total - float(seconds.sum()),
        "loss": history[-1].loss,
        "accuracy": _accuracy(network, test),
        "firing": firing,
        "predicted": (held + plan.bytes_needed) / 1e9,
    }


def _dense(network: Deep, train: tuple, test: tuple) -> dict[str, float]:
    peer = DenseGaussNewton(network, *train)
    seconds = []
    for _ in range(DENSE_STEPS if network.hidden_layer_sizes[-1] <= MANY_STEPS else DENSE_STEPS - 1):
        begun = time.perf_counter()
        peer.step()
        seconds.append(time.perf_counter() - begun)
    found = {"iteration": statistics.median(seconds), "loss": peer.loss, "steps": len(seconds)}
    return {**found, "accuracy": _accuracy(network, test)}


def _products(width: int, threshold: float) -> dict[str, float]:
    """A product of a hidden layer with sparse inputs against the dense product."""
    layer = LowRankLinear(width, width)
    z = torch.randn(SAMPLES, width, generator=torch.Generator().manual_seed(1))
    rows = SparseRows.above(z.numpy(), threshold or widefit.nn.automatic_threshold(width))
    dense, weight = torch.from_numpy(rows.dense()), layer.weight.detach()
    threads = torch.get_num_threads()
    contestants = {"sparse": lambda: layer.query(rows, threads), "dense": lambda: dense @ weight.T}
    times: dict[str, list[float]] = {label: [] for label in contestants}
    for repeat in range(REPEATS + 1):
        for label in contestants if repeat % 2 else reversed(contestants):
            begun = time.perf_counter()
            contestants[label]()
            times[label].append(time.perf_counter() - begun)
    # The first round packs the weights and warms the caches.
    middle = {label: statistics.median(found[1:]) for label, found in times.items()}
    return {**middle, "rate": 2.0 * rows.index.size * width / middle["sparse"] / 1e9}


def draw(result: dict, path: Path) -> None:
    """Time of an iteration over the width on logarithmic axes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for label in ("dense", "widefit"):
        lines = [line for line in result["figures"] if line["name"].startswith(f"{label} iteration, m = ")]
        for layers in sorted({line["name"].split(", ")[2] for line in lines}):
            own = [line for line in lines if line["name"].endswith(layers)]
            widths = [int(line["name"].split("m = ")[1].split(",")[0]) for line in own]
            axes.loglog(widths, [line["value"] for line in own], "o-", label=f"{label}, {layers}")
    axes.set(xlabel="width m", ylabel="seconds an iteration", title="A Gauss-Newton iteration on deep networks")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main("deep", run, draw)
