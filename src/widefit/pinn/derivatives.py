"""Derivatives of a network by its input, at ONE point: for residual functions, which are vectorized over points.

`network` is anything that maps a point of shape (d,) to a tensor: the model that the residual function is given, or a
function of it.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

from widefit.pinn.jets import Jet, Kind, UnsupportedError, propagate
from widefit.pinn.mixed import Blend, blends

# Up to so many coordinates a gradient is taken forward, along each of them.
_FORWARD = 8
# Taylor series of jets end here.
_HIGHEST = 4


def gradient(network: Callable[[Tensor], Tensor], point: Float[Tensor, "..."]) -> Float[Tensor, " d"]:
    """∇u for a network with one output.

    Parameters
    ----------
    network
        u, from (d,) to one number of any shape.
    point
        Where, shape (d,).

    Returns
    -------
    Tensor
        Shape (d,), in units of u over units of the point.

    Raises
    ------
    ValueError
        The network has several outputs.
    """
    _check_point(point)
    jet = propagate(network, point, _units(point), _first(point)) if len(point) <= _FORWARD else None
    if jet is not None and jet.numel() == 1:
        return jet.rows[1:].reshape(len(point))
    return grad(_scalar(network))(point)


def derivative(
    network: Callable[[Tensor], Tensor], point: Float[Tensor, "..."], axis: int, order: int = 1
) -> Float[Tensor, "*k"]:
    """∂ᵒu/∂x_axisᵒ of every output, by forward differentiation: the time derivative when `axis` is time.

    Parameters
    ----------
    network
        u, from (d,) to a tensor; one output comes back as a number.
    point
        Where, shape (d,).
    axis
        Coordinate, −d … d − 1.
    order
        How often, at least 1.

    Raises
    ------
    ValueError
        An axis the point does not have, an order below 1.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    return partials(network, point, (axis,) * order)[0]


def partials(
    network: Callable[[Tensor], Tensor], point: Float[Tensor, "..."], *axes: tuple[int, ...]
) -> tuple[Float[Tensor, "*k"], ...]:
    """Partial derivatives of every output, mixed ones too, in one forward pass.

    `u, u_x, u_t, u_xxx = partials(network, point, (), (0,), (1,), (0, 0, 0))`. One pass carries Taylor series along as
    few directions as tell all of them, up to the fourth order where the network has rules for it; otherwise each is
    taken by torch's transforms. Mixed ones come from derivatives along sums of coordinates.

    Parameters
    ----------
    network
        u, from (d,) to a tensor; one output comes back as a number.
    point
        Where, shape (d,).
    axes
        For every derivative the coordinates by which to differentiate, −d … d − 1; () for u itself.

    Raises
    ------
    ValueError
        An axis the point does not have, none asked for.
    """
    _check_point(point)
    if not axes:
        raise ValueError("partials needs at least one tuple of axes: () for the value, (0,) for ∂/∂x₀, (0, 0), …")
    size = len(point)
    for axis in (axis for wanted in axes for axis in wanted):
        _check_axis(axis, size)
    wanted = tuple(tuple(sorted(axis % size for axis in one)) for one in axes)
    if max(map(len, wanted)) <= _HIGHEST:
        directions, orders, found = blends(wanted, size)
        along = torch.tensor(directions, dtype=point.dtype, device=point.device).reshape(-1, size)
        jet = propagate(network, point, along, Kind(orders))
        if jet is not None:
            return tuple(_scalar_or_all(_blended(jet, blend)) for blend in found)
    return tuple(_nested(_squeezed(network), point, one) for one in wanted)


def laplacian(
    network: Callable[[Tensor], Tensor], point: Float[Tensor, "..."], axes: Sequence[int] | None = None
) -> Float[Tensor, "*k"]:
    """Σᵢ ∂²u/∂xᵢ² of every output.

    One forward pass of jets where the network allows it; otherwise one output is differentiated backward once and
    forward d times, several are differentiated forward twice.

    Parameters
    ----------
    network
        u, from (d,) to a tensor; one output comes back as a number.
    point
        Where, shape (d,).
    axes
        Coordinates i of the sum, −d … d − 1, each once: those of space where another is time; None: all.

    Raises
    ------
    ValueError
        An axis the point does not have, one that comes twice, none at all.
    """
    _check_point(point)
    units = _units(point)
    if axes is not None:
        _check_axes(axes, len(point))
        units = torch.stack([units[axis] for axis in axes])
    jet = propagate(network, point, units, Kind((1,) * len(units), summed=True))
    if jet is not None:
        return _scalar_or_all(jet.rows[-1])
    if network(point).numel() == 1:
        return ((units @ hessian(_scalar(network))(point)) * units).sum()
    return vmap(lambda unit: _pushed(_pushed(network, unit), unit)(point))(units).sum(dim=0)


def divergence(network: Callable[[Tensor], Tensor], point: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Σᵢ ∂vᵢ/∂xᵢ of a field with as many components as coordinates.

    Parameters
    ----------
    network
        v, from (d,) to (d,).
    point
        Where, shape (d,).

    Raises
    ------
    ValueError
        The field does not have one component a coordinate.
    """
    _check_point(point)
    jet = propagate(network, point, _units(point), _first(point))
    if jet is not None:
        columns = jet.rows[1:]
    else:
        columns = vmap(lambda unit: jvp(network, (point,), (unit,))[1])(_units(point))
    if columns.shape != (len(point), len(point)):
        raise ValueError(
            f"divergence needs one component a coordinate: {len(point)} coordinates, field of shape "
            f"{tuple(columns.shape[1:])}"
        )
    return columns.diagonal().sum()


def _blended(jet: Jet, blend: Blend) -> Tensor:
    """A partial derivative from the rows of a jet."""
    if blend.order == 0:
        return jet.rows[0]
    rows = jet.series()[blend.order]
    terms = [factor * rows[place] if factor != 1 else rows[place] for place, factor in blend.terms]
    return sum(terms[1:], terms[0])


def _nested(network: Callable[[Tensor], Tensor], point: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A partial derivative by torch's own transforms."""
    units = _units(point)
    for axis in axes:
        network = _pushed(network, units[axis])
    return network(point)


def _first(point: Tensor) -> Kind:
    return Kind((1,) * len(point))


def _pushed(function: Callable[[Tensor], Tensor], tangent: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda point: jvp(function, (point,), (tangent,))[1]


def _scalar(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def single(point: Tensor) -> Tensor:
        value = network(point)
        if value.numel() != 1:
            raise ValueError(f"this derivative needs a network with one output, got shape {tuple(value.shape)}")
        return value.reshape(())

    return single


def _squeezed(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def squeezed(point: Tensor) -> Tensor:
        return _scalar_or_all(network(point))

    return squeezed


def _scalar_or_all(value: Tensor) -> Tensor:
    return value.reshape(()) if value.numel() == 1 else value


def _units(point: Tensor) -> Float[Tensor, "d d"]:
    return torch.eye(len(point), dtype=point.dtype, device=point.device)


def _check_axis(axis: int, size: int) -> None:
    if not -size <= axis < size:
        raise ValueError(f"axis {axis} is out of range for a point of {size} coordinates")


def _check_axes(axes: Sequence[int], size: int) -> None:
    for axis in axes:
        _check_axis(axis, size)
    if not axes or len({axis % size for axis in axes}) < len(axes):
        raise ValueError(f"laplacian needs at least one axis, and each of them once, got {tuple(axes)}")


def _check_point(point: Tensor) -> None:
    if isinstance(point, Jet):  # a derivative of a derivative: the outer one is taken by torch's transforms
        raise UnsupportedError("a derivative")
    if point.ndim != 1:
        raise ValueError(
            f"derivatives are taken at ONE point of shape (d,), got {tuple(point.shape)}; the optimizer vectorizes "
            "residuals itself"
        )
