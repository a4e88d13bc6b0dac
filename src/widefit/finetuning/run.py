"""The loop of fine-tuning: stage by stage, damped steps, the best weights on held-out rows kept."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.finetuning.assembly import system_of
from widefit.finetuning.delta import LowRankDelta
from widefit.finetuning.stage import Point, Stage, objective
from widefit.finetuning.system import System
from widefit.losses.base import OutputLoss
from widefit.training.callback import Callback
from widefit.training.history import History, StepInfo

logger = logging.getLogger("widefit")

# Factor of λ after a step that did not lower the objective, and how often in a row that is tried.
_RISE = 10.0
_ATTEMPTS = 6
# The smallest relative λ, for steps after one that did not gain.
_SMALLEST = 0.01
# A step that lowers the loss that is watched by less than this part of it counts as none.
_GAIN = 0.02


@dataclass(frozen=True)
class Problem:
    """What is minimized, and how.

    Attributes
    ----------
    loss
        What is reported.
    merit
        What steps lower: the loss, or its envelope.
    targets, held_targets
        On training and held-out rows.
    alpha
        Ridge: α/2 ‖θ − θ₀‖² is added.
    max_iter, tol, patience
        Most steps in total, training loss at which to stop, steps without a lower held-out loss that end a stage.
    batch_size
        Rows a step; None: all.
    seed
        Orders the batches.
    """

    loss: OutputLoss
    merit: OutputLoss
    targets: Tensor
    held_targets: Tensor | None
    alpha: float
    max_iter: int
    tol: float
    patience: int
    batch_size: int | None
    seed: int


@dataclass
class _Best:
    """The best point of a stage so far, by the loss that is watched."""

    point: Point
    loss: float


class FineTuningRun:
    """One run of `widefit.finetune`; what its callbacks see.

    Attributes
    ----------
    history
        The steps of all stages.
    delta
        What the best point of the stages so far adds to the given weights.
    """

    def __init__(self, problem: Problem, callbacks: Sequence[Callback] = ()):
        self._problem, self._callbacks = problem, tuple(callbacks)
        self.history = History()
        self.max_iter, self.tol = problem.max_iter, problem.tol
        self.delta = LowRankDelta({})
        self._began = time.perf_counter()
        self._generator = torch.Generator().manual_seed(problem.seed)
        self._ended = ""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The delta of the finished stages and the history."""
        return self.delta.tensors(), {"history": self.history.to_dict()}

    def stage(self, stage: Stage, limit: int, damping: float) -> Point:
        """Train one stage to its end, or to a number of steps since the beginning; its best point."""
        point = stage.start()
        best = _Best(point, self._judged_start(point))
        try:
            self._train(stage, best, limit, damping)
        except KeyboardInterrupt:
            self._ended = "interrupted"
        self.delta = self.delta.plus(stage.delta(best.point))
        return best.point

    def _judged_start(self, point: Point) -> float:
        """The loss that is watched, at the first point of a stage."""
        training, held = self._loss(point, self._problem.targets), self._held_loss(point)
        if not self.history.steps:
            self.history.steps.append(StepInfo(0, training, held, seconds=self._seconds()))
            for callback in self._callbacks:
                callback.start(self)
        return training if held is None else held

    def _train(self, stage: Stage, best: "_Best", limit: int, damping: float) -> None:
        problem, point, waited = self._problem, best.point, 0
        level, system = damping, None
        while waited < problem.patience and not self._ended:
            if self.history[-1].step >= limit:
                self._ended = "max_iter" if limit == self.max_iter else ""
                return
            point, info, level, system = self._step(stage, point, level, system)
            self.history.steps.append(info)
            judged = info.loss if info.metric is None else info.metric
            waited = 0 if judged < best.loss * (1 - _GAIN) else waited + 1
            if info.accepted:
                level = max(min(_SMALLEST, damping) if waited else damping, level / _RISE)
            if judged < best.loss:
                best.point, best.loss = point, judged
            if True in [callback.step(self, info) for callback in self._callbacks]:
                self._ended = "callback"
            elif info.loss <= self.tol:
                self._ended = "tol"
            elif not info.accepted:
                self.history.stop_reason = "stalled"
                return
        self.history.stop_reason = "converged"

    @property
    def ended(self) -> bool:
        """Whether no further stage is to begin."""
        return bool(self._ended)

    def finish(self) -> History:
        """Tell the callbacks."""
        self.history.stop_reason = self._ended or self.history.stop_reason
        for callback in self._callbacks:
            callback.finish(self, self.history)
        return self.history

    def _step(
        self, stage: Stage, point: Point, level: float, previous: System | None
    ) -> tuple[Point, StepInfo, float, System]:
        """One step from a point, with as much damping as it takes."""
        problem, targets, whole, origin = self._problem, self._problem.targets, stage, point
        if problem.batch_size is not None and not stage.direct:
            rows = torch.randperm(len(targets), generator=self._generator)[: problem.batch_size].to(targets.device)
            stage, point = stage.on_rows(point, rows)
            targets = targets[rows]
        assert point.outputs is not None
        local = problem.merit.expand(point.outputs, targets)
        at = stage.linearized(point, local.root)
        system = system_of(stage, point, at, local.root, previous)
        before = objective(problem.merit, point, targets, problem.alpha, stage)
        displaced = stage.displaced_outputs(point, at) if problem.alpha > 0 else None
        for _ in range(_ATTEMPTS):
            damping = level * system.scale
            keep = damping / (damping + problem.alpha) if problem.alpha > 0 else 1.0
            residual = local.residual
            if displaced is not None:
                residual = residual - (1 - keep) * displaced
            solution = system.solve(residual, damping + problem.alpha)
            tried = stage.moved(point, at, solution.value, keep)
            after = objective(problem.merit, tried, targets, problem.alpha, stage)
            accepted = after < before
            if accepted:
                break
            level *= _RISE
        gain = _gain_ratio(before - after, local.residual, system.image(solution.value)) if not problem.alpha else None
        loss = self._loss(tried if accepted else point, targets)
        if accepted:
            point = tried if stage is whole else whole.at(tried.weights)
        else:
            point = origin
        info = StepInfo(
            step=self.history[-1].step + 1,
            loss=loss,
            metric=self._held_loss(point),
            damping=damping,
            gain_ratio=gain,
            accepted=accepted,
            solver=solution.solver,
            solver_iterations=solution.iterations,
            residual_norm=solution.residual_norm,
            jitter=solution.jitter,
            seconds=self._seconds(),
        )
        return point, info, level, system

    def _loss(self, point: Point, targets: Tensor) -> float:
        assert point.outputs is not None
        return float(self._problem.loss.value(point.outputs, targets))

    def _held_loss(self, point: Point) -> float | None:
        if point.held_out is None or self._problem.held_targets is None:
            return None
        return float(self._problem.loss.value(point.held_out, self._problem.held_targets))

    def _seconds(self) -> float:
        return time.perf_counter() - self._began


def _gain_ratio(actual: float, residual: Float[Tensor, "n k"], image: Float[Tensor, "n k"]) -> float | None:
    """Actual over predicted decrease, where the change of r̃ is −H g; None where that predicts no decrease."""
    before, change = residual.double(), -image.double()
    predicted = -float((before * change).sum() + 0.5 * change.square().sum())
    return actual / predicted if predicted > 0 else None
