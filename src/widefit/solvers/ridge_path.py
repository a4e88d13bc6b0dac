"""Ridge regressions for a falling ridge, each from the one before, as long as held-out rows profit (this project)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import Operator
from widefit.gram.weighted import WeightedGram
from widefit.solvers.nystrom_cg import NystromCG

# A solve ends at the smaller residual, or at the larger one where the error changes by no more than this part between
# two looks.
_RESIDUALS = (1e-2, 5e-2)
_SETTLED = 2e-3
_LOOK = 3
# A ridge whose error is larger than the best by this part ends the path.
_WORSE = 1.005


@dataclass(frozen=True)
class RidgeFit:
    """Solution of (√ω H √ω + α I) √ω⁻¹ g = √ω y on all rows but the held-out ones, on which g is 0.

    Attributes
    ----------
    ridge
        α.
    coefficients
        g.
    predictions
        (H g) on the held-out rows.
    error
        Weighted mean squared error there.
    residual
        That of the system, in parts of its right-hand side.
    products
        Products with H so far.
    """

    ridge: float
    coefficients: Float[Tensor, " n"]
    predictions: Float[np.ndarray, " q"]
    error: float
    residual: float
    products: int


def ridge_path(
    gram: Operator,
    targets: Float[Tensor, " n"],
    sample_weight: Float[Tensor, " n"],
    held: Int[Tensor, " q"],
    ridges: Float[np.ndarray, " a"],
    rank: int,
    limit: int,
    whole: bool = False,
) -> list[RidgeFit]:
    """Regress for one ridge after the other, until the error on the held-out rows rises or a solve takes too long.

    Parameters
    ----------
    gram
        H.
    targets, sample_weight
        y, and ω > 0.
    held
        Rows that judge.
    ridges
        α, descending: large ones take few products.
    rank
        Columns of the preconditioner, which all ridges share.
    limit
        Products at most for a ridge.
    whole
        True for all ridges, whatever their error.
    """
    root = sample_weight.sqrt()
    root[held] = 0
    weighted = WeightedGram(gram, root[:, None, None])
    solver = NystromCG(rank=rank)
    low = solver.factored(weighted)
    right = root * targets
    truth = targets[held]
    share = sample_weight[held] / sample_weight[held].sum()
    value = torch.zeros_like(right)
    image = torch.zeros_like(right)
    size = float(torch.linalg.vector_norm(right))
    fits: list[RidgeFit] = []
    products = 0
    for ridge in ridges.tolist():
        prepared = solver.prepared(weighted, ridge, low)
        residual = right - root * image - ridge * value
        direction = preconditioned = prepared.precondition(residual)
        rho = torch.dot(residual, preconditioned)
        error = float(share @ (image[held] - truth).square())
        spent = 0
        left = float(torch.linalg.vector_norm(residual)) / size if size > 0 else 0.0
        while left > _RESIDUALS[0] and spent < limit and bool(rho > 0):
            moved = gram.matvec(root * direction)
            spent += 1
            step = rho / torch.dot(direction, root * moved + ridge * direction)
            value = value + step * direction
            image = image + step * moved
            residual = right - root * image - ridge * value
            preconditioned = prepared.precondition(residual)
            rho, previous = torch.dot(residual, preconditioned), rho
            direction = preconditioned + (rho / previous) * direction
            left = float(torch.linalg.vector_norm(residual)) / size
            if spent % _LOOK == 0:
                before, error = error, float(share @ (image[held] - truth).square())
                if left <= _RESIDUALS[1] and abs(error - before) <= 2 * _SETTLED * before:
                    break
        products += spent
        error = float(share @ (image[held] - truth).square())
        fits.append(RidgeFit(ridge, root * value, image[held].numpy(), error, left, products))
        if not whole and (spent == limit or error > _WORSE**2 * min(fit.error for fit in fits)):
            break
    return fits
