"""A step on layers with frozen inputs that goes through the rows in parts, one after the other."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.finetuning.backtracking import Attempt, Backtracking
from widefit.finetuning.curvature import StageSolver
from widefit.finetuning.stage import Point, Stage
from widefit.finetuning.stage_model import StageModel
from widefit.losses.base import OutputLoss
from widefit.training.damped_step import StepResult, damped_step
from widefit.training.phases import Phases

# Rows of a part. A product with H costs as the square of the rows: four parts of a thousand cost a quarter of a step on
# all of them, and each begins where those before it have led.
_ROWS = 250


def parts_of(rows: int) -> int:
    """Return in how many parts a step goes through so many rows."""
    return max(1, round(rows / _ROWS))


@dataclass(frozen=True)
class Sweep:
    """The point that the steps of all parts have led to.

    Attributes
    ----------
    sample_coefficients
        S of every boundary layer, the mean of the points from the middle on.
    damping
        λ that the last part took, as a part of the mean of diag H.
    iterations
        Products with H, of all parts.
    last
        The step of the last part.
    """

    sample_coefficients: tuple[Float[Tensor, "n _"], ...]
    damping: float
    iterations: int
    last: StepResult


def swept(
    stage: Stage,
    point: Point,
    targets: Tensor,
    surrogate: OutputLoss,
    damping: float,
    generator: torch.Generator,
    phases: Phases,
) -> Sweep:
    """Take a damped step on each part of the rows, drawn anew, from the outputs that the parts before it have left.

    A part moves by coefficients of its own rows alone: the step is a sweep of block coordinates in the space of the
    samples, and weights are never touched. The last parts fit their rows as if nobody came after them; the mean of the
    points from the middle of the sweep on is returned (Polyak and Juditsky 1992). (The sweep is this project's.)

    Parameters
    ----------
    stage
        Boundary layers alone.
    point
        Where it begins.
    targets, surrogate
        On the training rows, and the loss that steps minimize.
    damping
        λ of the first part, as a part of the mean of diag H.
    generator
        Draws the parts.
    phases
        Clocks.
    """
    order = torch.randperm(len(targets), generator=generator).to(targets.device)
    changes = [torch.zeros_like(values) for values in point.sample_coefficients]
    means = [values.clone() for values in point.sample_coefficients]
    iterations, seen = 0, 0
    result = None
    parts = order.tensor_split(parts_of(len(order)))
    averaged = len(parts) // 2 + 1
    for number, rows in enumerate(parts):
        before = order[:seen]
        moved = tuple(
            values[rows] - layer.response_between(rows, before, change[before])
            for layer, values, change in zip(stage.boundary, point.layer_outputs.training, changes, strict=True)
        )
        part = stage.part(rows, moved)
        model = StageModel(part, part.start(), targets[rows], surrogate, 0.0)
        result = damped_step(model, Backtracking(damping=damping), Attempt(damping), StageSolver(), phases)
        iterations += sum(solution.iterations for solution in result.direction.solutions)
        if result.verdict.accepted:
            damping = result.verdict.state.damping
            share = min(1.0, (len(parts) - number) / averaged)  # of the averaged points, those that have this part
            for change, mean, found in zip(changes, means, model.point.sample_coefficients, strict=True):
                change[rows] = found
                mean[rows] += share * found
        seen += len(rows)
    assert result is not None
    return Sweep(tuple(means), damping, iterations, result)
