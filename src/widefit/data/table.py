"""What every source of data becomes before it is encoded: named columns and what the source itself said about them."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl


class TableError(ValueError):
    """A table that cannot be read, or that cannot be used as it is. The message says where and what to do."""


@dataclass(frozen=True)
class Table:
    """A data set as it was found.

    Attributes
    ----------
    frame
        The columns, one row per sample, in the order of the source.
    name
        Short name, fit for a file name: "digits", "houses".
    target
        The target column where the source names one (NPZ, libsvm and built-in data sets do), else None.
    declares_target
        True for sources in which the target has its own place; then a `target` of None means that there is none.
    absent_is_zero
        True for sparse formats, where a column that does not occur is a column of zeros.
    notes
        What the reader decided, in sentences for the user.
    """

    frame: pl.DataFrame
    name: str
    target: str | None = None
    declares_target: bool = False
    absent_is_zero: bool = False
    notes: tuple[str, ...] = ()


def listing(names: Sequence[object], limit: int = 8) -> str:
    """Names in quotes, the first `limit` of them: "'a', 'b' and 3 more"."""
    shown = ", ".join(repr(name) for name in names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def plural(count: int, noun: str, many: str | None = None) -> str:
    """'1 row', '2 rows', '1,000 rows'."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
