"""Full-batch gradient descent: g = η ω (f − y)."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from widefit.rules.base import Direction, FullBatch, Linearization, Outcome, Run, Verdict
from widefit.rules.step_size import SCHEDULES, check_step_size, full_batch_rate, rates
from widefit.solvers import Solver
from widefit.trackers import LOSSES, Update

# Training that has lost this factor to its start has left the region where its step is stable.
_DIVERGED = 1e3
# Part of the decrease that the slope promises which a step of the line search has to bring: much less would let
# through steps to the far side of the valley, as high up as where they came from. And its trials at most.
_SUFFICIENT = 0.3
_TRIALS = 30


@dataclass(frozen=True)
class GradientDescent(FullBatch):
    """W ← W − lr ∇_W ½ Q, with Q = Σ_i ω_i ‖f(x_i) − y_i‖² + α ‖W − W₀‖² for the squared loss.

    Parameters
    ----------
    lr
        η > 0, or "auto": 1 / (c λ_max(H) + α) at the first step, found by power iteration; c is 1, ¼ and ½ for the
        squared, the logistic and the softmax loss, the largest second derivative.
    schedule
        What becomes of η after t steps. "constant". "inverse": η / (1 + decay t). "cosine": η (1 + cos π t / period) /
        2, from the start again every `period` steps. "line-search": Armijo's rule by backtracking (Boyd and
        Vandenberghe 2004, section 9.2). A step starts from the η that the last one found, twice that if its first
        trial was good, and halves it until Q falls by 0.3 of what its slope promises; a trial costs a pass of the
        tracker. After 30 trials the run ends as "stalled".
    loss
        As for `SGD`.
    decay, period
        Of the schedules that use them.

    Raises
    ------
    ValueError
        An argument out of its range.
    """

    lr: float | str = "auto"
    schedule: str = "constant"
    loss: str = "squared"
    decay: float = 0.1
    period: int = 20
    name: str = "gradient-descent"

    def __post_init__(self) -> None:
        check_step_size(self.lr, self.schedule, (*SCHEDULES, "line-search"), self.decay, self.period)
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}, got {self.loss!r}")

    def start(self, view: Linearization) -> dict[str, float]:
        lr = full_batch_rate(view) if self.lr == "auto" else float(self.lr)
        return {"lr": lr, "first": view.objective.value(view.outputs, view.displacement), "step": 0}

    def step(self, run: Run, memory: dict[str, float], solver: Solver) -> Outcome:
        # A step that overflows is seen in the outputs and taken back.
        with np.errstate(over="ignore", invalid="ignore"):
            if self.schedule == "line-search":
                return _line_search(run, memory)
            return super().step(run, memory, solver)

    def direction(self, view: Linearization, memory: dict[str, float], solver: Solver) -> Direction:
        time = np.array([memory["step"]], dtype=np.float64)
        return _direction(view, float(rates(memory["lr"], self.schedule, time, self.decay, self.period)[0]))

    def judge(self, direction: Direction, memory: dict[str, float], before: float, after: float, flips: int) -> Verdict:
        diverged = not math.isfinite(after) or after > _DIVERGED * memory["first"]
        memory = {**memory, "step": memory["step"] + 1}
        return Verdict(not diverged, memory, stop="diverged" if diverged else None)


def _direction(view: Linearization, lr: float) -> Direction:
    g = lr * view.objective.sample_weight[:, None] * view.slope
    return Direction(Update(g, np.full(view.outputs.shape[1], lr * view.objective.alpha)))


def _line_search(run: Run, memory: dict[str, float]) -> Outcome:
    view, lr = run.view(), memory["lr"]
    before = view.objective.value(view.outputs, view.displacement)
    # Q falls by 2 η ‖∇ ½Q‖² to first order.
    slope = 2 * _squared_gradient(view)
    if slope == 0:
        return Outcome(Verdict(False, memory, stop="converged"), 0, False)
    trial, direction = None, None
    for number in range(_TRIALS):
        direction = _direction(view, lr)
        trial = run.propose(direction.update)
        after = view.objective.value(trial.outputs, trial.displacement)
        if after <= before - _SUFFICIENT * lr * slope and after < before:
            run.commit(trial)
            memory = {**memory, "lr": 2 * lr if number == 0 else lr, "step": memory["step"] + 1}
            return Outcome(Verdict(True, memory), trial.flips, trial.rebased, direction)
        lr /= 2
    assert trial is not None
    return Outcome(Verdict(False, memory, stop="stalled"), trial.flips, trial.rebased, direction)


def _squared_gradient(view: Linearization) -> float:
    """‖∇_W ½Q‖² = ‖Jᵀ ω ∂ℓ + α (W − W₀)‖², expanded in sample space."""
    alpha, total = view.objective.alpha, 0.0
    error = view.objective.sample_weight[:, None] * view.slope
    for output in range(error.shape[1]):
        image = view.gram(output).matvec(torch.from_numpy(np.ascontiguousarray(error[:, output]))).numpy()
        total += float(error[:, output] @ image)
        if view.displacement is not None:
            total += 2 * alpha * float(error[:, output] @ view.displacement.response[:, output])
            total += alpha**2 * float(view.displacement.squared_norm[output])
    return max(total, 0.0)
