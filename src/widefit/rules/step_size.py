"""Lengths of gradient steps: the longest stable one, and schedules."""

import math
from numbers import Integral

import numpy as np
import torch
from jaxtyping import Float

from widefit.losses.family import check_rule_loss
from widefit.rules.local_problem import NetworkProblem

SCHEDULES = ("constant", "inverse", "cosine")


def check_step_size(lr: float | str, schedule: str, schedules: tuple[str, ...], decay: float, period: int) -> None:
    """Raise a ValueError that names what is wrong."""
    if lr != "auto" and (isinstance(lr, str | bool) or not 0 < lr < math.inf):
        raise ValueError(f'lr must be a positive number or "auto", got {lr!r}')
    if schedule not in schedules:
        raise ValueError(f"schedule must be one of {', '.join(map(repr, schedules))}, got {schedule!r}")
    if not 0 <= decay < math.inf:
        raise ValueError(f"decay must be a finite number ≥ 0, got {decay!r}")
    if isinstance(period, bool) or not isinstance(period, Integral) or period < 1:
        raise ValueError(f"period must be an integer ≥ 1, got {period!r}")


def check_loss_of_step(loss: object, lr: float | str) -> None:
    """Raise a ValueError for what is no loss, and for one without a longest stable step where that is asked for."""
    if math.isinf(check_rule_loss(loss).curvature) and lr == "auto":
        raise ValueError(
            f'loss {loss!r} has no largest second derivative, which lr="auto" needs; give lr a number, or use '
            'rule="gauss-newton"'
        )


def rates(
    lr: float, schedule: str, time: Float[np.ndarray, " t"], decay: float, period: int
) -> Float[np.ndarray, " t"]:
    """η at each time, in steps of the history.

    "constant": η. "inverse": η / (1 + decay t). "cosine": η (1 + cos π t/period) / 2, from the start again after each
    period (Loshchilov and Hutter 2017).
    """
    if schedule == "inverse":
        return lr / (1 + decay * time)
    if schedule == "cosine":
        return lr * (1 + np.cos(np.pi * (time % period) / period)) / 2
    return np.full(time.shape, lr)


def full_batch_rate(problem: NetworkProblem) -> float:
    """1 / (c λ_max(D H D) + α): half of where gradient descent on ½ Q becomes unstable, c the loss's curvature."""
    curvature = problem.objective.curvature * largest_eigenvalue(problem) + problem.objective.alpha
    return 1 / curvature if curvature > 0 else 1.0


def minibatch_rate(problem: NetworkProblem, batch: int, both_layers: bool = False) -> float:
    """1 / (c (β + (b − 1) λ_max(D H D) / n) + α b / n) with β the largest diagonal entry of D H D.

    Of constant steps along the sum over a batch drawn at random, the one that guarantees the fastest decrease of the
    expected squared distance to an interpolating solution; twice as long still converges (Ma, Bassily and Belkin 2018,
    arXiv 1712.06559, their step b / (β + (b − 1) λ₁) for means). For b = n it is all but that of gradient descent.

    With `both_layers`, b times the largest ‖φ(W x_i)‖² / m, above both terms of the second layer, is added to
    β + (b − 1) λ_max / n.
    """
    samples, objective = problem.outputs.shape[0], problem.objective
    largest = max(
        float(np.max(objective.sample_weight * problem.gram(output).diagonal().cpu().numpy()))
        for output in range(problem.outputs.shape[1])
    )
    both = largest + (batch - 1) * largest_eigenvalue(problem) / samples
    if both_layers:
        both += batch * float(np.max(objective.sample_weight * problem.features_squared()))
    curvature = objective.curvature * both
    curvature += objective.alpha * batch / samples
    return 1 / curvature if curvature > 0 else 1.0


def largest_eigenvalue(problem: NetworkProblem) -> float:
    """λ_max(D H D) over the outputs with D² the sample weights, from above by a percent: 50 power iterations."""
    largest = 0.0
    for output in range(problem.outputs.shape[1]):
        gram = problem.gram(output)
        weight = torch.from_numpy(problem.objective.sample_weight).to(gram.device)
        # All entries of K may be of one sign or not; a fixed start off every symmetry keeps the run reproducible.
        vector = torch.linspace(1, 2, gram.size, dtype=torch.float64, device=gram.device)
        value = 0.0
        for _ in range(50):
            vector = vector / torch.linalg.vector_norm(vector)
            image = weight.sqrt() * gram.matvec(weight.sqrt() * vector)
            value = float(torch.linalg.vector_norm(image))
            if value == 0:
                break
            vector = image
        largest = max(largest, 1.01 * value)
    return largest
