"""Rows that the tuning looks at: all of a small table, some of a large one, with every class among them."""

import numpy as np
from jaxtyping import Float, Int

from widefit.tuning.duplicates import WeightedRows

_FLOAT = np.finfo(np.float64)


def draw_rows(
    merged: WeightedRows, size: int, classes: Int[np.ndarray, " n"] | None, generator: np.random.Generator
) -> tuple[Int[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Draw distinct rows and the weights with which they stand for all.

    Half of the rows are drawn from the table as it is, the others in equal parts from the classes, so that rare ones
    are there; weights give every class its share of the table.

    Parameters
    ----------
    merged
        n rows.
    size
        r, unless n is smaller.
    classes
        Class of every row, or None.
    generator
        Draws.

    Returns
    -------
    Indices in random order, and weights.
    """
    order = generator.permutation(merged.rows.shape[0])
    if classes is None or size >= order.size:
        return order[:size], merged.sample_weight[order[:size]]
    _, classes = np.unique(classes, return_inverse=True)
    rank = np.empty(order.size, np.int64)
    for label in range(classes.max() + 1):
        own = order[classes[order] == label]
        rank[own] = np.arange(own.size)
    by_class = order[np.argsort(rank[order], kind="stable")][: size // 2]
    drawn = np.append(by_class, np.setdiff1d(order, by_class, assume_unique=True)[: size - by_class.size])
    drawn = generator.permutation(drawn)
    weight = merged.sample_weight
    totals = np.bincount(classes, weight)
    drawn_totals = np.bincount(classes[drawn], weight[drawn], totals.size)
    factor = (totals / totals.sum()) / np.maximum(drawn_totals / drawn_totals.sum(), _FLOAT.tiny)
    return drawn, weight[drawn] * factor[classes[drawn]]
