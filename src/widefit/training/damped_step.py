"""One step: linearize, solve (H + λI) g = r, try, judge, commit. Two-layer, deep and fine-tuning take it alike."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from widefit.rules.base import Direction, FullBatch, RuleState, Verdict
from widefit.rules.local_problem import LocalProblem
from widefit.solvers import Solver
from widefit.training.history import StepInfo
from widefit.training.phases import Phases


@runtime_checkable
class Model(Protocol):
    """Something with weights that a step can move and move back."""

    def local_problem(self) -> LocalProblem:
        """Residual, curvature and Gram operator at the committed weights."""
        ...

    def propose(self, direction: Direction) -> Any:
        """Find out what a step would do."""
        ...

    def commit(self, trial: Any) -> None:
        """Carry the latest trial out."""
        ...


@dataclass(frozen=True)
class StepResult:
    """A step that was tried, and what became of it."""

    direction: Direction
    trial: Any
    verdict: Verdict[Any]

    def info(self, step: int, loss: float) -> StepInfo:
        """The entry of the history; `loss` is that of the weights that were kept."""
        direction, verdict = self.direction, self.verdict
        solutions = direction.solutions
        return StepInfo(
            step,
            loss,
            damping=direction.damping,
            gain_ratio=verdict.gain_ratio,
            accepted=verdict.accepted,
            solver=solutions[0].solver if solutions else None,
            solver_iterations=max((solution.iterations for solution in solutions), default=0),
            residual_norm=max((solution.residual_norm for solution in solutions), default=None),
            jitter=max((solution.jitter for solution in solutions), default=0.0),
            flips=getattr(self.trial, "flips", None),
            rebased=getattr(self.trial, "rebased", False),
        )


def damped_step(model: Model, rule: FullBatch, state: RuleState, solver: Solver, phases: Phases) -> StepResult:
    """Take one step of a rule, or take it back.

    Parameters
    ----------
    model
        Moves where a trial is accepted, and stays where it is otherwise.
    rule, state
        Choose the step and judge it; the state that follows is in the verdict.
    solver
        Solves in sample space.
    phases
        Clocks; the choice of g counts as "solve".
    """
    problem = model.local_problem()
    while True:
        # Weights that overflow are seen in the outputs, and the step is taken back.
        with np.errstate(over="ignore", invalid="ignore"):
            with phases("solve"):
                direction = rule.direction(problem, state, solver)
            trial = model.propose(direction)
            verdict = rule.judge(problem, direction, problem.value_of(trial), problem.bends(trial), state)
        if verdict.accepted:
            model.commit(trial)
        if not verdict.retry:
            return StepResult(direction, trial, verdict)
        state = verdict.state
