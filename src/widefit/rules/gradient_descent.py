"""Full-batch gradient descent: g = η ω (f − y)."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from widefit.rules.base import Direction, FullBatch, RuleState, Verdict
from widefit.rules.local_problem import NetworkProblem
from widefit.rules.step_size import SCHEDULES, check_loss_of_step, check_step_size, full_batch_rate, rates
from widefit.rules.stop_reason import StopReason
from widefit.solvers import Solver

# Training that has lost this factor to its start has left the region where its step is stable.
_DIVERGED = 1e3
# Part of the decrease that the slope promises which a step of the line search has to bring: much less would let
# through steps to the far side of the valley, as high up as where they came from. And its trials at most.
_SUFFICIENT = 0.3
_TRIALS = 30


@dataclass(frozen=True)
class Descent(RuleState):
    """η before the schedule, Q at the start, steps so far, and trials of the step in progress."""

    lr: float
    first: float
    step: float = 0
    trials: float = 0


@dataclass(frozen=True)
class GradientDescent(FullBatch[Descent]):
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
    state_type: ClassVar[type[RuleState]] = Descent

    def __post_init__(self) -> None:
        check_step_size(self.lr, self.schedule, (*SCHEDULES, "line-search"), self.decay, self.period)
        check_loss_of_step(self.loss, self.lr)

    def start(self, problem: NetworkProblem) -> Descent:
        lr = full_batch_rate(problem) if self.lr == "auto" else float(self.lr)
        return Descent(lr, problem.value)

    def direction(self, problem: NetworkProblem, state: Descent, solver: Solver) -> Direction:
        lr = state.lr
        if self.schedule != "line-search":
            time = np.array([state.step], dtype=np.float64)
            lr = float(rates(lr, self.schedule, time, self.decay, self.period)[0])
        g = lr * problem.objective.sample_weight[:, None] * problem.slope
        shrink = torch.full((g.shape[1],), lr * problem.alpha, dtype=torch.float64)
        return Direction(torch.from_numpy(g), shrink)

    def judge(
        self, problem: NetworkProblem, direction: Direction, after: float, bends: bool, state: Descent
    ) -> Verdict[Descent]:
        if self.schedule == "line-search":
            return _line_search(problem, after, state)
        diverged = not math.isfinite(after) or after > _DIVERGED * state.first
        following = replace(state, step=state.step + 1)
        return Verdict(not diverged, following, stop=StopReason.DIVERGED if diverged else None)


def _line_search(problem: NetworkProblem, after: float, state: Descent) -> Verdict[Descent]:
    """Accept a sufficient decrease; otherwise try half the step."""
    # Q falls by 2 η ‖∇ ½Q‖² to first order.
    slope = 2 * problem.squared_gradient
    if slope == 0:
        return Verdict(False, state, stop=StopReason.CONVERGED)
    if after <= problem.value - _SUFFICIENT * state.lr * slope and after < problem.value:
        lr = 2 * state.lr if state.trials == 0 else state.lr
        return Verdict(True, replace(state, lr=lr, step=state.step + 1, trials=0))
    if state.trials + 1 == _TRIALS:
        return Verdict(False, replace(state, trials=0), stop=StopReason.STALLED)
    return Verdict(False, replace(state, lr=state.lr / 2, trials=state.trials + 1), retry=True)
