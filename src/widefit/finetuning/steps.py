"""The steps of a fine-tuning, stage by stage, as the loop takes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import nn

from widefit.finetuning.delta import LowRankDelta
from widefit.finetuning.fingerprint import fingerprint
from widefit.finetuning.schedule import Schedule, Task
from widefit.finetuning.stage import Point
from widefit.finetuning.stage_run import Problem, Progress, StageRun, tensors_of
from widefit.plan.base import Choice
from widefit.records import FileError, read
from widefit.rules import StopReason
from widefit.training.history import History, StepInfo
from widefit.training.loop import State
from widefit.training.phases import Phases
from widefit.training.saved import check_tensors


@dataclass(frozen=True)
class _Record:
    """The document of a run of `widefit.finetune`."""

    finetuning: str
    stages: int
    progress: Progress
    history: History


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
    """

    def __init__(self, model: nn.Module, problem: Problem, schedule: Schedule):
        self.phases = Phases()
        self.stages: list[tuple[str, ...]] = []
        self._model = model
        self._problem = problem
        self._schedule = schedule
        self._generator = torch.Generator().manual_seed(problem.seed)
        self._step = 0
        self._ended = False
        self._finished: list[Point] = []
        self._delta = LowRankDelta({})
        self._tasks = schedule.tasks(lambda: self._delta)
        self._run = self._begin_stage(next(self._tasks))

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Decisions of the schedule, and why."""
        return tuple(self._schedule.choices)

    def delta(self) -> LowRankDelta:
        """Return the best weights so far, minus those that were given."""
        return self._delta if self._ended else self._delta.plus(self._run.stage.delta(self._run.best))

    def begin(self) -> StepInfo:
        """Return the losses before any step."""
        return self._run.info()

    def step(self) -> tuple[StepInfo, StopReason | None]:
        """Take a step of the present stage; a stage that ends hands over to the next."""
        self._step += 1
        info, stop = self._run.step(self._step)
        return info, None if stop is None else self._end_stage(self._run.best, stop)

    def state(self) -> State:
        """Return the points of all stages, and the progress of the present one."""
        tensors = self._run.tensors()
        for number, point in enumerate(self._finished):
            tensors |= tensors_of(f"stage{number}", point)
        tensors["generator"] = self._generator.get_state()
        document = {
            "finetuning": self._fingerprint,
            "stages": len(self._finished),
            "progress": asdict(self._run.progress),
        }
        return tensors, document

    def restore(self, state: State) -> StopReason | None:
        """Go through the stages that were finished, and on from where the last one stood.

        Raises
        ------
        FileError
            The state is not one of a fine-tuning, or was altered.
        ValueError
            It belongs to another model, other data or other settings.
        """
        tensors, document = dict(state[0]), state[1]
        if "finetuning" not in document:
            raise FileError("the checkpoint is not one of a fine-tuning")
        record = read(_Record, document, "the checkpoint")
        if record.finetuning != self._fingerprint:
            raise ValueError(
                "resume: the checkpoint belongs to another model, other data or other settings; resume with those it "
                "was made with"
            )
        if not record.history.steps or record.history[-1].step < 0:
            raise FileError("the checkpoint has no steps")
        self._step = record.history[-1].step
        for number in range(record.stages):
            if self._ended:
                raise FileError(f"the checkpoint has {record.stages} finished stages, the fine-tuning {number}")
            self._end_stage(self._run.take_point(f"stage{number}", tensors), StopReason.CONVERGED)
        self._run.restore(tensors, record.progress)
        check_tensors(tensors, {"generator": self._generator.get_state()})
        try:
            self._generator.set_state(tensors["generator"])
        except RuntimeError as error:
            raise FileError("'generator' of the checkpoint is no state of a random generator") from error
        return StopReason.CONVERGED if self._ended else None

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """Yield a copy of the module with the best weights so far."""
        yield self.delta().merged(self._model)

    def finish(self) -> None:
        """Leave everything as it is: `delta` returns what was found."""

    def _begin_stage(self, task: Task) -> StageRun:
        self.stages.append(task.stage.names)
        return StageRun(task, self._problem, self._generator, self.phases)

    def _end_stage(self, best: Point, stop: StopReason) -> StopReason | None:
        """Hand over to the next stage; the reason again where there is none."""
        self._delta = self._delta.plus(self._run.stage.delta(best))
        self._finished.append(best)
        try:
            following = self._tasks.send(best)
        except StopIteration:
            self._ended = True
            return stop
        self._run = self._begin_stage(following)
        return None

    @cached_property
    def _fingerprint(self) -> str:
        """Hash of everything that a resumed run must share with the one before it."""
        problem, data = self._problem, self._schedule.data
        settings = (problem.loss, problem.surrogate, problem.alpha, problem.patience, problem.batch_size, problem.seed)
        tensors = [problem.targets, problem.held_targets, data.inputs, data.held_inputs]
        return fingerprint((settings, self._schedule.settings), tensors, self._model)
