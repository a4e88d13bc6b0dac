"""One step: from a least-squares problem and its curvature to a change of the parameters that lowers the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from widefit.gram.jacobian import apply_root
from widefit.kernels.transfer import numbers
from widefit.optim.curvature import Curvature, ParameterStep
from widefit.optim.damping import DampingPolicy
from widefit.optim.system import Expansion
from widefit.processes import ALONE, Alone


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
class SearchResult:
    """The change that a search settled on, or none.

    Attributes
    ----------
    change
        To be added to the parameters; None when nothing lowered the loss.
    outputs, loss
        Outputs of every block and the loss, at the point that was kept.
    level
        Relative λ for the next step.
    damping
        λ of the step taken (or of the last one tried).
    gain_ratio
        Actual over predicted decrease; None when no step was evaluated.
    step
        The solve behind it.
    residual_norm
        Part of its right-hand side that is left of its equations.
    iterations
        Products with H of the whole search.
    promised
        Decrease of the loss by the linear model of the step taken, or of the last one tried.
    stationary
        Whether nothing was lower because nothing more can be gained: the linear model itself promises no decrease
        beyond rounding.
    """

    change: Float[Tensor, " P"] | None
    outputs: list[Float[Tensor, "_ _"]]
    loss: float
    level: float
    damping: float
    gain_ratio: float | None
    step: ParameterStep
    residual_norm: float
    iterations: int
    promised: float
    stationary: bool = False


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
        Products with H that the solves for it took.
    size
        ‖S⁻¹ d‖.
    """

    first: ParameterStep
    second: ParameterStep | None
    curve: Float[Tensor, " M"] | None
    bend: float
    iterations: int
    size: float = 0.0

    @property
    def farthest(self) -> float:
        """A bound on the norm of the change at full length."""
        return float(sum(torch.linalg.vector_norm(d.value) for d in (self.first, self.second) if d is not None))

    def change(self, reach: float) -> Float[Tensor, " P"]:
        """α d + α² a."""
        change = reach * self.first.value
        return change if self.second is None else change + reach * reach * self.second.value

    def image(self, reach: float) -> Float[Tensor, " M"]:
        """Predicted change of the outputs."""
        image = reach * self.first.image
        return image if self.curve is None else image + reach * reach * self.curve


@dataclass(frozen=True)
class Judged:
    """d, and the numbers that it is judged by.

    Attributes
    ----------
    step
        d.
    promised
        Decrease of the loss by the linear model.
    size
        ‖S⁻¹ d‖.
    residual_norm
        Part of its right-hand side that is left of its equations.
    bend
        The outputs a little way along it, where somebody has looked.
    """

    step: ParameterStep
    promised: float
    size: float
    residual_norm: float
    bend: "Bend | None" = None


@dataclass(frozen=True)
class Bend:
    """Second order of the outputs along d.

    Attributes
    ----------
    half_second
        Half the second derivative.
    step
        a, which corrects d for it.
    finite
        Whether the outputs are finite there.
    size
        ‖S⁻¹ a‖.
    """

    half_second: Float[Tensor, " M"]
    step: ParameterStep
    finite: bool
    size: float


@dataclass(frozen=True)
class Place:
    """A change of the parameters, and the outputs there."""

    change: Float[Tensor, " P"]
    outputs: list[Float[Tensor, "_ _"]]


@dataclass(frozen=True)
class Point(Place):
    """The same, with the loss there, the α it was found at, and the decrease that the linear model promised for it."""

    loss: float
    length: float
    promised: float
    corrections: int = 0


@dataclass
class Search:
    """Looks along bent paths, with a damping that grows until one of them holds.

    Attributes
    ----------
    evaluate
        Outputs of every block at θ plus a change.
    loss
        Loss of such outputs, left on the device.
    expansion
        The problem at θ.
    residual, size
        r̃ there, and its norm.
    curvature
        Solves it.
    policy
        The damping policy.
    nearby
        Gives the norm of a change of the parameters whose second-order effect is lost in rounding.
    rate
        Learning rate: the part of a full step that is taken.
    momentum
        Starting point of the step; None: θ.
    max_norm
        Upper bound on the norm of a step.
    limits
        Smallest and largest change of every parameter; None: none.
    strange
        Whether every step sees other data, which the one before tells little about. Points are then not corrected: that
        would fit what is peculiar to a batch.
    cautious
        Whether a path may bend no more than where data are strange.
    corrections
        Most corrections of a point.
    fresh
        Whether that are few data for the number of parameters as well.
    processes
        They share out the outputs.
    """

    evaluate: Callable[[Float[Tensor, " P"]], list[Float[Tensor, "_ _"]]]
    loss: Callable[[list[Float[Tensor, "_ _"]]], Float[Tensor, ""]]
    expansion: Expansion
    residual: Float[Tensor, " M"]
    size: float
    curvature: Curvature
    policy: DampingPolicy
    nearby: Callable[[], Float[Tensor, ""]]
    rate: float = 1.0
    momentum: Momentum | None = None
    max_norm: float | None = None
    limits: tuple[Float[Tensor, " P"], Float[Tensor, " P"]] | None = None
    strange: bool = False
    cautious: bool = False
    fresh: bool = False
    corrections: int = 1
    processes: Alone = ALONE

    def run(self, level: float, fixed: bool = False) -> SearchResult:
        """Search from the relative damping `level`; `fixed` keeps it, and shortens the step instead."""
        policy, floor = self.policy, self.curvature.floor
        level = max(level, floor)
        iterations = 0
        lowered = fixed
        noise = 0.0
        for attempt in range(1 if fixed else policy.attempts):
            damping = level * self.curvature.trace
            judged = self._judge(self._direction(damping), damping)
            first, promised = judged.step, judged.promised
            iterations += first.iterations
            if self._lost(promised, self._rounding):
                # A larger λ promises less still. A smaller one may promise more, where λ had been raised before.
                if lowered or level <= 10 * floor:
                    return self._nothing(level, damping, judged, iterations, stationary=True)
                level = floor
                lowered = True
                continue
            if attempt > 0 and not fixed and self._lost(promised, noise):
                return self._nothing(level, damping, judged, iterations, stationary=True)
            found, spent = self._along(judged, level, damping, fixed)
            iterations += spent
            if found is not None:
                gain = self._gain_ratio(found.promised, found.loss)
                following = level if fixed else self._following(level, found, first, attempt)
                return SearchResult(
                    found.change,
                    found.outputs,
                    found.loss,
                    level=following,
                    damping=damping,
                    gain_ratio=gain,
                    step=first,
                    residual_norm=judged.residual_norm,
                    iterations=iterations,
                    promised=promised,
                )
            # Measured once: a larger λ promises less, and what is lost in rounding need not be tried.
            noise = noise or self._noise(first)
            if not fixed and self._lost(promised, noise):
                return self._nothing(level, damping, judged, iterations, stationary=True)
            level = level if fixed else policy.after_failure(level, attempt + 1)
        return self._nothing(level, damping, judged, iterations)

    def _along(self, judged: Judged, level: float, damping: float, fixed: bool) -> tuple[Point | None, int]:
        """A lower point on or near the path that begins with d, and the iterations of the solves for it."""
        policy = self.policy
        shortest = 2.0**-10 if fixed else policy.shortest
        path = self._path(judged, damping)
        length = max(policy.length(path.bend * self.rate, self.cautious), shortest if fixed else 0.0)
        # With λ at its largest the step is a tiny one down the gradient: take it, however it bends.
        if length >= shortest or level >= policy.largest:
            found, spent = self._follow(path, length, 2.0**-11 if fixed else policy.least, damping)
            return found, path.iterations + spent
        return self._straight(judged), path.iterations

    def _straight(self, judged: Judged) -> Point | None:
        """The end of d itself, where the outputs bend as measured nearby but the loss falls as the linear model says.

        Kinks, those of rectifiers above all, look like a second derivative to a probe.
        """
        if self.max_norm is not None:
            return None
        place = self._place(self.rate * judged.step.value)
        point = Point(place.change, place.outputs, float(self.loss(place.outputs)), 1.0, judged.promised)
        gain = self._gain_ratio(judged.promised, point.loss)
        return point if gain is not None and gain >= self.policy.trusted else None

    def _nothing(
        self,
        level: float,
        damping: float,
        judged: Judged,
        iterations: int,
        stationary: bool = False,
    ) -> SearchResult:
        """The result of a search in which no point was lower."""
        return SearchResult(
            None,
            self.expansion.outputs,
            self.expansion.loss,
            level=level,
            damping=damping,
            gain_ratio=None,
            step=judged.step,
            residual_norm=judged.residual_norm,
            iterations=iterations,
            promised=judged.promised,
            stationary=stationary,
        )

    def _lost(self, promised: float, noise: float) -> bool:
        """Whether what d promises cannot be told from noise; a step with momentum need not promise anything."""
        return self.momentum is None and promised <= noise

    @property
    def _rounding(self) -> float:
        """Decrease of the loss that its own precision cannot show."""
        return torch.finfo(self.residual.dtype).eps * self.expansion.loss

    def _noise(self, first: ParameterStep) -> float:
        """Decrease of the loss that is lost in the rounding of the outputs.

        Measured: how far the outputs are off their tangent, so near on d that only rounding can tell them apart.
        """
        length, nearby = numbers(torch.linalg.vector_norm(first.value), self.nearby())
        reach = min(1.0, nearby / length) if length > 0 else 1.0
        missed = self._change(self.evaluate(reach * first.value)) - reach * first.image
        noise = self.processes.norm(missed)
        return noise * (noise + self.size)

    @property
    def _ahead(self) -> bool:
        """Whether to work ahead of what is known: waiting for a device costs more than work that comes to nothing."""
        return self.residual.device.type != "cpu"

    def _judge(self, first: ParameterStep, damping: float) -> Judged:
        told = self._promised(first, 1.0), self.curvature.norm(first.value), first.defect
        if not self._ahead:
            promised, size, left = numbers(*told)
            return Judged(first, promised, size, left)
        half_second, second, *more = self._second(first, damping)
        promised, size, left, finite, length = numbers(*told, *more)
        return Judged(first, promised, size, left, Bend(half_second, second, bool(finite), length))

    def _promised(self, first: ParameterStep, length: float) -> Float[Tensor, ""]:
        """Decrease of the loss by the linear model."""
        image = length * self.rate * first.image.double()
        slope, bend = self.processes.products((self.residual.double(), image), (image, image))
        return -(slope + 0.5 * bend)

    def _following(self, level: float, found: Point, first: ParameterStep, attempt: int) -> float:
        """The relative λ that the next step starts from."""
        policy, floor = self.policy, self.curvature.floor
        following = policy.after_success(level, found.length, floor, attempt == 0, found.corrections, self.corrections)
        return policy.after_fresh(level, following, self._left_over(first)) if self.fresh else following

    def _direction(self, damping: float) -> ParameterStep:
        """d, from θ or from where momentum carries it."""
        if self.momentum is None:
            return self.curvature.direction(self.residual, damping)
        inner = self.curvature.direction(self.residual + self.momentum.image, damping)
        return ParameterStep(
            inner.value + self.momentum.offset,
            inner.image + self.momentum.image,
            inner.defect,
            inner.iterations,
            inner.solver,
        )

    def _path(self, judged: Judged, damping: float) -> Path:
        """The parabola along d, its bend measured from the outputs a little way along it."""
        first, size = judged.step, judged.size
        if size == 0:
            return Path(first, None, None, 0.0, 0)
        found = judged.bend
        if found is None:
            half_second, second, *more = self._second(first, damping)
            finite, length = numbers(*more)
            found = Bend(half_second, second, bool(finite), length)
        if self.processes.any(not found.finite):
            return Path(first, None, None, math.inf, 0, size)
        second = found.step
        return Path(first, second, second.image + found.half_second, 2 * found.size / size, second.iterations, size)

    def _second(
        self, first: ParameterStep, damping: float
    ) -> tuple[Float[Tensor, " M"], ParameterStep, Bool[Tensor, ""], Float[Tensor, ""]]:
        """Half the second derivative of the outputs along d, a, whether it is finite, and ‖S⁻¹ a‖."""
        probe = self.policy.probe
        change = self._change(self.evaluate(probe * first.value))
        # (f(θ + h d) − f(θ))/h = J d + (h/2) f″(d, d) + O(h²)
        half_second = (change / probe - first.image) / probe
        second = self.curvature.direction(half_second, damping)
        return half_second, second, torch.isfinite(half_second).all(), self.curvature.norm(second.value)

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
        """The lowest point found near the path at `length`; how far the outputs had left the parabola there, and the
        iterations of all corrections.

        A correction answers what the outputs are beyond those that were predicted by another solve with the same λ, and
        predicts what it leaves of that. The next one does the same, with the same J, as long as the outputs come nearer
        to their predictions: chord iterations towards the outputs of the linear model, which follow a valley
        that is narrow and curved where a parabola has long left it.
        """
        reach, policy = length * self.rate, self.policy
        place, image = self._place(path.change(reach)), path.image(reach)
        promised = self._promised(path.first, length)
        if self.strange:
            loss, told = numbers(self.loss(place.outputs), promised)
            return Point(place.change, place.outputs, loss, length, told), 0.0, 0
        longest = policy.shortest * reach * path.size
        moved = self._change(place.outputs)
        loss, told, norm = numbers(self.loss(place.outputs), promised, self.processes.length(moved - image))
        found = Point(place.change, place.outputs, loss, length, told)
        defect = norm / self.size if self.size > 0 else 0.0
        misses = [defect]
        iterations = 0
        while not self._settled(loss, told, misses[-1]) and policy.worth_correcting(misses, self.corrections):
            correction = self.curvature.direction(moved - image, damping)
            iterations += correction.iterations
            place, image = self._place(place.change + correction.value), moved + correction.image
            moved = self._change(place.outputs)
            loss, norm, size, farthest = numbers(
                self.loss(place.outputs),
                self.processes.length(moved - image),
                self.curvature.norm(correction.value),
                torch.linalg.vector_norm(place.change),
            )
            misses.append(norm / self.size)
            if size > longest or (self.max_norm is not None and farthest > self.max_norm):
                break
            if loss < found.loss or not math.isfinite(found.loss):
                found = Point(place.change, place.outputs, loss, length, told, len(misses) - 1)
        return found, defect, iterations

    def _settled(self, loss: float, promised: float, missed: float) -> bool:
        """Whether a point needs no correction: it is as low as promised, or its outputs are as predicted."""
        if not math.isfinite(missed):
            return True
        policy, gain = self.policy, self._gain_ratio(promised, loss)
        lower = loss < self.expansion.loss and (gain is None or gain >= policy.trusted)
        return missed < (policy.near if lower else policy.met)

    def _place(self, change: Float[Tensor, " P"]) -> Place:
        if self.limits is not None:
            change = torch.minimum(torch.maximum(change, self.limits[0]), self.limits[1])
        return Place(change, self.evaluate(change))

    def _change(self, outputs: list[Float[Tensor, "_ _"]]) -> Float[Tensor, " M"]:
        """Difference between outputs and those at θ, weighted as the rows of J̃ are."""
        pairs = zip(self.expansion.roots, outputs, self.expansion.outputs, strict=True)
        return torch.cat([apply_root(root, after - before).reshape(-1) for root, after, before in pairs])

    def _left_over(self, first: ParameterStep) -> float:
        """The part of the squared residual that a full step would leave, were the model linear."""
        left = (self.residual + first.image).double()
        before, after = numbers(self.processes.length(self.residual.double()), self.processes.length(left))
        return (after / before) ** 2 if before > 0 else 1.0

    def _gain_ratio(self, promised: float, loss: float) -> float | None:
        """Actual decrease over that of the linear model; None where that predicts no decrease."""
        return (self.expansion.loss - loss) / promised if promised > 0 else None
