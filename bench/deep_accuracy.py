"""Deep networks: accuracy on unseen digits with thresholds, read-outs, input shares and pairs, against plain ReLUs."""

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from harness import describe_machine, entry, main
from sklearn.datasets import load_digits

import widefit
from widefit.nn import Deep

SIZES = {"quick": (512, 2), "default": (1024, 5), "full": (2048, 10)}
SAMPLES = 1000
PLAIN = {"threshold": 0.0, "readouts": "last", "paired": False, "input_share": 0.0}
STACKED = {"threshold": 1.7, "readouts": "last", "paired": False, "input_share": 0.0}
# What is added to stacked shifted layers, one thing after the other, and what else may be chosen.
VARIANTS = {
    "plain ReLU, last layer read": (2, PLAIN),
    "b = 1.7, last layer read": (2, STACKED),
    "b = 1.7, every layer read": (2, {**STACKED, "readouts": "all"}),
    "b = 1.7, every layer read, half input": (2, {**STACKED, "readouts": "all", "input_share": 0.5}),
    "b = 1.7, every layer read, paired": (2, {"threshold": 1.7, "input_share": 0.0}),
    "b = 1.7, every layer read, half input, paired": (2, {"threshold": 1.7}),
    "b = 2.2, every layer read, half input, paired": (2, {"threshold": 2.2}),
    "plain ReLU, every layer read, half input, paired": (2, {"threshold": 0.0}),
    "one layer, b = 1.7, paired": (1, {"threshold": 1.7}),
    "three layers, plain ReLU, last layer read": (3, PLAIN),
    "three layers, b = 1.7, last layer read": (3, STACKED),
    "three layers, b = 1.7, every layer read, half input, paired": (3, {"threshold": 1.7}),
}


def run(size: str) -> dict:
    """Digits, even against odd, trained on 1000 to loss 1e-10 or where it gets to; means over splits and seeds."""
    width, splits = SIZES[size]
    data = load_digits()
    rows = data.data - data.data.mean(0)
    inputs = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
    targets = torch.from_numpy(np.where(data.target % 2, 1.0, -1.0)).float()[:, None]
    figures = []
    for name, (layers, settings) in VARIANTS.items():
        found = [_fit(Deep(64, (width,) * layers, seed=s, **settings), inputs, targets, s) for s in range(splits)]
        accuracies, losses, seconds = (list(values) for values in zip(*found, strict=True))
        figures += [
            entry(f"{name}, accuracy", statistics.fmean(accuracies), "%"),
            entry(f"{name}, lowest accuracy", min(accuracies), "%"),
            entry(f"{name}, largest training loss", max(losses), ""),
            entry(f"{name}, time of a fit", statistics.median(seconds), "s"),
        ]
    chosen = {"samples": SAMPLES, "width": width, "splits": splits, "size": size}
    return {"machine": describe_machine(), "settings": chosen, "figures": figures}


def _fit(network: Deep, inputs: torch.Tensor, targets: torch.Tensor, seed: int) -> tuple[float, float, float]:
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    train, test = order[:SAMPLES], order[SAMPLES:]
    begun = time.perf_counter()
    history = widefit.train(network, inputs[train], targets[train], tol=1e-10)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        right = torch.sign(network(inputs[test])) == targets[test]
    return 100 * float(right.float().mean()), history[-1].loss, seconds


def draw(result: dict, path: Path) -> None:
    """Accuracy of every variant."""
    import matplotlib.pyplot as plt

    lines = [line for line in result["figures"] if line["name"].endswith(", accuracy")]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.barh([line["name"].removesuffix(", accuracy") for line in lines], [line["value"] for line in lines])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy on unseen digits, %", xlim=(50, 100))
    figure.savefig(path)


if __name__ == "__main__":
    main("deep-accuracy", run, draw)
