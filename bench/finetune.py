"""A trained ReLU network adapted to rotated and to relabelled handwritten digits: widefit beside tuned Adam."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from finetune_peers import adam_runs
from harness import describe_machine, entry, main, synchronize
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import widefit
from widefit.data.readers import read_table

# Widths, adaptation rows, and epochs of the training that comes before.
SIZES = {
    "quick": ((256,), (300,), 3),
    "default": ((1024, 4096), (1000,), 2),
    "full": ((256, 512, 1024, 2048, 4096), (100, 300, 1000, 3000), 4),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ANGLE = math.radians(45)
LABELS = (3, 7, 1, 9, 0, 2, 8, 5, 4, 6)
HELD_OUT, PRETRAINING = 2000, 20_000


@dataclass(frozen=True)
class Digits:
    """Square images in rows, grey values in [0, 1], with their digits."""

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: str) -> "Digits":
        """The same on a device."""
        tensors = (self.images, self.labels, self.test_images, self.test_labels)
        return Digits(self.name, *(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class Task:
    """Rows to adapt to, and rows to measure on."""

    inputs: Tensor
    targets: Tensor
    held_out: Tensor
    wanted: Tensor

    def accuracy(self, model: nn.Module) -> float:
        """Right answers on the held-out rows, in percent."""
        with torch.no_grad():
            return 100 * float((model(self.held_out).argmax(1) == self.wanted).double().mean())


@dataclass(frozen=True)
class Reached:
    """Seconds of adapting, and the accuracy afterwards."""

    setting: str
    seconds: float
    accuracy: float


def run(
    size: str,
    data: str = "",
    widths: str = "",
    samples: str = "",
    limit: float = 20.0,
    draws: str = "0",
    clock: str = "wall",
    device: str = "cpu",
) -> dict:
    """Time to the same held-out accuracy: the lower of the two bests, each side in its fastest setting.

    `data` is an NPZ file with X_train, y_train, X_test, y_test, or "openml" for MNIST from there; without it the small
    digits that come with scikit-learn. `limit`: seconds an Adam run may take. `draws`: numbers of the draws of the
    network to adapt and of the rows to adapt to. `clock`: "wall", or
    "cpu" for processor seconds where the machine has other work (with OMP_NUM_THREADS=1 they are those of one core).
    `device`: of torch, for both sides.
    """
    chosen_widths, chosen_samples, epochs = SIZES[size]
    chosen_widths = _numbers(widths) or chosen_widths
    chosen_samples = _numbers(samples) or chosen_samples
    digits = _digits(data).to(device)

    def now() -> float:
        synchronize(device)
        return CLOCKS[clock]()

    _warm_up()
    figures, skipped = [], []
    drawn = _numbers(draws)
    for width, draw in itertools.product(chosen_widths, drawn):
        model = _trained(digits, width, epochs, draw)
        which = f", draw {draw}" if len(drawn) > 1 else ""
        before = _task("as trained", digits, 1, 0).accuracy(model)
        figures.append(entry(f"m = {width}{which}, accuracy as trained", before, "%"))
        for kind, rows in itertools.product(("rotated", "relabelled"), chosen_samples):
            if (draw + 1) * rows > len(digits.images):
                skipped.append({"name": f"{kind}, n = {rows}{which}", "reason": f"{digits.name} has fewer rows"})
                continue
            task = _task(kind, digits, rows, draw)
            figures += _compared(f"{kind}, m = {width}, n = {rows}{which}", model, task, limit, now)
    settings = {
        "data": digits.name,
        "widths": chosen_widths,
        "samples": chosen_samples,
        "limit": limit,
        "draws": drawn,
        "clock": clock,
        "device": device,
        "size": size,
    }
    return {"machine": describe_machine(), "settings": settings, "figures": figures, "skipped": skipped}


def _compared(name: str, model: nn.Module, task: Task, limit: float, clock: Callable[[], float]) -> list[dict]:
    """Each kind of peer against widefit, to the lower of the two bests."""
    ours = list(_widefit_runs(model, task, clock))
    peers = [Reached(*found) for found in adam_runs(model, task.inputs, task.targets, task.accuracy, limit, clock)]
    best, default = max(found.accuracy for found in ours), ours[0]
    figures = [
        entry(f"{name}, accuracy before", task.accuracy(model), "%"),
        entry(f"{name}, widefit, best accuracy", best, "%"),
        entry(f"{name}, widefit, defaults, accuracy", default.accuracy, "%"),
        entry(f"{name}, widefit, defaults, time", default.seconds, "s"),
    ]
    for kind in ("all layers", "readout"):
        side = [found for found in peers if found.setting.endswith(kind)]
        peer_best = max(found.accuracy for found in side)
        goal = min(best, peer_best)
        mine, theirs = _fastest(ours, goal), _fastest(side, goal)
        ratio = theirs.seconds / mine.seconds
        against = f"Adam, {kind}"
        figures += [
            entry(f"{name}, {against}, best accuracy", peer_best, "%"),
            entry(f"{name}, {against}, to {goal:.1f}% ({theirs.setting})", theirs.seconds, "s"),
            entry(f"{name}, widefit, to {goal:.1f}% ({mine.setting})", mine.seconds, "s", against, ratio),
        ]
    return figures


def _fastest(found: list[Reached], goal: float) -> Reached:
    return min((one for one in found if one.accuracy >= goal), key=lambda one: one.seconds)


def _warm_up() -> None:
    """Import what is imported at the first call, on both sides."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, targets = torch.randn(40, 4), torch.arange(40) % 3
    widefit.finetune(model, inputs, targets, loss="cross_entropy")
    next(adam_runs(model, inputs, targets, lambda _: 0.0, 1.0, time.perf_counter))


def _widefit_runs(model: nn.Module, task: Task, clock: Callable[[], float]) -> Iterator[Reached]:
    """Whole calls: the defaults, and all rows with so many steps."""
    settings: dict[str, dict] = {"defaults": {}}
    every = {"validation": 0, "tol": 0, "patience": 99}
    settings |= {
        f"readout, {steps} steps": {"layers": "readout", "max_iter": steps} | every for steps in (1, 2, 3, 5, 8)
    }
    settings |= {f"auto, {steps} steps": {"max_iter": steps} | every for steps in (2, 3, 4, 6, 8)}
    for name, options in settings.items():
        begun = clock()
        adapted = widefit.finetune(model, task.inputs, task.targets, loss="cross_entropy", **options)
        yield Reached(name, clock() - begun, task.accuracy(adapted))


def _trained(digits: Digits, width: int, epochs: int, draw: int) -> nn.Module:
    """Two hidden layers, trained by Adam with falling rates."""
    torch.manual_seed(draw)
    images, labels = digits.images[:PRETRAINING], digits.labels[:PRETRAINING]
    model = nn.Sequential(
        *(nn.Linear(images.shape[1], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    ).to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5**epoch
        for rows in torch.randperm(len(images)).split(128):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model


def _task(kind: str, digits: Digits, rows: int, draw: int) -> Task:
    """Rows in another shape, or with another label, than those of the training before."""
    drawn = slice(len(digits.images) - (draw + 1) * rows, len(digits.images) - draw * rows)
    change: Callable[[Tensor], Tensor] = _rotated if kind == "rotated" else lambda images: images
    names = torch.tensor(LABELS) if kind == "relabelled" else torch.arange(10)
    names = names.to(digits.labels.device)
    return Task(
        change(digits.images[drawn]),
        names[digits.labels[drawn]],
        change(digits.test_images[:HELD_OUT]),
        names[digits.test_labels[:HELD_OUT]],
    )


def _rotated(images: Tensor) -> Tensor:
    side = math.isqrt(images.shape[1])
    square = images.reshape(-1, 1, side, side)
    turn = torch.tensor([[math.cos(ANGLE), -math.sin(ANGLE), 0.0], [math.sin(ANGLE), math.cos(ANGLE), 0.0]]).to(images)
    grid = functional.affine_grid(turn.expand(len(square), 2, 3), list(square.shape), align_corners=False)
    return functional.grid_sample(square, grid, align_corners=False).reshape(images.shape)


def _digits(path: str) -> Digits:
    """All rows in a fixed random order."""
    if path and path != "openml":
        names = ("X_train", "y_train", "X_test", "y_test")
        try:
            with np.load(path) as file:
                parts = [file[name] for name in names]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"--data: {path} is not an NPZ file with {', '.join(names)}: {error}") from error
        return _made(Path(path).stem, *parts)
    if not path:
        X, y = (np.asarray(part) for part in load_digits(return_X_y=True))
        return _made("digits of scikit-learn", X[:1400], y[:1400], X[1400:], y[1400:])
    table = read_table("openml:mnist_784")
    pixels = table.frame.drop(str(table.target)).to_numpy()
    labels = table.frame[str(table.target)].to_numpy()
    return _made("MNIST from OpenML", pixels[:60_000], labels[:60_000], pixels[60_000:], labels[60_000:])


def _made(name: str, X: np.ndarray, y: np.ndarray, X_test: np.ndarray, y_test: np.ndarray) -> Digits:
    def shuffled(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        order = np.random.default_rng(0).permutation(len(images))
        pixels = images.reshape(len(images), -1)[order].astype(np.float32) / float(X.max())
        return torch.from_numpy(pixels), torch.from_numpy(labels[order].astype(np.int64))

    return Digits(name, *shuffled(X, y), *shuffled(X_test, y_test))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def draw(result: dict, path: Path) -> None:
    """How many times sooner, over the number of rows, a line for every task and width."""
    import matplotlib.pyplot as plt

    lines: dict[str, list[tuple[int, float]]] = {}
    for line in result["figures"]:
        if line["ratio"] is not None:
            kind, width, rows = line["name"].split(", ")[:3]
            lines.setdefault(f"{kind}, {width}, {line['against']}", []).append(
                (int(rows.removeprefix("n = ")), line["ratio"])
            )
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="rows to adapt to", ylabel="times sooner")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main("finetune", run, draw)
