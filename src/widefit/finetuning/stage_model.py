"""A stage in training, with the local problem at its point and the trials of a step."""

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
    """A point that a step would reach, and the objective there."""

    point: Point
    value: float


@dataclass(frozen=True)
class StageProblem(LocalProblem):
    """Twice the surrogate loss of a stage, with its ridge, near a point.

    Attributes
    ----------
    stage, point
        Layers, rows and weights.
    alpha
        α.
    objective
        Value at the point.
    local, jacobian, operator
        The least-squares problem in the outputs, J̃ and H̃ there.
    """

    stage: Stage
    point: Point
    alpha: float
    objective: float
    local: LocalLeastSquares
    jacobian: StageJacobian
    operator: Operator

    @property
    def value(self) -> float:
        return self.objective

    def value_of(self, trial: StageTrial) -> float:
        return trial.value

    def blocks(self) -> Iterator[Block]:
        residual = self.local.residual.reshape(-1)
        if self.alpha == 0:
            yield Block(self.operator, residual, None, float(len(residual)))
            return
        response = self.stage.response(self.point, self.jacobian).reshape(-1)
        squared_norm = self.stage.squared_displacement(self.point)
        yield Block(self.operator, residual, None, float(len(residual)), response, squared_norm)


class StageModel:
    """A stage at a point that steps move.

    Parameters
    ----------
    stage, point
        Layers, rows and weights.
    surrogate
        The loss that steps minimize.
    alpha
        α.
    operator
        H̃ of the step before on the same rows, if there was one.

    Attributes
    ----------
    targets
        On the rows of the stage.
    point
        The point that the accepted steps have led to.
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
        self.targets = targets
        self._surrogate = surrogate
        self._alpha = alpha
        self._problem: StageProblem | None = None

    def local_problem(self) -> StageProblem:
        """Return the problem at the point."""
        stage, point = self._stage, self.point
        assert point.outputs is not None
        local = self._surrogate.expand(point.outputs, self.targets)
        jacobian = stage.jacobian(point, local.root)
        self.operator = operator_of(stage, point, jacobian, local.root, self.operator)
        self._problem = StageProblem(stage, point, self._alpha, self._value(point), local, jacobian, self.operator)
        return self._problem

    def propose(self, direction: Direction) -> StageTrial:
        """Return the point that a step would reach."""
        assert self._problem is not None
        step = direction.g.reshape(self._problem.local.residual.shape)
        keep = 1 - float(direction.shrink[0])
        point = self._stage.advance(self.point, self._problem.jacobian, step, keep)
        return StageTrial(point, self._value(point))

    def commit(self, trial: Any) -> None:
        """Move to the point of a trial."""
        self.point = trial.point

    def _value(self, point: Point) -> float:
        assert point.outputs is not None
        ridge = self._alpha * self._stage.squared_displacement(point) if self._alpha > 0 else 0.0
        return 2 * float(self._surrogate.value(point.outputs, self.targets)) + ridge
