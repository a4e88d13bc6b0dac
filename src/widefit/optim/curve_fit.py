"""Curves through data: `scipy.optimize.curve_fit` for functions of torch, one fit or many at once."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import vmap

from widefit.optim.arrays import as_tensor
from widefit.optim.batched import batched_least_squares
from widefit.optim.covariance import UndeterminedError, covariance
from widefit.optim.gauss_newton import GaussNewton
from widefit.optim.system import Residual


@dataclass(frozen=True)
class CurveFit:
    """A fitted curve, or B of them; unpacks as `parameters, covariance` like SciPy's answer.

    Attributes
    ----------
    parameters
        Shape (P,) or (B, P).
    covariance
        Their covariance, shape (P, P) or (B, P, P); infinite where the data do not determine them.
    squares
        Weighted sum of squared residuals, shape () or (B,).
    converged
        Whether no step lowers it by more than rounding, shape () or (B,).
    steps
        Taken, by the slowest fit.
    starts
        Ends that several starts led to, the best first, shape (S, P); None: there was one start.
    """

    parameters: Float[Tensor, "*B P"]
    covariance: Float[Tensor, "*B P P"]
    squares: Float[Tensor, "*B"]
    converged: Bool[Tensor, "*B"]
    steps: int
    starts: Float[Tensor, "S P"] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.parameters, self.covariance))

    @property
    def standard_errors(self) -> Float[Tensor, "*B P"]:
        """Roots of the diagonal of the covariance."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()


def curve_fit(
    function: Callable[..., Tensor],
    x: Any,
    y: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    *,
    bounds: tuple[Any, Any] = (-math.inf, math.inf),
    max_iter: int = 300,
) -> CurveFit:
    """Fit function(x, *parameters) to y by least squares, with the conventions of `scipy.optimize.curve_fit`.

    Parameters
    ----------
    function
        function(x, *parameters) of torch operations, one value an observation. Its parameters are scalars.
    x
        Places at which y was observed: shape (M,), or (k, M) for k variables; with y of shape (B, M) also (B, M).
    y
        Shape (M,), or (B, M) for B fits of the same function at once.
    p0
        Start: shape (P,); None: ones, or within the bounds. Shape (S, P) with y of shape (M,): S starts at once, of
        which the best is taken; shape (B, P) with y of shape (B, M): a start a fit.
    sigma
        Standard deviations of y, in its shape or one for all; or, for one fit, their covariance matrix (M, M).
    absolute_sigma
        Take sigma as it is; otherwise only ratios count, and the covariance is scaled by the variance of the residuals.
    bounds
        (lower, upper): numbers, or a number a parameter.
    max_iter
        Largest number of steps.

    Raises
    ------
    ValueError
        Shapes that do not match, numbers that are not finite, a start outside of the bounds, fewer observations than
        parameters.

    Warns
    -----
    UserWarning
        The covariance of a single fit cannot be estimated, or the steps ended before the fit converged.
    """
    problem = _Problem.of(function, x, y, p0, sigma, bounds)
    if problem.y.ndim == 2:
        return problem.fit_many(problem.start.expand(len(problem.y), -1), max_iter, absolute_sigma)
    if problem.start.ndim == 1:
        return problem.fit_one(problem.start, max_iter, absolute_sigma)
    ends = problem.from_starts(max_iter)
    best = problem.fit_one(ends[0], max_iter, absolute_sigma)
    return CurveFit(best.parameters, best.covariance, best.squares, best.converged, best.steps, ends)


@dataclass(frozen=True)
class _Problem:
    """A function and checked tensors in float64, on the device of x."""

    function: Callable[..., Tensor]
    x: Tensor
    y: Float[Tensor, "*B M"]
    start: Float[Tensor, "*S P"]
    sigma: Tensor | None
    low: Float[Tensor, " P"]
    high: Float[Tensor, " P"]

    @classmethod
    def of(cls, function: Callable[..., Tensor], x: Any, y: Any, p0: Any, sigma: Any, bounds: Any) -> "_Problem":
        values = _numbers(x, "x")
        place = values.device
        observed = _numbers(y, "y").to(place)
        if observed.ndim not in (1, 2) or observed.numel() == 0:
            raise ValueError(f"y must have shape (M,) or (B, M), got {tuple(observed.shape)}")
        if values.ndim == 0 or values.shape[-1] != observed.shape[-1]:
            raise ValueError(
                f"x of shape {tuple(values.shape)} and y of shape {tuple(observed.shape)} must agree in their last "
                "dimension, the observations"
            )
        count = _count(function) if p0 is None else _numbers(p0, "p0").shape[-1]
        low, high = (end.to(place) for end in _bounds(bounds, count))
        start = _start(low, high) if p0 is None else _numbers(p0, "p0").to(place)
        if start.ndim not in (1, 2) or (start.ndim == observed.ndim == 2 and len(start) != len(observed)):
            raise ValueError(f"p0 of shape {tuple(start.shape)} does not go with y of shape {tuple(observed.shape)}")
        if bool(((start < low) | (start > high)).any()):
            raise ValueError("p0 lies outside of the bounds")
        if observed.shape[-1] < count:
            raise ValueError(f"{observed.shape[-1]} observations cannot determine {count} parameters")
        return cls(function, values, observed, start, _deviations(sigma, observed), low, high)

    def fit_one(self, start: Float[Tensor, " P"], max_iter: int, absolute: bool) -> CurveFit:
        model = _Curve(self.function, start)
        bounds = {f"parameters_.{place}": pair for place, pair in enumerate(zip(self.low, self.high, strict=True))}
        bounded = bool(torch.isfinite(self.low).any() or torch.isfinite(self.high).any())
        optimizer = GaussNewton(model, bounds=bounds if bounded else None)
        block = self._block(model)
        history = optimizer.minimize(block, max_iter=max_iter)
        if history.stop_reason == "max_iter" and not optimizer.stationary:
            warnings.warn(f"curve_fit: {optimizer.status} (max_iter={max_iter})", stacklevel=3)
        try:
            spread = optimizer.covariance(block, absolute=absolute)
        except UndeterminedError as error:
            warnings.warn(f"curve_fit: the covariance could not be estimated, {error}", stacklevel=3)
            spread = start.new_full((len(start), len(start)), math.inf)
        squares = start.new_tensor(2 * history[-1].loss * self.y.numel())
        steps = history[-1].step
        converged = torch.tensor(optimizer.stationary or history[-1].loss == 0, device=start.device)
        return CurveFit(model.values(), spread, squares, converged, steps)

    def fit_many(self, start: Float[Tensor, "B P"], max_iter: int, absolute: bool) -> CurveFit:
        solution = self._solve(start, max_iter)
        spreads = []
        names = [f"p{place}" for place in range(start.shape[1])]
        for jacobian, residual in zip(solution.jacobian, solution.residual, strict=True):
            try:
                spreads.append(covariance(jacobian, residual, names, absolute))
            except UndeterminedError:
                spreads.append(start.new_full((len(names), len(names)), math.inf))
        squares = solution.residual.square().sum(dim=1)
        return CurveFit(solution.parameters, torch.stack(spreads), squares, solution.converged, solution.steps)

    def from_starts(self, max_iter: int) -> Float[Tensor, "S P"]:
        """The ends that the starts lead to, the best first."""
        solution = self._solve(self.start, max_iter)
        squares = solution.residual.square().sum(dim=1)
        return solution.parameters[torch.where(torch.isfinite(squares), squares, math.inf).argsort(stable=True)]

    def _solve(self, start: Float[Tensor, "B P"], max_iter: int) -> Any:
        if self.sigma is not None and self.sigma.ndim == 2 and self.sigma.shape != self.y.shape:
            raise ValueError("sigma as a covariance matrix is for one fit from one start")
        count = len(start)
        own_x = self.y.ndim == 2 and self.x.shape == self.y.shape
        x = self.x if own_x else self.x.expand(count, *self.x.shape)
        y = self.y.expand(count, self.y.shape[-1])
        scale = torch.ones_like(y) if self.sigma is None else self.sigma.expand(y.shape)

        def residual(parameters: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
            return (self.function(x, *parameters) - y) / scale

        return batched_least_squares(residual, start, (x, y, scale), self.low, self.high, max_iter)

    def _block(self, model: "_Curve") -> Residual:
        """The residuals, observation by observation where the function can be called so, else as one sample."""
        if self.sigma is not None and self.sigma.ndim == 2:
            factor = torch.linalg.cholesky(self.sigma)
            return Residual(_whitened, self.x[None], self.y[None], factor[None])
        scale = torch.ones_like(self.y) if self.sigma is None else self.sigma
        x = self.x.movedim(-1, 0)
        if self._is_pointwise(model, x):
            return Residual(_scaled, x, self.y, scale)
        return Residual(_scaled, self.x[None], self.y[None], scale[None])

    def _is_pointwise(self, model: "_Curve", x: Tensor) -> bool:
        with torch.no_grad():
            whole = model(self.x)
            if whole.shape != self.y.shape:
                raise ValueError(
                    f"function gives shape {tuple(whole.shape)} for y of shape {tuple(self.y.shape)}: it must return "
                    "one value an observation"
                )
            try:
                single = vmap(model)(x)
            except (RuntimeError, IndexError, ValueError, TypeError):
                return False
        return single.shape == whole.shape and torch.allclose(single, whole, rtol=1e-10, equal_nan=True)


class _Curve(nn.Module):
    """A function of scalars."""

    def __init__(self, function: Callable[..., Tensor], start: Float[Tensor, " P"]):
        super().__init__()
        self.function = function
        self.parameters_ = nn.ParameterList([nn.Parameter(value.clone()) for value in start])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parameters_)

    def values(self) -> Float[Tensor, " P"]:
        """The scalars in one vector."""
        return torch.stack([value.detach() for value in self.parameters_])


def _scaled(model: nn.Module, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return (model(x) - y) / scale


def _whitened(model: nn.Module, x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, (model(x) - y)[:, None], upper=False)[:, 0]


def _numbers(given: Any, name: str) -> Tensor:
    tensor = torch.as_tensor(as_tensor(given, name))
    if tensor.is_complex():
        raise ValueError(f"{name} is complex: fit real and imaginary parts as observations of their own")
    tensor = tensor.detach().to(torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds {int((~torch.isfinite(tensor)).sum())} numbers that are not finite")
    return tensor


def _count(function: Callable[..., Tensor]) -> int:
    """Parameters of the function besides x."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in found):
        raise ValueError("function takes any number of parameters: give p0")
    count = sum(parameter.kind in kinds for parameter in found) - 1
    if count < 1:
        raise ValueError("function must take x and at least one parameter")
    return count


def _bounds(bounds: Any, count: int) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (lower, upper), got {bounds!r}")
    ends = [torch.as_tensor(as_tensor(end, "bounds"), dtype=torch.float64) for end in bounds]
    for end in ends:
        if end.ndim and len(end) != count:
            raise ValueError(f"bounds hold {len(end)} numbers for {count} parameters")
    low, high = (end.expand(count) for end in ends)
    if not bool((low < high).all()):
        raise ValueError("each lower bound must be below its upper bound")
    return low, high


def _start(low: Float[Tensor, " P"], high: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Ones, or a point within the bounds, as SciPy chooses it."""
    below, above = torch.isfinite(low), torch.isfinite(high)
    start = torch.ones_like(low)
    start = torch.where(below & ~above, low + 1, start)
    start = torch.where(above & ~below, high - 1, start)
    return torch.where(below & above, 0.5 * (low + high), start)


def _deviations(sigma: Any, y: Float[Tensor, "*B M"]) -> Tensor | None:
    """Standard deviations in the shape of y, or a covariance matrix."""
    if sigma is None:
        return None
    found = _numbers(sigma, "sigma").to(y.device)
    count = y.shape[-1]
    if y.ndim == 1 and found.shape == (count, count):
        if not bool(torch.linalg.cholesky_ex(found).info == 0):
            raise ValueError("sigma as a covariance matrix must be positive definite")
        return found
    if not bool((found > 0).all()):
        raise ValueError("sigma must be positive")
    try:
        return found.expand(y.shape)
    except RuntimeError as error:
        raise ValueError(f"sigma of shape {tuple(found.shape)} does not go with y of {tuple(y.shape)}") from error
