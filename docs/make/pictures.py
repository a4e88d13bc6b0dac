"""Pictures of the documentation, drawn into docs/pictures: python docs/make/pictures.py [NAME …]

`poisson-2d` comes from stored figures (`bench/gauss_newton.py` measures and stores them); the others are computed here.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

import widefit

FOLDER = Path(__file__).parents[1] / "pictures"
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from drawing import BLUE, GREEN, GREY, ORANGE, drawn  # noqa: E402


def poisson_2d(path: Path) -> None:
    """Error against seconds, as it was measured."""
    from gauss_newton import draw

    draw(json.loads((FOLDER / "poisson-2d.json").read_text(encoding="utf-8")), path)


def flip(path: Path) -> None:
    """One neuron before and after a step: the samples beyond the line ⟨w, x⟩ = b fire, and one of them flips."""
    angles = np.radians([8, 37, 61, 80, 104, 133, 170, 214, 262, 301, 339])
    samples = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    threshold, before, after = 0.55, np.array([0.9, 0.75]), np.array([0.72, 0.98])
    with drawn(path, 2, (7.4, 3.6)) as panels:
        for panel, weight, title in zip(panels[0], (before, after), ("before the step", "after the step"), strict=True):
            fires = samples @ weight > threshold
            flips = fires != (samples @ before > threshold)
            circle = np.linspace(0, 2 * math.pi, 200)
            panel.plot(np.cos(circle), np.sin(circle), color=GREY, linewidth=0.8)
            foot, along = threshold * weight / (weight @ weight), np.array([-weight[1], weight[0]])
            edge = foot + np.array([[-1.2], [1.2]]) * along / np.linalg.norm(along)
            panel.plot(*edge.T, "--", color=GREY)
            panel.annotate("", weight, (0, 0), arrowprops={"arrowstyle": "->", "color": GREEN, "linewidth": 2})
            panel.text(weight[0] + 0.06, weight[1] + 0.02, "w", color=GREEN)
            panel.scatter(*samples[fires].T, color=ORANGE, zorder=3, label="fires")
            panel.scatter(*samples[~fires].T, color=BLUE, zorder=3, label="does not fire")
            if flips.any():
                panel.scatter(
                    *samples[flips].T, s=190, facecolors="none", edgecolors=GREY, linewidths=1.6, label="flips"
                )
            panel.set(title=title, aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.3, 1.3))
            panel.axis("off")
            panel.legend(loc="lower left", fontsize="small", handletextpad=0.2)


def certificate(path: Path) -> None:
    """Pre-activations of one neuron of a network in training, and how far each can have moved after three steps."""
    generator = torch.Generator().manual_seed(1)
    X = torch.nn.functional.normalize(torch.randn(14, 6, generator=generator, dtype=torch.float64))
    network = widefit.nn.TwoLayer(in_features=6, width=2**14, seed=0, dtype=torch.float64)
    start = network.weight.detach().clone()
    widefit.train(network, X, 3 * X[:, 0] * X[:, 1], max_iter=3, tol=0)
    moved = (network.weight.detach() - start).norm(dim=1)[:, None]  # ‖x‖ = 1: no pre-activation has moved by more
    uncertain = ((start @ X.T - network.threshold).abs() <= moved).sum(dim=1)
    neuron = int(torch.where(uncertain == 3, moved[:, 0], 0.0).argmax())
    z, bound = (X @ start[neuron]).numpy(), float(moved[neuron, 0])
    order = np.argsort(z)
    near = np.abs(z - network.threshold) <= bound
    with drawn(path, size=(7.0, 3.4)) as panel:
        rows = np.arange(len(z))
        for colour, chosen, words in (
            (GREY, ~near[order], "certified: it cannot have flipped"),
            (ORANGE, near[order], "has to be looked at"),
        ):
            panel.hlines(rows[chosen], z[order][chosen] - bound, z[order][chosen] + bound, color=colour, linewidth=2)
            panel.plot(z[order][chosen], rows[chosen], "o", color=colour, label=words)
        panel.axvline(network.threshold, color=BLUE, linestyle="--", label="threshold b")
        panel.set(
            xlabel="pre-activation ⟨w, x⟩ at the last look, and how far it can have moved", ylabel="sample", yticks=[]
        )
        panel.legend(loc="upper left", fontsize="small")


def flips(path: Path, exponents: tuple[int, ...] = (10, 12, 14, 16)) -> None:
    """Losses and flips of a Gauss-Newton run against the width: the wider, the fewer steps."""
    X = torch.nn.functional.normalize(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    y = torch.sin(4 * X[:, 0]) * X[:, 1]
    with drawn(path, 2, (7.4, 3.2)) as panels:
        loss, share = panels[0]
        for exponent in exponents:
            network = widefit.nn.TwoLayer(in_features=8, width=2**exponent, seed=0)
            history = widefit.train(network, X, y, tol=1e-10, max_iter=20)
            steps = [info.step for info in history]
            loss.semilogy(steps, history.losses, "o-", markersize=3, label=f"{2**exponent:,} neurons")
            parts = [(info.flips or 0) / (2**exponent * len(X)) for info in history[1:]]
            share.semilogy(steps[1:], np.maximum(parts, 1e-9), "o-", markersize=3)
        loss.set(xlabel="step", ylabel="loss")
        loss.legend(fontsize="small")
        share.set(xlabel="step", ylabel="share of pairs that flip")


PICTURES = {"poisson-2d": poisson_2d, "flip": flip, "certificate": certificate, "flips": flips}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name](FOLDER / f"{name}.svg")
