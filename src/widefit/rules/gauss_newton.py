"""Gauss-Newton in sample space with Levenberg-Marquardt damping: g = (H + λI)⁻¹ (f − y)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.weighted import WeightedGram, block_times
from widefit.losses.base import LocalLeastSquares
from widefit.rules.base import Direction, FullBatch, Linearization, Verdict
from widefit.solvers import Solver
from widefit.trackers import LOSSES, Update

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
    loss
        "squared"; "logistic" or "softmax" (deep networks only) as for `SGD`, through the generalized Gauss-Newton
        matrix L^½ J Jᵀ L^½ with L the second derivative of the loss in the outputs (Schraudolph 2002).
    """

    damping: float = 1e-4
    decrease: float = 0.1
    increase: float = 30.0
    loss: str = "squared"
    name: str = "gauss-newton"

    def __post_init__(self) -> None:
        if not self.damping >= 0 or not math.isfinite(self.damping):
            raise ValueError(f"damping must be a finite number ≥ 0, got {self.damping!r}")
        if not 0 < self.decrease <= 1 or not self.increase > 1:
            raise ValueError("decrease must lie in (0, 1] and increase above 1")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}, got {self.loss!r}")

    def start(self, view: Linearization) -> dict[str, float]:
        if view.objective.kind == "softmax" and view.outputs.shape[1] > 1:
            raise ValueError(
                "GaussNewton takes the softmax loss for deep networks only; for this one use rules.SGD or "
                "rules.GradientDescent"
            )
        return {"damping": self.damping}

    def direction(self, view: Linearization, memory: dict[str, float], solver: Solver) -> Direction:
        objective, local = view.objective, view.objective.expand(view.outputs)
        residual = local.residual.numpy()
        samples, outputs = residual.shape
        g, shrink, dampings = np.empty((samples, outputs)), np.zeros(outputs), np.zeros(outputs)
        gain, solutions, relative = 0.0, [], memory["damping"]
        for output in range(outputs):
            root = _root(local, objective.sample_weight, output)
            gram = view.gram(output) if root is None else WeightedGram(view.gram(output), root)
            scale = float(gram.diagonal().sum() / objective.sample_weight.sum())
            damping = max(objective.alpha, memory["damping"] * scale)
            relative = max(relative, damping / scale if scale > 0 else 0.0)
            # Of the least-squares problem √ω (r̃ + Bᵀ δ).
            error = np.sqrt(objective.sample_weight) * residual[:, output]
            if view.displacement is not None and damping > 0:
                pull = objective.alpha / damping
                response = view.displacement.response[:, output]
                squared_norm = float(view.displacement.squared_norm[output])
            else:
                pull, response, squared_norm = 0.0, np.zeros(samples), 0.0
            pulled = pull * torch.from_numpy(np.ascontiguousarray(response))
            moved = torch.from_numpy(error) - (pulled if root is None else block_times(root.mT, pulled))
            solution = solver.solve(gram, moved, damping)
            image = solution.image
            step = (solution.value if root is None else block_times(root, solution.value)).numpy()
            # ‖(1 − pull) (W − W₀) − Jᵀ g‖², expanded in sample space.
            ridge = (1 - pull) ** 2 * squared_norm - 2 * (1 - pull) * float(step @ response)
            ridge += float(solution.value @ image)
            gain += float(error @ error) - float((moved - image).square().sum())
            gain += objective.alpha * (squared_norm - ridge)
            g[:, output], shrink[output], dampings[output] = step, pull, damping
            solutions.append(solution)
        predicted = objective.value(view.outputs, view.displacement) - gain
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


def _root(local: LocalLeastSquares, weight: Float[np.ndarray, " n"], output: int) -> Tensor | None:
    """√ω B of the rows of one output as blocks, (blocks, s, s); None for the identity."""
    root, scale = local.root, torch.from_numpy(np.sqrt(weight))
    if root.ndim < 3:
        if root.ndim == 2:
            # Of outputs in one column all numbers, in the order of its rows.
            column = root.reshape(-1) if root.numel() == len(scale) else root[:, output]
            scale = scale * column
        return None if bool((scale == 1).all()) else scale[:, None, None]
    return scale[:: root.shape[1], None, None] * root
