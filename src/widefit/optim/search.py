"""One step: from a least-squares problem and its curvature to a change of the parameters that lowers the loss."""

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
    fresh
        Whether every step sees other data, few for the number of parameters.
    """

    evaluate: Callable[[Float[Tensor, " P"]], list[Float[Tensor, "_ _"]]]
    loss: Callable[[list[Float[Tensor, "_ _"]]], float]
    expansion: Expansion
    curvature: Curvature
    policy: DampingPolicy
    rate: float = 1.0
    momentum: Momentum | None = None
    max_norm: float | None = None
    fresh: bool = False

    def run(self, level: float, fixed: bool = False) -> Outcome:
        """Search from the relative damping `level`; `fixed` keeps it, and shortens the step instead."""
        policy, iterations = self.policy, 0
        residual = self.expansion.residual
        level = max(level, self.curvature.floor)
        attempts = 1 if fixed else policy.attempts
        shortest = 2.0**-10 if fixed else policy.shortest
        for attempt in range(attempts):
            damping = level * self.curvature.scale
            first = self._direction(residual, damping)
            bend, second = self._bend(first, damping)
            iterations += first.iterations + (second.iterations if second is not None else 0)
            length = max(policy.length(bend * self.rate), shortest if fixed else 0.0)
            # With λ at its largest the step is a tiny one down the gradient: take it, however it bends.
            if length >= shortest or level >= policy.largest:
                found = self._shorten(first, second, length, shortest / 2)
                if found is not None:
                    change, outputs, loss, gain = found
                    following = level if fixed else self._following(level, length, first, attempt)
                    return Outcome(change, outputs, loss, following, damping, gain, first, iterations)
            level = level if fixed else policy.after_failure(level, attempt + 1)
        loss, outputs = self.expansion.loss, self.expansion.outputs
        return Outcome(None, outputs, loss, level, damping, None, first, iterations)

    def _following(self, level: float, length: float, first: Direction, attempt: int) -> float:
        """The relative λ that the next step starts from."""
        policy, floor = self.policy, self.curvature.floor
        following = policy.after_success(level, length, floor) if attempt == 0 else level
        return policy.after_fresh(level, following, self._left_over(first)) if self.fresh else following

    def _direction(self, residual: Float[Tensor, " M"], damping: float) -> Direction:
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

    def _bend(self, first: Direction, damping: float) -> tuple[float, Direction | None]:
        """2‖a‖/‖d‖ and a, from the outputs a little way along d."""
        size = float(torch.linalg.vector_norm(first.value))
        if size == 0:
            return 0.0, None
        probe = self.policy.probe
        ahead = self.evaluate(probe * first.value)
        change = torch.cat(
            [
                apply_root(root, after - before).reshape(-1)
                for root, after, before in zip(self.expansion.roots, ahead, self.expansion.outputs, strict=True)
            ]
        )
        # (f(θ + h d) − f(θ))/h = J d + (h/2) f″(d, d) + O(h²)
        half_second = (change / probe - first.image) / probe
        if not bool(torch.isfinite(half_second).all()):
            return float("inf"), None
        second = self.curvature.direction(half_second, damping)
        return 2 * float(torch.linalg.vector_norm(second.value)) / size, second

    def _shorten(
        self, first: Direction, second: Direction | None, length: float, shortest: float
    ) -> tuple[Tensor, list[Tensor], float, float | None] | None:
        """The first point of the path, going back from `length` by halves, that lowers the loss."""
        if self.max_norm is not None:
            farthest = self.rate * float(
                sum(torch.linalg.vector_norm(d.value) for d in (first, second) if d is not None)
            )
            part = min(1.0, self.max_norm / farthest) if farthest > 0 else 1.0
            length, shortest = length * part, shortest * part
        while length >= shortest:
            change = self._path(first, second, length)
            outputs = self.evaluate(change)
            loss = self.loss(outputs)
            if loss < self.expansion.loss:
                return change, outputs, loss, self._gain_ratio(first, length, loss)
            length /= 2
        return None

    def _path(self, first: Direction, second: Direction | None, length: float) -> Float[Tensor, " P"]:
        reach = length * self.rate
        change = reach * first.value
        if second is not None:
            change = change + reach * reach * second.value
        return change

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
