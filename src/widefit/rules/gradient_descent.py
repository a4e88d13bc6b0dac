"""Full-batch gradient descent: g = η ω (f − y)."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from widefit.rules.base import Direction, FullBatch, Linearization, Verdict
from widefit.solvers import Solver
from widefit.trackers import Update

# Training that has lost this factor to its start has left the region where its step is stable.
_DIVERGED = 1e3


@dataclass(frozen=True)
class GradientDescent(FullBatch):
    """W ← W − lr ∇_W ½ Q, with Q = Σ_i ω_i ‖f(x_i) − y_i‖² + α ‖W − W₀‖².

    Parameters
    ----------
    lr
        η > 0, or "auto": 1 / (λ_max(H) + α) at the first step, found by power iteration.
    """

    lr: float | str = "auto"
    name: str = "gradient-descent"

    def __post_init__(self) -> None:
        if self.lr != "auto" and (isinstance(self.lr, str) or not 0 < self.lr < math.inf):
            raise ValueError(f'lr must be a positive number or "auto", got {self.lr!r}')

    def start(self, view: Linearization) -> dict[str, float]:
        lr = float(self.lr) if self.lr != "auto" else 1 / (_largest_eigenvalue(view) + view.objective.alpha)
        return {"lr": lr, "first": view.objective.value(view.outputs, view.displacement)}

    def direction(self, view: Linearization, memory: dict[str, float], solver: Solver) -> Direction:
        lr, outputs = memory["lr"], view.outputs.shape[1]
        g = lr * view.objective.sample_weight[:, None] * view.residual
        return Direction(Update(g, np.full(outputs, lr * view.objective.alpha)))

    def judge(self, direction: Direction, memory: dict[str, float], before: float, after: float, flips: int) -> Verdict:
        diverged = not math.isfinite(after) or after > _DIVERGED * memory["first"]
        return Verdict(not diverged, memory, stop="diverged" if diverged else None)


def _largest_eigenvalue(view: Linearization) -> float:
    """λ_max(D H D) over the outputs with D² the sample weights, from above by a percent: 50 power iterations."""
    weight = torch.from_numpy(view.objective.sample_weight)
    largest = 0.0
    for output in range(view.outputs.shape[1]):
        gram = view.gram(output)
        # All entries of K may be of one sign or not; a fixed start off every symmetry keeps the run reproducible.
        vector = torch.linspace(1, 2, gram.size, dtype=torch.float64)
        value = 0.0
        for _ in range(50):
            vector = vector / torch.linalg.vector_norm(vector)
            image = weight.sqrt() * gram.matmul(weight.sqrt() * vector)
            value = float(torch.linalg.vector_norm(image))
            if value == 0:
                break
            vector = image
        largest = max(largest, 1.01 * value)
    return largest if largest > 0 else 1.0
