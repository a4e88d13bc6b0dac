"""Conversions before and after scikit-learn's checks of arrays."""

from typing import Any

import numpy as np
import torch
from scipy import sparse


def refuse_missing(name: str, values: Any) -> None:
    """Raise a ValueError that names the first row of some numbers that are not finite."""
    if sparse.issparse(values) or not hasattr(values, "__array__"):
        return
    array = np.asarray(values)
    if array.dtype.kind == "f" and array.ndim in (1, 2) and not np.isfinite(array).all():
        row, *column = np.argwhere(~np.isfinite(array))[0].tolist()
        where = f"row {row}" + (f", column {column[0]}" if column else "")
        raise ValueError(f"{name} contains NaN or infinity, first in {where}; leave such rows out, or fill them in")


def plain(value: Any) -> Any:
    """Return a tensor as an array; anything else as it is, for scikit-learn to check."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def dense(rows: Any) -> np.ndarray:
    """Return a sparse matrix as a dense one."""
    return rows.toarray() if sparse.issparse(rows) else rows
