"""Equal rows become one: the squared loss only sees their total weight and their mean target."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class MergedRows:
    """Distinct rows of a table, in lexicographic order.

    Attributes
    ----------
    rows
        Shape (n, d).
    targets
        Weighted mean target of the equal rows, shape (n, k).
    sample_weight
        Their total weight, shape (n,).
    floor
        Weighted mean over the table of the squared distance of the targets from those means: the part of the training
        loss that no function of the rows can remove.
    """

    rows: Float[np.ndarray, "n d"]
    targets: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]
    floor: float


def merge_duplicates(
    rows: Float[np.ndarray, "N d"], targets: Float[np.ndarray, "N k"], sample_weight: Float[np.ndarray, " N"]
) -> MergedRows:
    """Merge equal rows and drop those of weight 0.

    A repeated row and a row of twice the weight give the same result to the last bit of the order of their sums, and
    the Gram matrix of the distinct rows is not singular.
    """
    kept = sample_weight > 0
    rows, targets, sample_weight = rows[kept], targets[kept], sample_weight[kept]
    distinct, group = np.unique(rows, axis=0, return_inverse=True)
    group = group.reshape(-1)
    total = np.bincount(group, sample_weight, distinct.shape[0])
    mean = np.empty((distinct.shape[0], targets.shape[1]))
    for output in range(targets.shape[1]):
        mean[:, output] = np.bincount(group, sample_weight * targets[:, output], distinct.shape[0]) / total
    floor = float(sample_weight @ ((targets - mean[group]) ** 2).sum(1) / sample_weight.sum())
    return MergedRows(distinct, mean, total, floor)
