"""One stage of a fine-tuning in training: damped steps from point to point, the best of them kept."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from widefit.finetuning.backtracking import RISE, Attempt, Backtracking
from widefit.finetuning.curvature import StageSolver
from widefit.finetuning.schedule import Task
from widefit.finetuning.stage import Point
from widefit.finetuning.stage_model import StageModel
from widefit.finetuning.sweep import parts_of, swept
from widefit.gram import Operator
from widefit.losses.base import OutputLoss
from widefit.records import FileError
from widefit.rules import StopReason
from widefit.training.damped_step import damped_step
from widefit.training.history import StepInfo
from widefit.training.phases import Phases
from widefit.training.saved import check_tensors

# The smallest relative λ, for steps after one that did not gain.
_SMALLEST = 0.01
# A step that lowers the loss that is watched by less than this part of it counts as none.
_GAIN = 0.02


@dataclass(frozen=True)
class Problem:
    """The objective of a fine-tuning, and how long to follow it.

    Attributes
    ----------
    loss
        The loss that is reported.
    surrogate
        The loss that steps minimize: the given one, or its Moreau envelope.
    targets, held_targets
        On training and held-out rows.
    alpha
        Ridge: α/2 ‖θ − θ₀‖² is added.
    patience
        Steps without a lower held-out loss that end a stage.
    batch_size
        Rows a step; None: all.
    seed
        Orders the batches.
    """

    loss: OutputLoss
    surrogate: OutputLoss
    targets: Tensor
    held_targets: Tensor | None
    alpha: float
    patience: int
    batch_size: int | None
    seed: int


@dataclass(frozen=True)
class Progress:
    """Numbers that a stage goes on from.

    Attributes
    ----------
    damping
        λ of the next step, as a part of the mean of diag H.
    waited
        Steps since the last one that gained.
    best_loss
        The loss that is watched, at the best point.
    """

    damping: float
    waited: int
    best_loss: float

    def __post_init__(self) -> None:
        if not (self.damping > 0 and math.isfinite(self.damping)):
            raise ValueError(f"damping must be a positive number, got {self.damping}")
        if self.waited < 0:
            raise ValueError(f"waited must be a number of steps, got {self.waited}")
        if not math.isfinite(self.best_loss):
            raise ValueError(f"best_loss must be a finite number, got {self.best_loss}")


class StageRun:
    """A stage that takes steps.

    Parameters
    ----------
    task
        The stage, its last step and its first damping.
    problem
        The objective.
    generator
        Draws the batches.
    phases
        Clocks.

    Attributes
    ----------
    stage
        The layers.
    best
        The point with the lowest loss so far: on held-out rows, where there are some.
    """

    def __init__(self, task: Task, problem: Problem, generator: torch.Generator, phases: Phases):
        self.stage = task.stage
        self.best = task.stage.start()
        self._task = task
        self._problem = problem
        self._generator = generator
        self._phases = phases
        self._point = self.best
        first = self.info()
        self._progress = Progress(task.damping, 0, _watched(first))
        self._operator: Operator | None = None
        self._solver = StageSolver()

    def info(self) -> StepInfo:
        """Return an entry of the history before any step of the stage.

        Raises
        ------
        ValueError
            The losses are not finite.
        """
        info = StepInfo(0, self._loss(self.best, self._problem.targets), self._held_loss(self.best))
        for name, value in (("X", info.loss), ("the held-out rows", info.metric)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"model: its loss on {name} is {value}, fine-tuning needs one that is finite")
        return info

    def step(self, number: int) -> tuple[StepInfo, StopReason | None]:
        """Take a step with as much damping as it takes; its entry, and why the stage ends, if it does."""
        info, damping, stop = self._damped_step(number)
        watched = _watched(info)
        best_loss = self._progress.best_loss
        waited = 0 if watched < best_loss * (1 - _GAIN) else self._progress.waited + 1
        if info.accepted:
            least = min(_SMALLEST, self._task.damping) if waited else self._task.damping
            damping = max(least, damping / RISE)
        if watched < best_loss:
            self.best = self._point
            best_loss = watched
        self._progress = Progress(damping, waited, best_loss)
        if stop is None and waited >= self._problem.patience:
            stop = StopReason.CONVERGED
        if stop is None and number >= self._task.limit:
            stop = StopReason.MAX_ITER
        return info, stop

    @property
    def progress(self) -> Progress:
        """Numbers that the stage goes on from."""
        return self._progress

    def tensors(self) -> dict[str, Tensor]:
        """Return the present and the best point."""
        return tensors_of("point", self._point) | tensors_of("best", self.best)

    def take_point(self, name: str, tensors: dict[str, Tensor]) -> Point:
        """Return the point that `tensors_of` gave, and remove its tensors.

        Raises
        ------
        FileError
            Tensors that are absent, unknown, or of another type or shape; numbers that are not finite.
        """
        start = self.stage.start()
        given = {key: tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
        check_tensors(given, tensors_of(name, start))
        for key, tensor in given.items():
            if not bool(torch.isfinite(tensor).all()):
                raise FileError(f"{key!r} of the checkpoint is not finite")
        weights = {key: given[f"{name}.weights.{key}"].to(weight) for key, weight in start.weights.items()}
        if self._in_batches:
            return self.stage.held_out_point(weights)
        coefficients = [
            given[f"{name}.sample_coefficients.{number}"].to(values)
            for number, values in enumerate(start.sample_coefficients)
        ]
        return self.stage.point(coefficients, weights)

    def restore(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Go on from what `tensors`, which are removed, and `progress` gave."""
        start = self._point
        self._point = self.take_point("point", tensors)
        self.best = self.take_point("best", tensors)
        self._progress = progress
        if not (self._in_batches or self._in_parts):
            # The first step of a stage makes the mean block that the others are solved behind.
            first = StageModel(self.stage, start, self._problem.targets, self._problem.surrogate, 0.0)
            self._operator = first.local_problem().operator

    def _damped_step(self, number: int) -> tuple[StepInfo, float, StopReason | None]:
        """One step, the damping that follows, and whether the stage has stalled."""
        if self._in_parts:
            found = self._swept(number)
            if found is not None:
                return *found, None
            # Parts that have nothing in common undo each other; nothing is kept between such steps.
            self._operator, self._solver = None, StageSolver()
        problem = self._problem
        model = self._batch_model() if self._in_batches else self._whole_model()
        rule = Backtracking(damping=self._task.damping)
        result = damped_step(model, rule, Attempt(self._progress.damping), self._solver, self._phases)
        self._operator = model.operator
        if result.verdict.accepted:
            self._point = self.stage.held_out_point(model.point.weights) if self._in_batches else model.point
        loss = float(problem.loss.value(_outputs(model.point), model.targets))
        info = replace(result.info(number, loss), metric=self._held_loss(self._point))
        return info, result.verdict.state.damping, result.verdict.stop

    def _swept(self, number: int) -> tuple[StepInfo, float] | None:
        """A step that goes through the rows in parts, and its damping; None where it does not lower the objective."""
        problem = self._problem
        sweep = swept(
            self.stage,
            self._point,
            problem.targets,
            problem.surrogate,
            self._progress.damping,
            self._generator,
            self._phases,
        )
        before = self._surrogate_value(self._point)
        point = self.stage.point(sweep.sample_coefficients, {})
        if not self._surrogate_value(point) < before:
            return None
        self._point = point
        info = replace(
            sweep.last.info(number, self._loss(point, problem.targets)),
            metric=self._held_loss(point),
            accepted=True,
            solver_iterations=sweep.iterations,
            gain_ratio=None,
        )
        return info, sweep.damping

    def _surrogate_value(self, point: Point) -> float:
        return float(self._problem.surrogate.value(_outputs(point), self._problem.targets))

    def _whole_model(self) -> StageModel:
        problem = self._problem
        return StageModel(self.stage, self._point, problem.targets, problem.surrogate, problem.alpha, self._operator)

    def _batch_model(self) -> StageModel:
        problem = self._problem
        order = torch.randperm(len(problem.targets), generator=self._generator)
        rows = order[: problem.batch_size].to(problem.targets.device)
        stage, point = self.stage.minibatch(self._point, rows)
        return StageModel(stage, point, problem.targets[rows], problem.surrogate, problem.alpha)

    @property
    def _in_batches(self) -> bool:
        """True where steps take some of the rows."""
        return self._problem.batch_size is not None and not self.stage.boundary

    @cached_property
    def _in_parts(self) -> bool:
        """True where steps go through the rows in parts: layers with frozen inputs in front of others."""
        alone = bool(self.stage.boundary) and not self.stage.weights and self._problem.alpha == 0
        return alone and parts_of(len(self._problem.targets)) > 1 and not self.stage.is_readout(self.best)

    def _loss(self, point: Point, targets: Tensor) -> float:
        return float(self._problem.loss.value(_outputs(point), targets))

    def _held_loss(self, point: Point) -> float | None:
        if point.held_out is None or self._problem.held_targets is None:
            return None
        return float(self._problem.loss.value(point.held_out, self._problem.held_targets))


def tensors_of(name: str, point: Point) -> dict[str, Tensor]:
    """Return what a point is restored from, by names that begin with its own."""
    coefficients = {
        f"{name}.sample_coefficients.{number}": values for number, values in enumerate(point.sample_coefficients)
    }
    return coefficients | {f"{name}.weights.{key}": weight for key, weight in point.weights.items()}


def _outputs(point: Point) -> Tensor:
    assert point.outputs is not None
    return point.outputs


def _watched(info: StepInfo) -> float:
    """The loss by which points are compared."""
    return info.loss if info.metric is None else info.metric
