"""Effects of categories: the mean targets of their rows, drawn towards the mean of all the more the fewer they are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

FOLDS = 5
# Bounds on the rows that the mean of all rows counts for in the mean of a category.
_LEAST_PRIOR, _LARGEST_PRIOR = 1.0, 1e6


@dataclass(frozen=True)
class Outcomes:
    """Targets of the training rows, from which effects are learnt.

    Attributes
    ----------
    values
        Shape (n, k): quantities, or 0/1 for classes.
    sample_weight
        Weights ≥ 0, shape (n,).
    """

    values: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]

    def part(self, rows: np.ndarray) -> "Outcomes":
        """Return those of some rows."""
        return Outcomes(self.values[rows], self.sample_weight[rows])


def effects(codes: Int[np.ndarray, " n"], outcomes: Outcomes, categories: int) -> Float[np.ndarray, "rows k"]:
    """Return the shrunk mean of every category, and in the last row that of all.

    The mean of all counts for as many rows as the variance within categories is times that between them, both estimated
    by moments: the empirical Bayes estimate for normal effects (James and Stein 1961; Micci-Barreca 2001 for targets).

    Parameters
    ----------
    codes
        Category of every row, −1 for none.
    outcomes
        Of the same rows.
    categories
        Their count.
    """
    known = (codes >= 0) & (outcomes.sample_weight > 0)
    weight = outcomes.sample_weight[known]
    values = outcomes.values[known]
    everyone = max(float(outcomes.sample_weight.sum()), np.finfo(float).tiny)
    overall = outcomes.sample_weight @ outcomes.values / everyone
    totals = np.bincount(codes[known], weight, categories).astype(np.float64)
    columns = [np.bincount(codes[known], weight * column, categories) for column in values.T]
    sums = np.stack(columns, axis=1).astype(np.float64)
    prior = _prior_rows(codes[known], values, weight, totals, sums)
    shrunk = (sums + prior * overall) / (totals[:, None] + prior)
    return np.vstack([shrunk, overall])


def out_of_fold(codes: Int[np.ndarray, " n"], outcomes: Outcomes, categories: int) -> Float[np.ndarray, "n k"]:
    """Return the effect of the category of every row as rows of other folds tell it: no row sees its own target.

    The folds are drawn with a fixed seed.
    """
    fold = np.random.default_rng(0).permutation(codes.size) % FOLDS
    found = np.empty((codes.size, outcomes.values.shape[1]))
    for held_out in range(FOLDS):
        mine = fold == held_out
        found[mine] = effects(codes[~mine], outcomes.part(~mine), categories)[codes[mine]]
    return found


def _prior_rows(
    codes: Int[np.ndarray, " n"],
    values: Float[np.ndarray, "n k"],
    weight: Float[np.ndarray, " n"],
    totals: Float[np.ndarray, " categories"],
    sums: Float[np.ndarray, "categories k"],
) -> Float[np.ndarray, " k"]:
    """Return the variance within categories over that between them, for every output."""
    total = float(weight.sum())
    seen = int(np.count_nonzero(totals))
    spare = total - float(totals @ totals) / max(total, np.finfo(float).tiny)
    if seen < 2 or codes.size <= seen or spare <= 0:
        return np.full(values.shape[1], _LARGEST_PRIOR if seen < 2 else 1.0)
    means = sums / np.where(totals > 0, totals, 1.0)[:, None]
    grand = sums.sum(0) / total
    # Weights count as rows: scaled to a mean of one, so that their unit has no influence.
    unit = weight.mean()
    within = weight @ (values - means[codes]) ** 2 / unit / (codes.size - seen)
    between = (totals @ (means - grand) ** 2 / unit - (seen - 1) * within) / (spare / unit)
    # Where categories differ by no more than chance explains, the mean of all counts for all but everything.
    ratio = within / np.maximum(np.maximum(between, within / _LARGEST_PRIOR), np.finfo(float).tiny)
    return unit * np.maximum(ratio, _LEAST_PRIOR)
