"""Tables of many rows: the ridge and the input map, judged on rows that a larger sample has not seen."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.tuning.duplicates import MergedRows, WeightedRows
from widefit.tuning.gradient_outer_product import mix_columns
from widefit.tuning.leave_one_out import solve_shifted
from widefit.tuning.limit_kernel import co_firing_probability
from widefit.tuning.rows import draw_rows
from widefit.tuning.sphere import SphereMap

# Rows from which a table has many: a training of all of them takes longer than this does.
MANY = 8192
# Rows that are learnt from, and as many that judge: n³ / 3 work for each of a few ridges.
SAMPLE = 2500
# Ridges that are tried, in units of the mean of diag H: errors of few rows are flat over many decades.
_RIDGES = 10.0 ** np.array([-8.0, -6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5])
# What a ridge may add to the smallest error, for the shorter way to its solution.
_TOLERATED = 1.005


@dataclass(frozen=True)
class HeldOut:
    """Predictions of a kernel regression for rows that it has not seen.

    Attributes
    ----------
    alpha
        The ridge.
    error
        Root of the weighted mean squared error, summed over outputs.
    predictions
        Shape (q, k).
    rows, sample_weight
        Indices of the merged rows, and their weights.
    """

    alpha: float
    error: float
    predictions: Float[np.ndarray, "q k"]
    rows: Int[np.ndarray, " q"]
    sample_weight: Float[np.ndarray, " q"]


@dataclass(frozen=True)
class Halves:
    """Rows to learn from, others to judge by.

    Attributes
    ----------
    learnt, judged
        The rows.
    rows
        Indices among the merged rows of those that judge.
    """

    learnt: WeightedRows
    judged: WeightedRows
    rows: Int[np.ndarray, " q"]

    @classmethod
    def draw(
        cls, merged: MergedRows, classes: Int[np.ndarray, " n"] | None, generator: np.random.Generator
    ) -> "Halves":
        """Draw them at random, rare classes among them."""
        rows, weight = draw_rows(merged, 2 * SAMPLE, classes, generator)
        sample = WeightedRows(merged.rows[rows], merged.targets[rows], weight)
        half = rows.size // 2
        return cls(sample.part(slice(half)), sample.part(slice(half, None)), rows[half:])

    def mixed(self, sphere: SphereMap, threshold: float) -> SphereMap:
        """Mix the columns of a map by the gradients of a regression on the rows to learn from."""
        learnt = self.learnt
        return mix_columns(learnt.rows, learnt.targets, learnt.sample_weight, sphere, threshold)

    def judge(self, sphere: SphereMap, threshold: float, alpha: float, corrects: bool) -> HeldOut:
        """Regress with the limit kernel; the largest ridge whose error is nearly the smallest.

        Parameters
        ----------
        sphere, threshold
            The input map, and b.
        alpha
            The ridge where it was given.
        corrects
            False where it was, and stays.
        """
        inputs = sphere(self.learnt.rows)
        gram = inputs @ inputs.T
        gram *= co_firing_probability(gram, threshold)
        across = sphere(self.judged.rows) @ inputs.T
        across *= co_firing_probability(across, threshold)
        mean = max(float(gram.diagonal().mean()), float(np.finfo(float).tiny))
        tried = []
        for ridge in mean * _RIDGES if corrects else (max(alpha, float(_RIDGES[0]) * mean),):
            coefficients = solve_shifted(gram, self.learnt.targets, self.learnt.sample_weight, ridge)
            predictions = across @ coefficients
            squares = ((predictions - self.judged.targets) ** 2).sum(axis=1)
            error = math.sqrt(float(self.judged.sample_weight @ squares / self.judged.sample_weight.sum()))
            tried.append(
                HeldOut(float(ridge) if corrects else alpha, error, predictions, self.rows, self.judged.sample_weight)
            )
        smallest = min(fit.error for fit in tried)
        return [fit for fit in tried if fit.error <= _TOLERATED * smallest][-1]
