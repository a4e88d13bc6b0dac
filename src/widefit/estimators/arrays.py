"""Conversions before and after scikit-learn's checks of arrays."""

from typing import Any

import numpy as np
import torch
from scipy import sparse


def matrix_of(X: Any) -> Any:
    """Return lists of lists as a matrix in which text stands beside numbers; anything else as it is."""
    if not isinstance(X, list | tuple):
        return X
    try:
        array = np.asarray(X)
        return np.array(X, dtype=object) if array.dtype.kind == "U" else array
    except (TypeError, ValueError):
        # Of several lengths: scikit-learn's checks say so.
        return X


def needs_encoding(X: Any, categorical_features: Any) -> bool:
    """Return True for data frames, and for matrices with gaps, with text, or with columns that are to be categories."""
    if hasattr(X, "columns"):
        return True
    if not isinstance(X, np.ndarray) or X.ndim != 2 or not X.size:
        return False
    if _names_columns(categorical_features):
        return True
    if X.dtype.kind == "O":
        return any(isinstance(value, str) or is_gap(value) for value in X.ravel())
    if X.dtype.kind == "U":
        return _numbers(X) is None
    return X.dtype.kind == "f" and bool(np.isnan(X).any())


def is_gap(value: Any) -> bool:
    """Return True for None, NaN, NaT and NA."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def refuse_sparse_categories(X: Any, categorical_features: Any) -> None:
    """Raise a ValueError where columns of a sparse matrix are to be categories."""
    if sparse.issparse(X) and _names_columns(categorical_features):
        raise ValueError("categorical_features takes a dense X: sparse matrices hold numbers alone")


def _names_columns(categorical_features: Any) -> bool:
    return not isinstance(categorical_features, str | None) and np.size(categorical_features) > 0


def text_or_numbers(column: np.ndarray) -> np.ndarray:
    """Return text that is all numbers as numbers."""
    found = _numbers(column)
    return column if found is None else found


def _numbers(text: np.ndarray) -> np.ndarray | None:
    try:
        return text.astype(np.float64)
    except ValueError:
        return None


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
