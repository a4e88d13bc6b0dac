"""Choice between targets and their logarithms, by the leave-one-out error in the units of the targets."""

import numpy as np
from jaxtyping import Float

from widefit.kernels.threads import serial_blas
from widefit.plan.base import Choice
from widefit.tuning.columns import indicators
from widefit.tuning.duplicates import WeightedRows
from widefit.tuning.input_map import MAP_ROWS, MOSTLY_STEPS, is_confirmed, left_out_residuals, spreads_of
from widefit.tuning.sphere import SphereMap
from widefit.tuning.steps import Steps

# Ratio of the largest target to the smallest, below which the logarithm is all but a line.
_LEAST_RATIO = 3.0
# Residuals of logarithms are cut off here: one row must not decide what the others are multiplied by.
_LARGEST_RESIDUAL = 3.0


def may_be_logarithmic(targets: Float[np.ndarray, "n k"]) -> bool:
    """Return True for positive targets that differ by factors."""
    smallest = targets.min(axis=0)
    return bool((smallest > 0).all() and (targets.max(axis=0) / np.maximum(smallest, 1e-300) > _LEAST_RATIO).all())


def smearing(residuals: Float[np.ndarray, "n k"], sample_weight: Float[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """Return E[exp r] of left-out residuals of logarithms: exp f times it is unbiased (Duan 1983)."""
    bounded = np.clip(residuals, -_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
    return sample_weight @ np.exp(bounded) / sample_weight.sum()


@serial_blas()
def compare_logarithm(
    rows: WeightedRows,
    logarithms: Float[np.ndarray, "n 1"],
    scale: float,
    threshold: float,
    seed: int,
) -> Choice | None:
    """Return the choice of logarithms, where they predict clearly better; None where the targets themselves do.

    Parameters
    ----------
    rows
        Distinct rows; their targets are those themselves, shape (n, 1), in any units.
    logarithms
        Mean log targets of the same rows.
    scale
        Standard deviation of the targets.
    threshold
        b.
    seed
        Draws rows where there are more than are needed.
    """
    drawn = np.random.default_rng(seed).permutation(len(rows.rows))[:MAP_ROWS]
    if drawn.size < 4:
        return None
    weight = rows.sample_weight[drawn]
    share = weight / weight.sum()
    X = rows.rows[drawn]
    scaled = SphereMap.fit(X, weight, scaling="columns", constant=1.0)
    maps = [scaled]
    steps = Steps.fit(X, indicators(X))
    # A jump of the targets looks like factors to a map without steps.
    if steps.columns.size:
        maps.append(scaled.with_steps(X, weight, steps, MOSTLY_STEPS))
    truth = rows.targets[drawn]
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for sphere in maps:
        plain, of_logarithms = (
            left_out_residuals(sphere(X), values - share @ values, weight, threshold)
            for values in (truth, logarithms[drawn])
        )
        predicted = np.exp(logarithms[drawn] - of_logarithms) * smearing(of_logarithms, weight)
        found[0].append((plain / scale)[:, 0] ** 2)
        found[1].append(np.minimum(((truth - predicted) / scale)[:, 0] ** 2, 1e100))
    before, after = (min(errors, key=lambda squares: float(share @ squares)) for errors in found)
    if not is_confirmed(before, after, weight):
        return None
    reason = f"leave-one-out error {spreads_of(before, weight):.3g} → {spreads_of(after, weight):.3g} spreads"
    return Choice("target", "logarithm", f"{reason}, on {drawn.size} rows; predictions are means again")
