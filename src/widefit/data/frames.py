"""Data frames of other libraries, as those of Polars."""

from typing import Any

import numpy as np
import polars as pl


def is_frame(rows: Any) -> bool:
    """Return True for a data frame of Polars, or one that looks like pandas'."""
    return isinstance(rows, pl.DataFrame) or (hasattr(rows, "columns") and hasattr(rows, "dtypes"))


def polars_of(rows: Any) -> pl.DataFrame:
    """Return a data frame as one of Polars; what is missing in text is null.

    Parameters
    ----------
    rows
        A frame of Polars, or of pandas, whose column names become text.
    """
    if isinstance(rows, pl.DataFrame):
        return rows
    return pl.DataFrame([_series(str(name), rows.iloc[:, place]) for place, name in enumerate(rows.columns)])


def _series(name: str, column: Any) -> pl.Series:
    """Return a column of pandas; numbers are not copied one by one."""
    kind = getattr(column.dtype, "kind", "O")
    if kind in "iufb" and isinstance(column.dtype, np.dtype):
        return pl.Series(name, column.to_numpy())
    missing = column.isna().to_numpy()
    values = [None if gap else value for value, gap in zip(column.tolist(), missing, strict=True)]
    try:
        return pl.Series(name, values)
    except TypeError:  # a column of several types
        return pl.Series(name, [None if value is None else str(value) for value in values])
