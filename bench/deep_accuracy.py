"""Deep networks: accuracy with thresholds, readouts, input shares, pairs, ridges and losses, against plain ReLUs."""

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from deep_peers import adam_network
from harness import describe_machine, entry, main
from sklearn.datasets import load_digits

import widefit
from widefit.nn import Deep
from widefit.nn.shifted_relu import firing_probability

# Width, splits and training samples.
SIZES = {"quick": (256, 1, 200), "default": (1024, 5, 1000), "full": (2048, 10, 1000)}
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
# Ten classes with all outputs reading all neurons; b = 1.645 lets 5% of the neurons fire.
SPARSE = 1.645
TEN = {
    "plain ReLU, last layer read": (2, PLAIN, {}),
    "5% fire": (2, {"threshold": SPARSE}, {}),
    "b = √(0.4 ln m)": (2, {}, {}),
    "5% fire, last layer read": (2, {"threshold": SPARSE, "readouts": "last", "paired": False}, {}),
    "5% fire, no input share": (2, {"threshold": SPARSE, "input_share": 0.0}, {}),
    "5% fire, input share 0.8": (2, {"threshold": SPARSE, "input_share": 0.8}, {}),
    "5% fire, readouts ten times larger": (2, {"threshold": SPARSE, "readout_scale": 10.0}, {}),
    "5% fire, ridge": (2, {"threshold": SPARSE}, {"alpha": 0.3}),
    "5% fire, cross-entropy": (2, {"threshold": SPARSE}, {"loss": "cross_entropy", "tol": 1e-2}),
    "half of the first layer and 5% of the second fire": (2, {"threshold": (0.0, SPARSE)}, {}),
    "three layers, 5% fire": (3, {"threshold": SPARSE}, {}),
    "5% fire, trained biases": (2, {"threshold": SPARSE, "bias": 1.0}, {}),
}
# The network that one would otherwise take, trained as one would train it.
ADAM = "plain ReLU by Adam"
MNIST_SAMPLES = 10_000


def run(
    size: str,
    classes: str = "2,10",
    mnist: str = "",
    samples: int = 0,
    width: int = 0,
    splits: int = 0,
    only: str = "",
) -> dict:
    """Digits, even against odd and all ten, trained to a small loss on 1000, quickly on 200; means over splits, seeds.

    `classes` leaves one of the two out. `mnist` is an .npz with X_train, y_train, X_test and y_test: then ten classes
    are learnt from 10,000 of its rows, or `samples`, and told apart on all of its test rows. `only` takes variants by
    name, separated by semicolons.
    """
    width, splits = width or SIZES[size][0], splits or SIZES[size][1]
    samples = samples or (MNIST_SAMPLES if mnist else SIZES[size][2])
    chosen = {"samples": samples, "width": width, "splits": splits, "size": size, "data": Path(mnist).name or "digits"}
    wanted = {name.strip() for name in only.split(";")} - {""}
    unknown = wanted - {*VARIANTS, *TEN, ADAM}
    if unknown:
        raise SystemExit(f"unknown variants: {'; '.join(sorted(unknown))}")
    figures = []
    if "2" in classes.split(",") and not mnist:
        data = load_digits()
        parity = np.where(data.target % 2, 1.0, -1.0)[:, None]
        for name, (layers, settings) in VARIANTS.items():
            if not wanted or name in wanted:
                tables = (_split(data.data, parity, samples, s) for s in range(splits))
                found = [_fit(table, layers, width, settings, {}, s) for s, table in enumerate(tables)]
                figures += _figures(f"parity, {name}", found)
    if "10" in classes.split(","):
        for name in (*TEN, ADAM):
            if not wanted or name in wanted:
                digits = _ten_digits()
                tables = (_mnist(mnist, samples, s) if mnist else _split(*digits, samples, s) for s in range(splits))
                if name == ADAM:
                    found = [_fit_adam(table, 2, width, s) for s, table in enumerate(tables)]
                else:
                    layers, settings, training = TEN[name]
                    found = [_fit(table, layers, width, settings, training, s) for s, table in enumerate(tables)]
                figures += _figures(f"ten classes, {name}", found)
    return {"machine": describe_machine(), "settings": chosen, "figures": figures}


def _figures(name: str, found: list[tuple[float, float, float, float]]) -> list[dict]:
    accuracies, losses, seconds, fires = (list(values) for values in zip(*found, strict=True))
    return [
        entry(f"{name}, accuracy", statistics.fmean(accuracies), "%"),
        entry(f"{name}, lowest accuracy", min(accuracies), "%"),
        entry(f"{name}, largest training loss", max(losses), ""),
        entry(f"{name}, time of a fit", statistics.median(seconds), "s"),
        entry(f"{name}, most that fires in a layer", 100 * max(fires), "%"),
    ]


def _ten_digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return data.data, _indicators(data.target)


def _indicators(labels: np.ndarray) -> np.ndarray:
    return np.where(labels[:, None] == np.arange(10), 1.0, -1.0)


def _split(rows: np.ndarray, targets: np.ndarray, samples: int, seed: int) -> "Table":
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).numpy()
    return _on_sphere(rows[order], targets[order], samples)


def _mnist(path: str, samples: int, seed: int) -> "Table":
    """So many training rows, drawn: a file may have them sorted by label. All test rows follow."""
    with np.load(path) as data:
        order = np.random.default_rng(seed).permutation(len(data["y_train"]))[:samples]
        rows = np.concatenate([data["X_train"][order], data["X_test"]]).reshape(-1, 784).astype(np.float64)
        return _on_sphere(rows, _indicators(np.concatenate([data["y_train"][order], data["y_test"]])), samples)


def _on_sphere(rows: np.ndarray, targets: np.ndarray, training: int) -> "Table":
    """Unit rows and targets, the first of them to train on."""
    rows = rows - rows[:training].mean(0)
    inputs = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
    return inputs, torch.from_numpy(targets).float(), training


Table = tuple[torch.Tensor, torch.Tensor, int]


def _fit(
    table: Table, layers: int, width: int, settings: dict, training: dict, seed: int
) -> tuple[float, float, float, float]:
    """Accuracy on the rest, training loss, seconds, and the largest part of a layer that fires.

    A `bias` in the settings is one more input, the same for all samples, which every neuron of every layer weighs with
    0 at the start: what training does to it, it does to the thresholds.
    """
    inputs, targets, count = table
    bias, settings = settings.get("bias", 0.0), {key: value for key, value in settings.items() if key != "bias"}
    if bias:
        inputs = torch.cat([inputs, torch.full((len(inputs), 1), bias)], dim=1)
    network = Deep(inputs.shape[1], (width,) * layers, targets.shape[1], seed=seed, **settings)
    if bias:
        for weight in network.input_weights:
            weight.data[:, -1] = 0
    several = targets.shape[1] > 1
    y, offset = targets[:count], targets[:count].mean(0) if several else torch.zeros(1)
    y = (y + 1) / 2 if "loss" in training else y - offset
    begun = time.perf_counter()
    history = widefit.train(network, inputs[:count], y, **{"tol": 1e-5 if several else 1e-10, **training})
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in inputs[count:].split(2000)])
        outputs = outputs if "loss" in training else outputs + offset
        right = outputs.argmax(1) == targets[count:].argmax(1) if several else torch.sign(outputs) == targets[count:]
    fires = max(map(firing_probability, network.thresholds))
    return 100 * float(right.float().mean()), history[-1].loss, seconds, fires


def _fit_adam(table: Table, layers: int, width: int, seed: int) -> tuple[float, float, float, float]:
    """The same figures of plain ReLUs with biases, trained by Adam on cross-entropy."""
    inputs, targets, count = table
    labels = targets.argmax(1)
    begun = time.perf_counter()
    network, loss = adam_network(inputs[:count], labels[:count], (width,) * layers, seed)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in inputs[count:].split(2000)])
    return 100 * float((outputs.argmax(1) == labels[count:]).float().mean()), loss, seconds, 0.5


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
