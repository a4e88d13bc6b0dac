"""Equal rows become one: the squared loss only sees their total weight and their mean target."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.tuning.columns import ROUNDING, spreads

# Numbers that are equal up to rounding differ by no more than this part of the spread of their column as well.
_PART_OF_SPREAD = 1e-5


@dataclass(frozen=True)
class WeightedRows:
    """Rows with their encoded targets and their weights.

    Attributes
    ----------
    rows, targets, sample_weight
        Shapes (n, d), (n, k) and (n,).
    """

    rows: Float[np.ndarray, "n d"]
    targets: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]

    def part(self, kept: slice) -> "WeightedRows":
        """Return some of the rows."""
        return WeightedRows(self.rows[kept], self.targets[kept], self.sample_weight[kept])


@dataclass(frozen=True)
class MergedRows(WeightedRows):
    """Distinct rows of a table, in lexicographic order up to rounding: targets are means, weights are sums.

    Attributes
    ----------
    floor
        Weighted mean over the table of the squared distance of the targets from those means: the part of the training
        loss that no function of the rows can remove.
    group
        Which of the distinct rows each row of the table of positive weight is, shape (N,).
    """

    floor: float
    group: Int[np.ndarray, " N"]


def merge_duplicates(
    rows: Float[np.ndarray, "N d"], targets: Float[np.ndarray, "N k"], sample_weight: Float[np.ndarray, " N"]
) -> MergedRows:
    """Merge rows that are equal up to rounding and drop those of weight 0.

    A repeated row and a row of twice the weight give the same result to the last bit of the order of their sums, and
    no prediction of a left-out row rests on a copy of it. Of rows that are merged the first in lexicographic order
    stays as it is.
    """
    kept = sample_weight > 0
    targets = targets[kept]
    sample_weight = sample_weight[kept]
    distinct, group = np.unique(rows[kept], axis=0, return_inverse=True)
    _, first, merged = np.unique(_cells(distinct), axis=0, return_index=True, return_inverse=True)
    group = merged.reshape(-1)[group.reshape(-1)]
    total = np.bincount(group, sample_weight, first.size)
    sums = [np.bincount(group, sample_weight * target, first.size) for target in targets.T]
    mean = np.stack(sums, axis=1) / total[:, None]
    floor = float(sample_weight @ ((targets - mean[group]) ** 2).sum(1) / sample_weight.sum())
    return MergedRows(distinct[first], mean, total, floor, group)


def _cells(rows: Float[np.ndarray, "n d"]) -> Int[np.ndarray, "n d"]:
    """Number the values of each column in ascending order, those equal up to rounding alike."""
    spread = spreads(rows)
    cells = np.empty(rows.shape, np.int64)
    for column, values in enumerate(rows.T):
        known, place = np.unique(values, return_inverse=True)
        tolerance = np.minimum(ROUNDING * np.abs(known), _PART_OF_SPREAD * spread[column])
        with np.errstate(over="ignore"):
            begins = np.append(True, known[1:] - known[:-1] > tolerance[1:])
        # A long chain of close neighbours is cut into cells of a few tolerances.
        start = known[np.maximum.accumulate(np.where(begins, np.arange(known.size), 0))]
        part = np.floor((known - start) / np.maximum(4 * tolerance, np.finfo(float).tiny))
        begins[1:] |= part[1:] != part[:-1]
        cells[:, column] = np.cumsum(begins)[place.reshape(-1)]
    return cells
