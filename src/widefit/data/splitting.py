"""Rows for training and rows held out."""

import numpy as np

from widefit.data.words import TableError


def split_rows(y: np.ndarray, fraction: float, seed: int, *, stratify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and held-out rows, each in ascending order.

    Parameters
    ----------
    y
        Target, shape (n,).
    fraction
        Share of rows to hold out, 0 ≤ fraction < 1; 0 holds out none.
    seed
        Fixes the split.
    stratify
        Hold out the same share of every class; at least one row of each stays in training.

    Raises
    ------
    TableError
        A fraction out of range, or one that leaves fewer than two rows for training.
    """
    if not 0 <= fraction < 1:
        raise TableError(f"the held-out fraction must be at least 0 and below 1, got {fraction}")
    n = len(y)
    everything = np.arange(n)
    if fraction == 0:
        return everything, everything[:0]
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(y == label) for label in np.unique(y)] if stratify else [everything]
    # A lone held-out row of a regression has no R².
    wanted = max(1 if stratify else 2, round(fraction * n))
    counts = _apportion([len(group) for group in groups], fraction, wanted)
    held_out = np.sort(
        np.concatenate([generator.permutation(group)[:count] for group, count in zip(groups, counts, strict=True)])
    )
    training = np.setdiff1d(everything, held_out)
    if len(training) < 2 or not len(held_out):
        raise TableError(f"{n} rows are too few to hold out a share of {fraction:g}; use --test-size 0")
    return training, held_out


def _apportion(sizes: list[int], fraction: float, wanted: int) -> list[int]:
    """Whole numbers near fraction · size that add up to `wanted` where every group can keep a row."""
    shares = [fraction * size for size in sizes]
    counts = [min(int(share), size - 1) for share, size in zip(shares, sizes, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (counts[index] - shares[index], index))
    for index in by_remainder:
        if sum(counts) >= wanted:
            break
        if counts[index] < sizes[index] - 1:
            counts[index] += 1
    return counts
