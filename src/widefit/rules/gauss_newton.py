"""Gauss-Newton in sample space with Levenberg-Marquardt damping: g = (H + λI)⁻¹ (f − y)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from widefit.kernels.transfer import numbers
from widefit.losses.family import check_rule_loss
from widefit.rules.base import Direction, FullBatch, RuleState, Verdict
from widefit.rules.local_problem import Block, LocalProblem, NetworkProblem
from widefit.rules.stop_reason import StopReason
from widefit.solvers import Solution, Solver
from widefit.solvers.warm_start import solve_from

# A decrease below this part of Q is the end: what is left to gain is not worth a pass.
_CONVERGED = 1e-3
# Damping relative to the mean of diag H beyond which steps are too short to matter.
_LARGEST_DAMPING = 1e6


@dataclass(frozen=True)
class Damping(RuleState):
    """λ of the next step, relative to the mean of diag H."""

    damping: float


@dataclass(frozen=True)
class GaussNewton(FullBatch[Damping]):
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
        "squared"; "logistic" or "softmax" as for `SGD`, "poisson", "huber(δ)" or "quantile(q, δ)", through the
        generalized Gauss-Newton matrix L^½ J Jᵀ L^½ with L the second derivative of the loss in the outputs
        (Schraudolph 2002), or a majorant: where the loss has kinks, and for "softmax" in a two-layer network, where
        every output has neurons of its own.
    """

    damping: float = 1e-4
    decrease: float = 0.1
    increase: float = 30.0
    loss: str = "squared"
    name: str = "gauss-newton"
    state_type: ClassVar[type[RuleState]] = Damping

    def __post_init__(self) -> None:
        if not self.damping >= 0 or not math.isfinite(self.damping):
            raise ValueError(f"damping must be a finite number ≥ 0, got {self.damping!r}")
        if not 0 < self.decrease <= 1 or not self.increase > 1:
            raise ValueError("decrease must lie in (0, 1] and increase above 1")
        check_rule_loss(self.loss)

    def start(self, problem: NetworkProblem) -> Damping:
        return Damping(self.damping)

    def direction(self, problem: LocalProblem, state: Damping, solver: Solver) -> Direction:
        steps = problem.each_block(lambda block: _solve(block, problem.alpha, state.damping, solver))
        return Direction(
            torch.stack([step.g for step in steps], dim=1),
            torch.tensor([step.pull for step in steps], dtype=torch.float64),
            problem.value - sum(step.gain for step in steps),
            sum(step.damping for step in steps) / len(steps),
            max(state.damping, *(step.relative_damping for step in steps)),
            tuple(step.solution for step in steps),
            _stacked([step.image for step in steps]),
        )

    def judge(
        self, problem: LocalProblem, direction: Direction, after: float, bends: bool, state: Damping
    ) -> Verdict[Damping]:
        assert direction.predicted is not None
        before, damping = problem.value, state.damping
        decrease, predicted = before - after, before - direction.predicted
        ratio = gain_ratio(decrease, predicted)
        # Where the model is exactly linear, what it misses is rounding.
        exact = not bends and predicted > 0
        least = _CONVERGED
        if isinstance(problem, NetworkProblem) and problem.collected is not None:
            # The next solve begins where this one has ended: what both have left undone is no reason for it.
            least = max(least, *(solution.residual_norm for solution in direction.solutions))
        if not (math.isfinite(after) and after < before):
            # What was in force, ridge included, was too little.
            damping = max(direction.relative_damping, 1e-8) * self.increase
            stalled = StopReason.STALLED if damping > _LARGEST_DAMPING else None
            converged = exact or predicted <= least * before
            return Verdict(False, Damping(damping), ratio, StopReason.CONVERGED if converged else stalled)
        if decrease <= least * before or (exact and decrease < 0.25 * predicted):
            return Verdict(True, state, ratio, StopReason.CONVERGED)
        if decrease > 0.75 * predicted:
            damping *= self.decrease
        elif decrease < 0.25 * predicted:
            damping /= self.decrease
        return Verdict(True, Damping(damping), ratio)


def gain_ratio(actual: float, predicted: float) -> float | None:
    """Actual over predicted decrease; None where it is not finite."""
    ratio = actual / predicted if predicted > 0 else 0.0
    return ratio if math.isfinite(ratio) else None


def _stacked(columns: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the columns as a matrix; None where one is missing."""
    known = [column for column in columns if column is not None]
    return torch.stack(known, dim=1) if len(known) == len(columns) else None


@dataclass(frozen=True)
class _Step:
    """Step of one block: g, H g where known, the pull towards W₀, the predicted decrease of Q, and how it was found."""

    g: torch.Tensor
    image: torch.Tensor | None
    pull: float
    gain: float
    damping: float
    relative_damping: float
    solution: Solution


def _solve(block: Block, alpha: float, level: float, solver: Solver) -> _Step:
    """Minimize ‖r̃ − J̃ δ‖² + α ‖W − W₀ + δ‖² with as much damping as `level` asks for beyond the ridge."""
    scale = block.scale
    damping = max(alpha, level * scale)
    pull = alpha / damping if block.response is not None and damping > 0 else 0.0
    rhs = block.residual
    if block.response is not None:
        rhs = rhs - pull * block.weighted(block.response)
    guess = None if block.guess is None else pull * block.guess
    solution = solve_from(solver, block.operator, rhs, damping, guess)
    image = solution.image
    g = block.unweighted(solution.value)
    wanted = [block.residual.double().square().sum() - (rhs - image).double().square().sum()]
    if alpha > 0 and block.response is not None:
        wanted += [g.double() @ block.response.double(), solution.value.double() @ image.double()]
    gain, *products = numbers(*wanted)
    if products:
        # ‖(1 − pull) (W − W₀) − Jᵀ g‖², expanded in sample space.
        kept = 1 - pull
        ridge = kept**2 * block.squared_norm - 2 * kept * products[0]
        ridge += products[1]
        gain += alpha * (block.squared_norm - ridge)
    return _Step(g, block.unweighted_image(image), pull, gain, damping, damping / scale if scale > 0 else 0.0, solution)
