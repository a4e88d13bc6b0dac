"""Deep networks: a Gauss-Newton iteration on sparse layers against the same mathematics dense in torch."""

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from deep_peers import DenseGaussNewton
from harness import describe_machine, entry, main, peak_memory_gb
from sklearn.datasets import load_digits

import widefit
from widefit.nn import Deep, LowRankLinear, SparseRows

WIDTHS = {"quick": (1024, 2048), "default": (1024, 2048, 4096, 8192), "full": (1024, 2048, 4096, 8192, 16384)}
SAMPLES = 1000
# Iterations timed: after the first two little is left to learn, and what a step costs hardly changes.
STEPS = 4
DENSE_STEPS = 3
REPEATS = 5


def run(size: str, layers: int = 2, threshold: float = 0.0) -> dict:
    """Digits, even against odd, n = 1000, float32; `threshold` 0 stands for the automatic one.

    Every width is fitted by widefit, by dense torch from the same weights, and by dense torch with plain ReLUs, the
    last layer read and no share of the input: the network that one would otherwise take.
    """
    train, test = _digits()
    figures, times = [], {"widefit": [], "dense": []}
    for width in WIDTHS[size]:
        settings = {"threshold": threshold or "auto", "seed": 0}
        sizes = (width,) * layers
        ours = _ours(Deep(train[0].shape[1], sizes, **settings), train, test)
        dense = _dense(Deep(train[0].shape[1], sizes, **settings), train, test)
        plain = Deep(train[0].shape[1], sizes, threshold=0.0, readouts="last", paired=False, input_share=0.0)
        relu = _dense(plain, train, test)
        times["widefit"].append(ours["iteration"])
        times["dense"].append(dense["iteration"])
        name = f"m = {width}"
        figures += [
            entry(f"dense iteration, {name}", dense["iteration"], "s"),
            entry(
                f"widefit iteration, {name}", ours["iteration"], "s", "dense", dense["iteration"] / ours["iteration"]
            ),
            entry(f"widefit start, packing included, {name}", ours["start"], "s"),
            entry(f"widefit loss after {STEPS} steps, {name}", ours["loss"], ""),
            entry(f"dense loss after {DENSE_STEPS} steps, {name}", dense["loss"], ""),
            entry(f"part of the last layer that fires, {name}", ours["firing"], ""),
            entry(f"widefit accuracy, {name}", ours["accuracy"], "%"),
            entry(f"dense accuracy, {name}", dense["accuracy"], "%"),
            entry(f"dense plain ReLU accuracy, {name}", relu["accuracy"], "%"),
            *_forward_alone(width, ours["firing"], name),
        ]
    for label, seconds in times.items():
        slope = np.polyfit(np.log(WIDTHS[size]), np.log(seconds), 1)[0]
        figures.append(entry(f"{label}: exponent of the width in the time of an iteration", float(slope), ""))
    figures.append(entry("peak memory", peak_memory_gb(), "GB"))
    chosen = {"samples": SAMPLES, "layers": layers, "threshold": threshold or "auto", "dtype": "float32", "size": size}
    return {"machine": describe_machine(), "settings": chosen, "figures": figures}


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
    }


def _dense(network: Deep, train: tuple, test: tuple) -> dict[str, float]:
    peer = DenseGaussNewton(network, *train)
    seconds = []
    for _ in range(DENSE_STEPS):
        begun = time.perf_counter()
        peer.step()
        seconds.append(time.perf_counter() - begun)
    return {"iteration": statistics.median(seconds), "loss": peer.loss, "accuracy": _accuracy(network, test)}


def _forward_alone(width: int, firing: float, name: str) -> list[dict]:
    """One product of a hidden layer with sparse inputs against the dense product."""
    layer = LowRankLinear(width, width)
    z = torch.randn(SAMPLES, width, generator=torch.Generator().manual_seed(1))
    rows = SparseRows.above(z.numpy(), float(torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - firing))))
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
    flops = 2.0 * rows.index.size * width
    return [
        entry(f"dense product, {name}", middle["dense"], "s"),
        entry(f"sparse product, {name}", middle["sparse"], "s", "dense", middle["dense"] / middle["sparse"]),
        entry(f"sparse product, {name}, operations on active inputs", flops / middle["sparse"] / 1e9, "GFLOP/s"),
    ]


def draw(result: dict, path: Path) -> None:
    """Time of an iteration over the width on logarithmic axes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for label in ("dense", "widefit"):
        lines = [line for line in result["figures"] if line["name"].startswith(f"{label} iteration, ")]
        widths = [int(line["name"].split("m = ")[1]) for line in lines]
        axes.loglog(widths, [line["value"] for line in lines], "o-", label=label)
    axes.set(xlabel="width m", ylabel="seconds an iteration", title="A Gauss-Newton iteration on deep networks")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main("deep", run, draw)
