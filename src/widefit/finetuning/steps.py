"""The steps of a fine-tuning, stage by stage, as the loop takes them; the best weights on held-out rows are kept."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from widefit.finetuning.backtracking import RISE, Attempt, Backtracking
from widefit.finetuning.curvature import StageSolver
from widefit.finetuning.delta import LowRankDelta
from widefit.finetuning.schedule import Schedule, Task
from widefit.finetuning.stage import Point, Stage
from widefit.finetuning.stage_model import StageModel
from widefit.gram import Operator
from widefit.losses.base import OutputLoss
from widefit.plan.base import Choice
from widefit.rules import StopReason
from widefit.training.damped_step import damped_step
from widefit.training.history import StepInfo
from widefit.training.loop import State
from widefit.training.phases import Phases

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


class FineTuningSteps:
    """Damped steps through the stages of a schedule; the stepper of `widefit.finetune`.

    Parameters
    ----------
    model
        The module as it was given.
    problem
        The objective.
    schedule
        Gives the stages, one after the other.

    Attributes
    ----------
    stages
        Layers that were trained together, stage by stage.
    choices
        What the schedule chose, and why.
    """

    def __init__(self, model: nn.Module, problem: Problem, schedule: Schedule):
        self.phases = Phases()
        self.stages: list[tuple[str, ...]] = []
        self._model = model
        self._problem = problem
        self._schedule = schedule
        self._generator = torch.Generator().manual_seed(problem.seed)
        self._step = 0
        self._finished: list[Point] = []
        self._delta = LowRankDelta({})
        self._tasks = schedule.tasks(lambda: self._delta)
        self._operator: Operator | None = None
        self._begin_task(next(self._tasks))

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What the schedule chose, and why."""
        return tuple(self._schedule.choices)

    @property
    def delta(self) -> LowRankDelta:
        """The best weights so far, minus those that were given."""
        return self._delta.plus(self._task.stage.delta(self._best))

    def begin(self) -> StepInfo:
        """The losses before any step."""
        return StepInfo(0, self._loss(self._point, self._problem.targets), self._held_loss(self._point))

    def step(self) -> tuple[StepInfo, StopReason | None]:
        """A step with as much damping as it takes; a stage that ends hands over to the next."""
        self._step += 1
        info, stop = self._damped_step()
        watched = self._watched(info.loss, info.metric)
        self._waited = 0 if watched < self._best_loss * (1 - _GAIN) else self._waited + 1
        if info.accepted:
            least = min(_SMALLEST, self._task.damping) if self._waited else self._task.damping
            self._state = Attempt(max(least, self._state.damping / RISE))
        if watched < self._best_loss:
            self._best = self._point
            self._best_loss = watched
        if stop is None and self._waited >= self._problem.patience:
            stop = StopReason.CONVERGED
        if stop is None and self._step >= self._task.limit:
            stop = StopReason.MAX_ITER
        return info, None if stop is None else self._end_task(stop)

    def state(self) -> State:
        """The points of all stages, and where the present one stands."""
        tensors = _tensors_of("point", self._point) | _tensors_of("best", self._best)
        for number, point in enumerate(self._finished):
            tensors |= _tensors_of(f"stage{number}", point)
        tensors["generator"] = self._generator.get_state()
        document = {
            "finetuning": self._fingerprint(),
            "stages": len(self._finished),
            "damping": self._state.damping,
            "waited": self._waited,
            "best_loss": self._best_loss,
            "step": self._step,
        }
        return tensors, document

    def restore(self, state: State) -> StopReason | None:
        """Go through the stages that were finished, and on from where the last one stood."""
        tensors, document = state
        if document.get("finetuning") != self._fingerprint():
            raise ValueError(
                "resume: the checkpoint belongs to another model, other data or other settings; resume with those it "
                "was made with"
            )
        for number in range(document["stages"]):
            self._best = _point_of(f"stage{number}", tensors, self._task.stage, self._problem.batch_size)
            if self._end_task(StopReason.CONVERGED) is not None:
                return StopReason.CONVERGED
        self._point = _point_of("point", tensors, self._task.stage, self._problem.batch_size)
        self._best = _point_of("best", tensors, self._task.stage, self._problem.batch_size)
        if not self._in_batches:
            # The first step of a stage makes the mean block that the others are solved behind.
            start = self._task.stage.start()
            first = StageModel(self._task.stage, start, self._problem.targets, self._problem.surrogate, 0.0)
            self._operator = first.local_problem().operator
        self._generator.set_state(tensors["generator"].to(torch.uint8))
        self._state = Attempt(document["damping"])
        self._waited = document["waited"]
        self._best_loss = document["best_loss"]
        self._step = document["step"]
        return None

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """A copy of the module with the best weights so far."""
        yield self.delta.merged(self._model)

    def finish(self) -> None:
        """Nothing is left to do: `delta` holds what was found."""

    def _begin_task(self, task: Task) -> None:
        self._task = task
        self.stages.append(task.stage.names)
        self._state = Attempt(task.damping)
        self._waited = 0
        self._operator = None
        self._solver = StageSolver()
        self._point = self._best = task.stage.start()
        self._best_loss = self._watched(self._loss(self._best, self._problem.targets), self._held_loss(self._best))

    def _end_task(self, stop: StopReason) -> StopReason | None:
        """Hand over to the next stage; the reason again where there is none."""
        self._delta = self.delta
        self._finished.append(self._best)
        try:
            following = self._tasks.send(self._best)
        except StopIteration:
            # What is best stands in the delta already.
            self._best = self._task.stage.start()
            return stop
        self._begin_task(following)
        return None

    def _damped_step(self) -> tuple[StepInfo, StopReason | None]:
        problem, stage, point = self._problem, self._task.stage, self._point
        targets = problem.targets
        if self._in_batches:
            order = torch.randperm(len(targets), generator=self._generator)
            rows = order[: problem.batch_size].to(targets.device)
            stage, point = stage.on_rows(point, rows)
            targets = targets[rows]
        model = StageModel(
            stage, point, targets, problem.surrogate, problem.alpha, None if self._in_batches else self._operator
        )
        rule = Backtracking(damping=self._task.damping)
        result = damped_step(model, rule, self._state, self._solver, self.phases)
        self._operator = model.operator
        verdict = result.verdict
        self._state = verdict.state
        loss = self._loss(model.point, targets)
        if verdict.accepted:
            self._point = self._task.stage.at(model.point.weights) if self._in_batches else model.point
        info = replace(result.info(self._step, loss), metric=self._held_loss(self._point))
        return info, verdict.stop

    @property
    def _in_batches(self) -> bool:
        """Whether steps of the present stage take some of the rows."""
        return self._problem.batch_size is not None and not self._task.stage.direct

    def _watched(self, loss: float, held: float | None) -> float:
        return loss if held is None else held

    def _loss(self, point: Point, targets: Tensor) -> float:
        assert point.outputs is not None
        return float(self._problem.loss.value(point.outputs, targets))

    def _held_loss(self, point: Point) -> float | None:
        if point.held_out is None or self._problem.held_targets is None:
            return None
        return float(self._problem.loss.value(point.held_out, self._problem.held_targets))

    def _fingerprint(self) -> str:
        """Hash of everything that a resumed run must share with the one before it."""
        problem = self._problem
        settings = (problem.loss, problem.surrogate, problem.alpha, problem.patience, problem.batch_size, problem.seed)
        digest = hashlib.sha256(repr((settings, self._schedule.settings())).encode())
        tensors = [problem.targets, problem.held_targets, self._schedule.data.inputs, self._schedule.data.held_inputs]
        for tensor in [*tensors, *self._model.state_dict().values()]:
            if tensor is not None:
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _tensors_of(name: str, point: Point) -> dict[str, Tensor]:
    shifts = {f"{name}.shift.{number}": shift for number, shift in enumerate(point.shifts)}
    return shifts | {f"{name}.weight.{key}": weight for key, weight in point.weights.items()}


def _point_of(name: str, tensors: dict[str, Tensor], stage: Stage, batch_size: int | None) -> Point:
    """The inverse of `_tensors_of`."""
    start = stage.start()
    shifts = tuple(tensors[f"{name}.shift.{number}"].to(shift) for number, shift in enumerate(start.shifts))
    weights = {key: tensors[f"{name}.weight.{key}"].to(weight) for key, weight in start.weights.items()}
    if batch_size is not None and not stage.direct:
        return stage.at(weights)
    return stage.reached(shifts, weights)
