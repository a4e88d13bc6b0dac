"""Many small least-squares problems at once: Levenberg-Marquardt steps on a batch of parameter vectors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import jacfwd, vmap

# First λ, in parameters whose columns of J have unit length, and the λ at which a fit is given up.
_START = 1e-3
_LAST = 1e12
# As for one fit: see `widefit.optim.scaling`.
_OWN_SIZE = 0.1


@dataclass(frozen=True)
class BatchedSolution:
    """The ends of a batch of fits.

    Attributes
    ----------
    parameters
        Shape (B, P).
    residual, jacobian
        There, shapes (B, M) and (B, M, P).
    converged
        Whether no step promises to lower the sum of squares by more than rounding, shape (B,).
    steps
        Steps that the slowest one took.
    """

    parameters: Float[Tensor, "B P"]
    residual: Float[Tensor, "B M"]
    jacobian: Float[Tensor, "B M P"]
    converged: Bool[Tensor, " B"]
    steps: int


def batched_least_squares(
    residual: Callable[..., Tensor],
    start: Float[Tensor, "B P"],
    data: tuple[Tensor, ...],
    low: Float[Tensor, " P"],
    high: Float[Tensor, " P"],
    max_iter: int,
) -> BatchedSolution:
    """Minimize ‖r(θ_b, data_b)‖² over low ≤ θ_b ≤ high for every b.

    Damping by the gain ratio as Nielsen (IMM-REP-1999-05) does, scaling as Moré's; a parameter on a bound that the
    gradient pushes outwards is held there, a step over a bound ends on it (Kanzow, Yamashita and Fukushima, 2004).
    Fits that have converged leave the batch.

    Parameters
    ----------
    residual
        `residual(parameters, *data)` for one fit, (P,) to (M,).
    start
        Within the bounds.
    data
        Tensors of one entry a fit each.
    """
    values = vmap(residual)
    slopes = vmap(jacfwd(residual))
    state = _Fits(start.clone(), values(start, *data), slopes(start, *data))
    steps = 0
    while steps < max_iter and bool(state.working.any()):
        steps += 1
        here = state.working.nonzero()[:, 0]
        few = tuple(tensor[here] for tensor in data)
        change, promised = state.proposal(here, low, high)
        moved = (state.parameters[here] + change).clamp(low, high)
        after = values(moved, *few)
        better = state.judge(here, after, promised)
        chosen = here[better]
        state.parameters[chosen] = moved[better]
        state.residual[chosen] = after[better]
        if len(chosen):
            state.relinearize(chosen, slopes(moved[better], *(tensor[better] for tensor in few)))
    return BatchedSolution(state.parameters, state.residual, state.jacobian, state.converged, steps)


class _Fits:
    """The fits of a batch, changed in place."""

    def __init__(
        self, parameters: Float[Tensor, "B P"], residual: Float[Tensor, "B M"], jacobian: Float[Tensor, "B M P"]
    ):
        count = len(parameters)
        self.parameters = parameters
        self.residual = residual
        self.jacobian = jacobian
        self.norms = torch.linalg.vector_norm(jacobian, dim=1)
        self.damping = torch.full((count,), _START, dtype=parameters.dtype, device=parameters.device)
        self.growth = torch.full_like(self.damping, 2.0)
        # A start without a value or a derivative cannot be left.
        self.working = torch.isfinite(residual).all(dim=1) & torch.isfinite(self.norms).all(dim=1)
        self.converged = torch.zeros_like(self.working)
        self.before = (parameters.clone(), residual.clone(), jacobian.clone())

    def proposal(
        self, here: Tensor, low: Float[Tensor, " P"], high: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, "b P"], Float[Tensor, " b"]]:
        """Steps of some fits, and the decrease of ½‖r‖² that they promise; those that promise none are done."""
        parameters, residual, jacobian = self.parameters[here], self.residual[here], self.jacobian[here]
        slope = torch.einsum("bmp,bm->bp", jacobian, residual)
        held = ((parameters <= low) & (slope > 0)) | ((parameters >= high) & (slope < 0))
        jacobian = jacobian.masked_fill(held[:, None, :], 0.0)
        size = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        own = torch.where(parameters != 0, _OWN_SIZE * size / parameters.abs(), 0.0)
        weights = torch.maximum(self.norms[here], own)
        weights = torch.where((weights > 0) & torch.isfinite(weights), weights, 1.0)
        root = self.damping[here].sqrt()[:, None, None] * torch.eye(
            parameters.shape[1], dtype=parameters.dtype, device=parameters.device
        )
        stacked = torch.cat([jacobian / weights[:, None, :], root], dim=1)
        right = torch.cat([-residual, torch.zeros_like(parameters)], dim=1)
        orthogonal, triangle = torch.linalg.qr(stacked)
        solved = torch.linalg.solve_triangular(triangle, orthogonal.mT @ right[:, :, None], upper=True)[:, :, 0]
        change = (parameters + torch.where(held, 0.0, solved / weights)).clamp(low, high) - parameters
        image = torch.einsum("bmp,bp->bm", self.jacobian[here], change)
        promised = -((residual + 0.5 * image) * image).sum(dim=1)
        return change, promised

    def judge(self, here: Tensor, after: Float[Tensor, "b M"], promised: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Which steps are taken; sets λ, and lets fits end."""
        before = 0.5 * self.residual[here].square().sum(dim=1)
        gained = before - 0.5 * after.square().sum(dim=1)
        better = gained > 0
        rounding = torch.finfo(before.dtype).eps * before
        ratio = torch.where(promised > 0, gained / promised, -1.0)
        shrunk = (1 - (2 * ratio.clamp(0, 1) - 1) ** 3).clamp_min(1 / 3)
        damping, growth = self.damping[here], self.growth[here]
        self.damping[here] = torch.where(better, damping * shrunk, damping * growth).clamp_min(1e-15)
        self.growth[here] = torch.where(better, 2.0, 2 * growth)
        lost = promised.abs() <= rounding
        self.converged[here] = lost
        self.working[here] = ~lost & (damping < _LAST)
        return better

    def relinearize(self, chosen: Tensor, jacobian: Float[Tensor, "c M P"]) -> None:
        """Take over derivatives at new points; a point without one is left again."""
        norms = torch.linalg.vector_norm(jacobian, dim=1)
        sound = torch.isfinite(norms).all(dim=1)
        good, bad = chosen[sound], chosen[~sound]
        self.jacobian[good] = jacobian[sound]
        self.norms[good] = torch.maximum(self.norms[good], norms[sound])
        for kept, now in zip(self.before, (self.parameters, self.residual, self.jacobian), strict=True):
            now[bad] = kept[bad]
            kept[good] = now[good]
        self.damping[bad] *= 10 * self.growth[bad]
        self.growth[bad] *= 2
        self.converged[bad] = False
        self.working[bad] = self.damping[bad] < _LAST
