"""Gauss-Newton with as much damping as it takes within a step."""

from dataclasses import dataclass
from typing import ClassVar

from widefit.rules import Direction, GaussNewton, LocalProblem, RuleState, StopReason, Verdict
from widefit.rules.gauss_newton import Damping, gain_ratio

# Factor of λ after a trial that did not lower the objective, and how often in a row that is tried.
RISE = 10.0
_ATTEMPTS = 6


@dataclass(frozen=True)
class Attempt(Damping):
    """λ of the next trial, and trials of this step before it."""

    trials: float = 0


@dataclass(frozen=True)
class Backtracking(GaussNewton):
    """A Gauss-Newton step that is tried again with ten times the damping until it lowers the objective.

    A fine-tuning has few steps, and each starts from matrices that are dear to make: they serve all trials of a step.
    """

    state_type: ClassVar[type[RuleState]] = Attempt

    def judge(
        self, problem: LocalProblem, direction: Direction, after: float, bends: bool, state: Damping
    ) -> Verdict[Damping]:
        assert isinstance(state, Attempt)
        assert direction.predicted is not None
        before = problem.value
        ratio = gain_ratio(before - after, before - direction.predicted) if problem.alpha == 0 else None
        if after < before:
            return Verdict(True, Attempt(state.damping), ratio)
        following = Attempt(state.damping * RISE, state.trials + 1)
        if following.trials < _ATTEMPTS:
            return Verdict(False, following, ratio, retry=True)
        return Verdict(False, Attempt(following.damping), ratio, StopReason.STALLED)
