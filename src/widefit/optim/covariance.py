"""The covariance of a least-squares estimate."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.jacobian import DenseJacobian
from widefit.losses.squared import HalfSquare, Squared
from widefit.optim.many_rows import tall_triangle
from widefit.optim.parameters import MovingParameters
from widefit.optim.point import StartingPoint
from widefit.optim.system import System


class UndeterminedError(ValueError):
    """Residuals that do not determine all parameters."""


def covariance(
    jacobian: Float[Tensor, "M P"],
    residual: Float[Tensor, " N"],
    names: Sequence[str],
    absolute: bool = False,
    count: int | None = None,
) -> Float[Tensor, "P P"]:
    """s² (JᵀJ)⁻¹ with s² = ‖r‖²/(M − P), or 1 where the residuals are in units of their standard deviations.

    Through singular values of J with its columns at unit length, so that parameters may be of any size.

    Parameters
    ----------
    jacobian
        J, or the triangle R of its QR.
    residual
        r, or one number of its norm.
    names
        Names of the parameters, for the error message.
    count
        Number of residuals; None: the rows of `jacobian`.

    Raises
    ------
    UndeterminedError
        JᵀJ is singular to rounding.
    """
    rows, columns = jacobian.shape if count is None else (count, jacobian.shape[1])
    matrix = jacobian.to(torch.float64)
    norms = torch.linalg.vector_norm(matrix, dim=0)
    lengths = torch.where(norms > 0, norms, 1.0)
    _, singular, right = torch.linalg.svd(matrix / lengths, full_matrices=len(matrix) < columns)
    lost = torch.ones(columns, dtype=torch.bool, device=matrix.device)
    lost[: len(singular)] = singular <= torch.finfo(jacobian.dtype).eps * max(rows, columns) * singular[0]
    if bool(lost.any()):
        weight = right[lost].square().sum(dim=0)
        involved = dict.fromkeys(name for name, part in zip(names, weight.tolist(), strict=True) if part > 1e-6)
        raise UndeterminedError(
            f"the residuals do not determine all parameters: {rows} residuals, {columns} parameters; a direction in "
            f"{', '.join(map(repr, involved))} changes none of them: fix one of these parameters"
        )
    half = right.T / singular / lengths[:, None]
    scale = 1.0 if absolute else _variance(residual, rows - columns)
    return scale * (half @ half.T)


def _variance(residual: Float[Tensor, " M"], freedom: int) -> float:
    """s²; infinite where as many parameters as residuals leave nothing to estimate it from."""
    squares = float(residual.to(torch.float64).square().sum())
    return squares / freedom if freedom > 0 else float("inf")


def system_covariance(
    system: System, moving: MovingParameters, memory: int, absolute: bool = False
) -> Float[Tensor, "P P"]:
    """The covariance of the parameters of a system of residuals at their present values.

    Raises
    ------
    ValueError
        The same as for `GaussNewton.covariance`.
    """
    if not all(isinstance(block.loss, HalfSquare | Squared) for block in system.blocks):
        raise ValueError("covariance is that of a least-squares estimate: it needs loss='mse' or residuals")
    point = StartingPoint.of(system, moving)
    residual = point.residual
    processes = system.processes
    jacobian = processes.attempt(lambda: _stored_jacobian(point, memory, absolute))
    names = [name for name, tensor in moving.tensors.items() for _ in range(tensor.numel())]
    if processes.size == 1:
        return covariance(jacobian, residual, names, absolute)
    triangle = tall_triangle(DenseJacobian(jacobian), residual, processes)[:-1, :-1]
    norm = torch.tensor([processes.norm(residual)], dtype=torch.float64)
    return processes.same(covariance(triangle, norm, names, absolute, system.total_rows(point.expansion)))


def _stored_jacobian(point: StartingPoint, memory: int, absolute: bool) -> Float[Tensor, "M P"]:
    """J̃ of the samples of this process, or J without the weights of the mean.

    Raises
    ------
    ValueError
        It takes more than `memory` bytes.
    """
    system, count = point.system, point.moving.count
    needed = 3 * 8 * len(point.residual) * count
    if needed > memory:
        raise ValueError(
            f"covariance stores J, {len(point.residual)} by {count}, and takes {needed / 1e9:.3g} GB; the memory "
            f"budget is {memory / 1e9:.3g} GB: fix some of the parameters, or raise memory="
        )
    jacobian = system.jacobian(point.values, point.expansion, memory // 4).dense().matrix
    if not absolute:  # the loss averages, and the matrix of the step with it
        return jacobian
    parts = zip(_blocks(jacobian, point), point.expansion.locals, system.portions, strict=True)
    # What stands for no sample has no root.
    return torch.cat([rows / local.root if part.share else rows for rows, local, part in parts])


def _blocks(jacobian: Float[Tensor, "M P"], point: StartingPoint) -> tuple[Float[Tensor, "_ P"], ...]:
    return jacobian.split([local.residual.numel() for local in point.expansion.locals])
