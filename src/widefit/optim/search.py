"""One step: from a least-squares problem and its curvature to a change of the parameters that lowers the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.jacobian import apply_root
from widefit.optim.curvature import Curvature, Direction
from widefit.optim.damping import DampingPolicy
from widefit.optim.system import Expansion


@dataclass(frozen=True)
class Momentum:
    """SPRING (Goldshlager, Abrahamsen and Lin, arXiv 2401.10190): the step starts from a part of the previous one.

    Attributes
    ----------
    offset
        μ times the previous step, shape (P,).
    image
        J̃ times it, shape (M,).
    """

    offset: Float[Tensor, " P"]
    image: Float[Tensor, " M"]


@dataclass(frozen=True)
class Outcome:
    """What the search found.

    Attributes
    ----------
    change
        To be added to the parameters; None when nothing lowered the loss.
    outputs, loss
        Of every block and in total, at the point that was kept.
    level
        Relative λ for the next step.
    damping
        λ of the step taken (or of the last one tried).
    gain_ratio
        Actual over predicted decrease; None when no step was evaluated.
    direction
        The solve behind the step; its `iterations` are those of the whole search.
    """

    change: Float[Tensor, " P"] | None
    outputs: list[Float[Tensor, "_ _"]]
    loss: float
    level: float
    damping: float
    gain_ratio: float | None
    direction: Direction
    iterations: int


@dataclass(frozen=True)
class Path:
    """θ + α d + α² a, and what the outputs do along it.

    Attributes
    ----------
    first, second
        d and a; no a where the outputs do not move or leave all bounds.
    curve
        The outputs' part in α²: J̃ a and half the second derivative along d.
    bend
        2‖a‖/‖d‖.
    iterations
        Of the solves for it.
    """

    first: Direction
    second: Direction | None
    curve: Float[Tensor, " M"] | None
    bend: float
    iterations: int

    @property
    def farthest(self) -> float:
        """A bound on the norm of the change at full length."""
        return float(sum(torch.linalg.vector_norm(d.value) for d in (self.first, self.second) if d is not None))

    def change(self, reach: float) -> Float[Tensor, " P"]:
        """α d + α² a."""
        change = reach * self.first.value
        return change if self.second is None else change + reach * reach * self.second.value

    def image(self, reach: float) -> Float[Tensor, " M"]:
        """What the outputs should change by."""
        image = reach * self.first.image
        return image if self.curve is None else image + reach * reach * self.curve


@dataclass(frozen=True)
class Point:
    """A change of the parameters, the outputs and the loss there, and the α it was found at."""

    change: Float[Tensor, " P"]
    outputs: list[Float[Tensor, "_ _"]]
    loss: float
    length: float


@dataclass
class Search:
    """Looks along bent paths, with a damping that grows until one of them holds.

    Attributes
    ----------
    evaluate
        Outputs of every block at θ plus a change.
    loss
        Loss of such outputs.
    expansion
        The problem at θ.
    curvature
        Solves it.
    policy
        The damping policy.
    rate
        Learning rate: the part of a full step that is taken.
    momentum
        Where the step starts from; None: from θ.
    max_norm
        Upper bound on the norm of a step.
    resampled
        Whether every step sees other data. Points are then not corrected: that would fit what is peculiar to a batch.
    fresh
        Whether that are few data for the number of parameters as well.
    """

    evaluate: Callable[[Float[Tensor, " P"]], list[Float[Tensor, "_ _"]]]
    loss: Callable[[list[Float[Tensor, "_ _"]]], float]
    expansion: Expansion
    curvature: Curvature
    policy: DampingPolicy
    rate: float = 1.0
    momentum: Momentum | None = None
    max_norm: float | None = None
    resampled: bool = False
    fresh: bool = False

    def run(self, level: float, fixed: bool = False) -> Outcome:
        """Search from the relative damping `level`; `fixed` keeps it, and shortens the step instead."""
        policy, iterations = self.policy, 0
        level = max(level, self.curvature.floor)
        shortest = 2.0**-10 if fixed else policy.shortest
        for attempt in range(1 if fixed else policy.attempts):
            damping = level * self.curvature.scale
            path = self._path(damping)
            length = max(policy.length(path.bend * self.rate), shortest if fixed else 0.0)
            found, corrections = None, 0
            # With λ at its largest the step is a tiny one down the gradient: take it, however it bends.
            if length >= shortest or level >= policy.largest:
                found, corrections = self._follow(path, length, 2.0**-11 if fixed else policy.least, damping)
            iterations += path.iterations + corrections
            if found is not None:
                gain = self._gain_ratio(path.first, found.length, found.loss)
                following = level if fixed else self._following(level, found.length, path.first, attempt)
                return Outcome(
                    found.change, found.outputs, found.loss, following, damping, gain, path.first, iterations
                )
            level = level if fixed else policy.after_failure(level, attempt + 1)
        loss, outputs = self.expansion.loss, self.expansion.outputs
        return Outcome(None, outputs, loss, level, damping, None, path.first, iterations)

    def _following(self, level: float, length: float, first: Direction, attempt: int) -> float:
        """The relative λ that the next step starts from."""
        policy, floor = self.policy, self.curvature.floor
        following = policy.after_success(level, length, floor, attempt == 0)
        return policy.after_fresh(level, following, self._left_over(first)) if self.fresh else following

    def _direction(self, damping: float) -> Direction:
        """d, from θ or from where momentum carries it."""
        residual = self.expansion.residual
        if self.momentum is None:
            return self.curvature.direction(residual, damping)
        inner = self.curvature.direction(residual + self.momentum.image, damping)
        return Direction(
            inner.value + self.momentum.offset,
            inner.image + self.momentum.image,
            inner.residual_norm,
            inner.iterations,
            inner.solver,
        )

    def _path(self, damping: float) -> Path:
        """The parabola for one λ, its bend measured from the outputs a little way along d."""
        first = self._direction(damping)
        size = float(torch.linalg.vector_norm(first.value))
        if size == 0:
            return Path(first, None, None, 0.0, first.iterations)
        probe = self.policy.probe
        change = self._change(self.evaluate(probe * first.value))
        # (f(θ + h d) − f(θ))/h = J d + (h/2) f″(d, d) + O(h²)
        half_second = (change / probe - first.image) / probe
        if not bool(torch.isfinite(half_second).all()):
            return Path(first, None, None, math.inf, first.iterations)
        second = self.curvature.direction(half_second, damping)
        bend = 2 * float(torch.linalg.vector_norm(second.value)) / size
        return Path(first, second, second.image + half_second, bend, first.iterations + second.iterations)

    def _follow(self, path: Path, length: float, shortest: float, damping: float) -> tuple[Point | None, int]:
        """The first point near the path, going back from `length`, that lowers the loss; iterations of corrections."""
        iterations = 0
        if self.max_norm is not None:
            farthest = self.rate * path.farthest
            part = min(1.0, self.max_norm / farthest) if farthest > 0 else 1.0
            length, shortest = length * part, shortest * part
        while length >= shortest:
            point, defect, solved = self._near(path, length, damping)
            iterations += solved
            if point.loss < self.expansion.loss:
                return point, iterations
            length *= self.policy.shortening(defect)
        return None, iterations

    def _near(self, path: Path, length: float, damping: float) -> tuple[Point, float, int]:
        """A point of the path, or the same corrected where it has left its model; how far it had left it, and the
        iterations of the correction.

        The correction answers what the outputs are beyond the parabola by another solve with the same λ: what a third
        derivative would do, measured where it matters.
        """
        reach, policy = length * self.rate, self.policy
        point = self._point(path.change(reach), length)
        if self.resampled:
            return point, 0.0, 0
        missed = self._change(point.outputs) - path.image(reach)
        size = torch.linalg.vector_norm(self.expansion.residual)
        defect = float(torch.linalg.vector_norm(missed) / size) if size > 0 else 0.0
        if not defect <= policy.farthest or (point.loss < self.expansion.loss and defect < policy.near):
            return point, defect, 0
        correction = self.curvature.direction(missed, damping)
        change = point.change + correction.value
        longest = policy.shortest * reach * torch.linalg.vector_norm(path.first.value)
        too_far = bool(torch.linalg.vector_norm(correction.value) > longest)
        if too_far or (self.max_norm is not None and bool(torch.linalg.vector_norm(change) > self.max_norm)):
            return point, defect, correction.iterations
        corrected = self._point(change, length)
        return min(point, corrected, key=lambda found: found.loss), defect, correction.iterations

    def _point(self, change: Float[Tensor, " P"], length: float) -> Point:
        outputs = self.evaluate(change)
        return Point(change, outputs, self.loss(outputs), length)

    def _change(self, outputs: list[Float[Tensor, "_ _"]]) -> Float[Tensor, " M"]:
        """How far outputs are from those at θ, weighted as the rows of J̃ are."""
        pairs = zip(self.expansion.roots, outputs, self.expansion.outputs, strict=True)
        return torch.cat([apply_root(root, after - before).reshape(-1) for root, after, before in pairs])

    def _left_over(self, first: Direction) -> float:
        """The part of the squared residual that a full step would leave, were the model linear."""
        before = torch.linalg.vector_norm(self.expansion.residual.double())
        after = torch.linalg.vector_norm((self.expansion.residual + first.image).double())
        return float((after / before) ** 2) if before > 0 else 1.0

    def _gain_ratio(self, first: Direction, length: float, loss: float) -> float | None:
        """Actual decrease over that of the linear model; None where that predicts no decrease."""
        image = length * self.rate * first.image.double()
        predicted = -float(torch.dot(self.expansion.residual.double(), image) + 0.5 * torch.dot(image, image))
        return (self.expansion.loss - loss) / predicted if predicted > 0 else None
