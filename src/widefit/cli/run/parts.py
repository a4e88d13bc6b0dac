"""Rows of a table to learn from, and rows held out of that."""

import numpy as np

from widefit.data.splitting import split_rows

# The fewest rows that are held out; fewer tell nothing.
_FEWEST = 5


def held_out_and_training(y: np.ndarray, share: float, seed: int, *, stratify: bool) -> dict[str, np.ndarray]:
    """Return indices of rows, "held-out" and "training"; the former is absent where fewer than five would be held out.

    Parameters
    ----------
    y
        Targets, shape (n,).
    share
        Part of the rows to hold out.
    seed
        Draws them.
    stratify
        Hold out the same share of every class.

    Raises
    ------
    ValueError
        A share that leaves fewer than two rows to learn from.
    """
    count = round(share * len(y))
    if count < _FEWEST:
        return {"training": np.arange(len(y))}
    if len(y) - count < 2:
        raise ValueError(f"--validation {share:g} leaves fewer than two of {len(y)} rows to train on")
    training, held_out = split_rows(y, share, seed, stratify=stratify)
    return {"held-out": held_out, "training": training}
