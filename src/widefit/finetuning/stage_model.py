"""A stage in training: what a step sees of it, and what a step does to it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from widefit.finetuning.curvature import operator_of
from widefit.finetuning.jacobian import StageJacobian
from widefit.finetuning.stage import Point, Stage
from widefit.gram import Operator
from widefit.losses.base import LocalLeastSquares, OutputLoss
from widefit.rules import Block, Direction, LocalProblem


@dataclass(frozen=True)
class StageTrial:
    """A point that a step would reach."""

    point: Point


@dataclass(frozen=True)
class StageProblem(LocalProblem):
    """Twice the surrogate loss of a stage, with its ridge, near a point.

    Attributes
    ----------
    stage, point, targets
        Where, and what the outputs are compared with.
    surrogate
        The loss that steps minimize.
    alpha
        α.
    local, at, operator
        The least-squares problem in the outputs, J̃ and H̃ there.
    """

    stage: Stage
    point: Point
    targets: Tensor
    surrogate: OutputLoss
    alpha: float
    local: LocalLeastSquares
    at: StageJacobian
    operator: Operator

    @property
    def value(self) -> float:
        return self._value(self.point)

    def value_of(self, trial: StageTrial) -> float:
        return self._value(trial.point)

    def blocks(self) -> Iterator[Block]:
        residual = self.local.residual.reshape(-1)
        if self.alpha == 0:
            yield Block(self.operator, residual, None, float(len(residual)))
            return
        response = self.stage.displaced_outputs(self.point, self.at).reshape(-1)
        squared_norm = self.stage.displacement(self.point)
        yield Block(self.operator, residual, None, float(len(residual)), response, squared_norm)

    def _value(self, point: Point) -> float:
        assert point.outputs is not None
        ridge = self.alpha * self.stage.displacement(point) if self.alpha > 0 else 0.0
        return 2 * float(self.surrogate.value(point.outputs, self.targets)) + ridge


class StageModel:
    """A stage at a point that steps move.

    Parameters
    ----------
    stage, point, targets, surrogate, alpha
        As for `StageProblem`.
    operator
        H̃ of the step before on the same rows, if there was one.

    Attributes
    ----------
    point
        Where the accepted steps have led.
    operator
        H̃ at the latest problem.
    """

    def __init__(
        self,
        stage: Stage,
        point: Point,
        targets: Tensor,
        surrogate: OutputLoss,
        alpha: float,
        operator: Operator | None = None,
    ):
        self.point = point
        self.operator = operator
        self._stage = stage
        self._targets = targets
        self._surrogate = surrogate
        self._alpha = alpha
        self._problem: StageProblem | None = None

    def local_problem(self) -> StageProblem:
        """The problem at the point."""
        assert self.point.outputs is not None
        local = self._surrogate.expand(self.point.outputs, self._targets)
        at = self._stage.linearized(self.point, local.root)
        self.operator = operator_of(self._stage, self.point, at, local.root, self.operator)
        self._problem = StageProblem(
            self._stage, self.point, self._targets, self._surrogate, self._alpha, local, at, self.operator
        )
        return self._problem

    def propose(self, direction: Direction) -> StageTrial:
        """The point that a step would reach."""
        assert self._problem is not None
        step = direction.g.reshape(self._problem.local.residual.shape)
        keep = 1 - float(direction.shrink[0])
        return StageTrial(self._stage.moved(self.point, self._problem.at, step, keep))

    def commit(self, trial: Any) -> None:
        """Go there."""
        self.point = trial.point
