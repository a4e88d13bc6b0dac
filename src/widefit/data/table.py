"""Named columns and what their source says about them: every source of data becomes this before it is encoded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from widefit.data.words import TableError as TableError
from widefit.data.words import listing as listing
from widefit.data.words import plural as plural


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
        Decisions of the reader, in sentences for the user.
    decimal
        The decimal mark of text formats where the text shows which, otherwise "".
    doubts
        Columns whose values could be read in two ways, each with the question.
    """

    frame: pl.DataFrame
    name: str
    target: str | None = None
    declares_target: bool = False
    absent_is_zero: bool = False
    notes: tuple[str, ...] = ()
    decimal: str = ""
    doubts: Mapping[str, str] = field(default_factory=dict)
