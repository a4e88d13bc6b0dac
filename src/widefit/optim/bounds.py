"""Bounds on parameters: the damped least-squares problem of a step, solved within them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from widefit.gram.jacobian import DenseJacobian, Jacobian
from widefit.gram.stacked import StackedJacobian
from widefit.optim.curvature import Curvature, ParameterStep
from widefit.optim.parameters import MovingParameters

# Changes of the active set per step, after which the step is cut at the bounds instead.
_CHANGES = 30


class Bounds:
    """Lower and upper bounds by the names of parameters.

    Parameters
    ----------
    given
        {name: (lower, upper)}; numbers, tensors in the shape of the parameter, or None for no bound.

    Raises
    ------
    ValueError
        Bounds of something else, in the wrong order, or that the parameters do not lie within.
    """

    def __init__(self, given: Any, moving: MovingParameters):
        if not isinstance(given, Mapping):
            raise ValueError(f"bounds must be a dictionary {{name: (lower, upper)}}, got {type(given).__name__}")
        unknown = [name for name in given if name not in moving.tensors]
        if unknown:
            raise ValueError(
                f"bounds name {unknown[0]!r}, which is no trainable parameter; there are "
                + ", ".join(map(repr, moving.tensors))
            )
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, pair in given.items():
            value = moving.tensors[name].detach()
            low, high = _pair(name, pair, value)
            if bool((low >= high).any()):
                raise ValueError(f"bounds of {name!r}: the lower must be below the upper one")
            if bool(((value < low) | (value > high)).any()):
                raise ValueError(f"bounds of {name!r}: it begins outside of them, at {value.reshape(-1)[:5].tolist()}")
            self._pairs[name] = (low, high)

    def limits(self, moving: MovingParameters) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        """Smallest and largest change of every parameter, infinite where there is no bound."""
        ends = []
        for side, infinity in ((0, -torch.inf), (1, torch.inf)):
            pieces = [
                self._pairs[name][side] - tensor.detach() if name in self._pairs else torch.full_like(tensor, infinity)
                for name, tensor in moving.tensors.items()
            ]
            ends.append(torch.cat([piece.detach().reshape(-1) for piece in pieces]))
        return ends[0], ends[1]

    def settle(self, moving: MovingParameters) -> None:
        """Put parameters on the bounds that only rounding keeps them from."""
        with torch.no_grad():
            for name, (low, high) in self._pairs.items():
                if name in moving.tensors:
                    tensor = moving.tensors[name]
                    near = 8 * torch.finfo(tensor.dtype).eps
                    for bound in (low, high):
                        close = ((tensor - bound).abs() <= near * bound.abs()) & torch.isfinite(bound)
                        tensor.copy_(torch.where(close, bound, tensor))
                    tensor.copy_(torch.minimum(torch.maximum(tensor, low), high))


def _pair(name: str, pair: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"bounds of {name!r} must be a pair (lower, upper), got {pair!r}")
    ends = []
    for end, missing in zip(pair, (-torch.inf, torch.inf), strict=True):
        tensor = torch.as_tensor(missing if end is None else end, dtype=value.dtype, device=value.device)
        if bool(torch.isnan(tensor).any()):
            raise ValueError(f"bounds of {name!r} hold NaN")
        try:
            ends.append(tensor.expand(value.shape))
        except RuntimeError as error:
            raise ValueError(
                f"bounds of {name!r} have shape {tuple(tensor.shape)}, the parameter has {tuple(value.shape)}"
            ) from error
    return ends[0], ends[1]


class BoundedCurvature(Curvature):
    """min ½‖r + J̃d‖² + ½λ‖S⁻¹d‖² over low ≤ d ≤ high, by a primal-dual active set.

    (Kanzow, Yamashita and Fukushima, J. Comput. Appl. Math. 172, 2004, for Levenberg-Marquardt steps within bounds;
    Hintermüller, Ito and Kunisch, SIAM J. Optim. 13, 2002, for the active set.) The segment from 0 to d lies within
    the bounds and goes down the loss, so that any part of the step may be taken.

    Parameters
    ----------
    free
        The curvature without bounds.
    restrict
        The same with the sizes of `free`, and some columns of J̃ set to 0.
    residual
        r.
    low, high
        Bounds of d, low ≤ 0 ≤ high.
    """

    def __init__(
        self,
        free: Curvature,
        restrict: Callable[[Bool[Tensor, " P"]], Curvature],
        residual: Float[Tensor, " M"],
        low: Float[Tensor, " P"],
        high: Float[Tensor, " P"],
    ):
        self.free = free
        self.restrict = restrict
        self.residual = residual
        self.low = low
        self.high = high
        self.trace = free.trace
        self.floor = free.floor
        self.sizes = free.sizes
        self.column_norms = free.column_norms
        self.held = torch.zeros_like(low, dtype=torch.bool)
        self.restricted = free

    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return self.free.image(direction)

    def gradient(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        return self.free.gradient(weights)

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> ParameterStep:
        if weights is self.residual:
            return self._within(damping)
        # What corrects a step leaves alone the parameters that it puts on a bound.
        return self._moving(weights, damping)

    def _within(self, damping: float) -> ParameterStep:
        slope = self.gradient(self.residual)
        at_low = (self.low == 0) & (slope > 0)
        at_high = (self.high == 0) & (slope < 0)
        iterations = 0
        for _ in range(_CHANGES):
            self._hold(at_low | at_high)
            step = self._onto(torch.where(at_low, self.low, torch.where(at_high, self.high, 0.0)), damping)
            iterations += step.iterations
            pull = self.gradient(self.residual + step.image) + damping * self._measured(step.value)
            low_next = (at_low & (pull > 0)) | (~self.held & (step.value < self.low))
            high_next = (at_high & (pull < 0)) | (~self.held & (step.value > self.high))
            settled = bool((low_next == at_low).all() and (high_next == at_high).all())
            at_low, at_high = low_next, high_next
            if settled:
                return replace(step, iterations=iterations)
        value = torch.minimum(torch.maximum(step.value, self.low), self.high)
        return ParameterStep(value, self.image(value), step.defect, iterations, step.solver)

    def _hold(self, held: Bool[Tensor, " P"]) -> None:
        """Take the parameters that are to be on a bound out of the system."""
        if bool((held != self.held).any()):
            self.restricted = self.restrict(held) if bool(held.any()) else self.free
        self.held = held

    def _onto(self, target: Float[Tensor, " P"], damping: float) -> ParameterStep:
        """The step that puts the parameters that are held on their bounds, and is the best one in all others."""
        if not bool(target.any()):
            return self._moving(self.residual, damping)
        image = self.image(target)
        step = self._moving(self.residual + image, damping)
        return replace(step, value=step.value + target, image=step.image + image)

    def _moving(self, weights: Float[Tensor, " M"], damping: float) -> ParameterStep:
        step = self.restricted.direction(weights, damping)
        return replace(step, value=torch.where(self.held, 0.0, step.value))

    def _measured(self, value: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """S⁻² times it."""
        return value if self.sizes is None else value / self.sizes.square().to(value)


class MaskedJacobian(Jacobian):
    """J with some columns set to 0."""

    def __init__(self, jacobian: Jacobian, held: Bool[Tensor, " P"]):
        self.jacobian = jacobian
        self.held = held
        self.kept = (~held).to(jacobian.dtype)
        self.shape = jacobian.shape
        self.dtype = jacobian.dtype
        self.device = jacobian.device

    def matvec(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return self.jacobian.matvec(self.kept * direction)

    def rmatvec(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        return self.kept * self.jacobian.rmatvec(weights)

    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        columns = self._held_columns().to(dtype)
        return self.jacobian.gram(dtype).addmm_(columns, columns.T, alpha=-1)

    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        return self.jacobian.rows(indices) * self.kept

    def diagonal(self) -> Float[Tensor, " M"]:
        return self.jacobian.diagonal() - self._held_columns().square().sum(dim=1)

    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        for start, block in self.jacobian.row_blocks():
            yield start, block * self.kept

    def group_sums(self, signs: Float[Tensor, " M"], group: int) -> Float[Tensor, "g P"]:
        return self.jacobian.group_sums(signs, group) * self.kept

    def _held_columns(self) -> Float[Tensor, "M h"]:
        places = self.held.nonzero()[:, 0]
        units = torch.zeros(len(places), self.shape[1], dtype=self.dtype, device=self.device)
        units[torch.arange(len(places), device=self.device), places] = 1.0
        return torch.stack([self.jacobian.matvec(unit) for unit in units], dim=1)


def masked(jacobian: Jacobian, held: Bool[Tensor, " P"]) -> Jacobian:
    """J with some columns set to 0, stored where it is, and in parts where it is."""
    if isinstance(jacobian, StackedJacobian):
        return StackedJacobian([replace(part, jacobian=masked(part.jacobian, held)) for part in jacobian.parts])
    if isinstance(jacobian, DenseJacobian):
        return DenseJacobian(jacobian.matrix.masked_fill(held, 0.0))
    return MaskedJacobian(jacobian, held)
