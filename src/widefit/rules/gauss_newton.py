"""Gauss-Newton in sample space with Levenberg-Marquardt damping: g = (H + λI)⁻¹ (f − y)."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from widefit.gram.base import DenseGram
from widefit.rules.base import Direction, FullBatch, Linearization, Verdict
from widefit.solvers import Solution, Solver
from widefit.trackers import Update

# A decrease below this part of Q is the end: what is left to gain is not worth a pass.
_CONVERGED = 1e-3
# Damping relative to the mean of diag H beyond which steps are too short to matter.
_LARGEST_DAMPING = 1e6


@dataclass(frozen=True)
class GaussNewton(FullBatch):
    """The step of arXiv 2006.11648 on an exact Gram matrix, damped by the gain ratio (Levenberg-Marquardt; this
    project).

    With a ridge α towards the initial weights the undamped step goes to W₀ + Jᵀ v, v = (H + αI)⁻¹ (y − f + J (W − W₀));
    the damping in force is max(α, λ), and it pulls the weights towards W₀ by α / max(α, λ).

    Parameters
    ----------
    damping
        λ of the first step, relative to the mean of diag H. Small: the step is all but the undamped one, which a wide
        network, whose pattern hardly changes, takes whole.
    decrease
        λ is multiplied by this after a step with a gain ratio above 0.75.
    increase
        λ is divided by `decrease` after a gain ratio below 0.25, and multiplied by this after a rejected step.
    """

    damping: float = 1e-4
    decrease: float = 0.1
    increase: float = 30.0
    name: str = "gauss-newton"

    def __post_init__(self) -> None:
        if not self.damping >= 0 or not math.isfinite(self.damping):
            raise ValueError(f"damping must be a finite number ≥ 0, got {self.damping!r}")
        if not 0 < self.decrease <= 1 or not self.increase > 1:
            raise ValueError("decrease must lie in (0, 1] and increase above 1")

    def start(self, view: Linearization) -> dict[str, float]:
        if view.objective.kind != "squared":
            raise ValueError(
                f"GaussNewton minimizes the squared loss, not the {view.objective.kind} one; use rules.SGD or "
                "rules.GradientDescent"
            )
        return {"damping": self.damping}

    def direction(self, view: Linearization, memory: dict[str, float], solver: Solver) -> Direction:
        objective = view.objective
        residual, root = view.residual, np.sqrt(objective.sample_weight)
        samples, outputs = residual.shape
        g, shrink, dampings = np.empty((samples, outputs)), np.zeros(outputs), np.zeros(outputs)
        predicted, solutions, relative = 0.0, [], memory["damping"]
        for output in range(outputs):
            gram = view.gram(output)
            scale = float(objective.sample_weight @ gram.diagonal().numpy() / objective.sample_weight.sum())
            damping = max(objective.alpha, memory["damping"] * scale)
            relative = max(relative, damping / scale if scale > 0 else 0.0)
            error = residual[:, output]
            if view.displacement is not None and damping > 0:
                pull = objective.alpha / damping
                response = view.displacement.response[:, output]
                squared_norm = float(view.displacement.squared_norm[output])
            else:
                pull, response, squared_norm = 0.0, np.zeros(samples), 0.0
            error = error - pull * response
            solution = _solve(gram, root, error, damping, solver)
            step = root * solution.value.numpy()
            image = gram.matmul(torch.from_numpy(step)).numpy()
            # ‖(1 − pull) (W − W₀) − Jᵀ g‖², expanded in sample space.
            ridge = (1 - pull) ** 2 * squared_norm - 2 * (1 - pull) * float(step @ response) + float(step @ image)
            predicted += float(objective.sample_weight @ (error - image) ** 2) + objective.alpha * ridge
            g[:, output], shrink[output], dampings[output] = step, pull, damping
            solutions.append(solution)
        return Direction(Update(g, shrink), predicted, float(dampings.mean()), relative, tuple(solutions))

    def judge(self, direction: Direction, memory: dict[str, float], before: float, after: float, flips: int) -> Verdict:
        assert direction.predicted is not None
        damping = memory["damping"]
        predicted = before - direction.predicted
        ratio = (before - after) / predicted if predicted > 0 else 0.0
        ratio = ratio if math.isfinite(ratio) else None
        # Where no neuron flips the linear model is exact: what it misses is rounding.
        exact = flips == 0 and predicted > 0
        if not (math.isfinite(after) and after < before):
            # What was in force, ridge included, was too little.
            damping = max(direction.relative_damping, 1e-8) * self.increase
            stalled = "stalled" if damping > _LARGEST_DAMPING else None
            converged = exact or predicted <= _CONVERGED * before
            return Verdict(False, {"damping": damping}, ratio, "converged" if converged else stalled)
        if before - after <= _CONVERGED * before or (exact and before - after < 0.25 * predicted):
            return Verdict(True, {"damping": damping}, ratio, "converged")
        if before - after > 0.75 * predicted:
            damping *= self.decrease
        elif before - after < 0.25 * predicted:
            damping /= self.decrease
        return Verdict(True, {"damping": damping}, ratio)


def _solve(gram: DenseGram, root: np.ndarray, error: np.ndarray, damping: float, solver: Solver) -> Solution:
    """(D H D + damping I) g = D error with D = diag(root)."""
    if np.all(root == 1):
        return solver.solve(gram, torch.from_numpy(error), damping)
    d = torch.from_numpy(root)
    return solver.solve(DenseGram(d[:, None] * gram.matrix * d), d * torch.from_numpy(error), damping)
