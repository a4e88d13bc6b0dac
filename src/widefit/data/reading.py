"""Instructions for readers: what the user says about a table, and what training saw of its columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

DECIMALS = (".", ",")


@dataclass(frozen=True)
class Reading:
    """Instructions for a reader. Everything left out is decided from the table itself.

    Attributes
    ----------
    header
        Whether the first line of a text holds the names; None: seen from the text.
    decimal
        The decimal mark of a text, "." or ","; the other one separates thousands. None: seen from the text.
    na_values
        What stands for a missing value, besides the usual marks. A number stands for every way to write it.
    kinds
        Kinds of the columns that training saw, by name, as of `widefit.data.columns`; others are decided anew.
    usual_decimal
        The decimal mark in training, for texts that do not show theirs; "" where that one did not either.
    """

    header: bool | None = None
    decimal: str | None = None
    na_values: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    usual_decimal: str = ""

    def without_marks(self, values: pl.Series) -> pl.Series:
        """The values, null where they are one of `na_values`."""
        if not self.na_values or not (values.dtype.is_numeric() or values.dtype == pl.String):
            return values
        numbers = pl.Series(self.na_values).cast(pl.Float64, strict=False).drop_nulls()
        marked = values.cast(pl.Float64, strict=False).is_in(numbers.implode()).fill_null(False)
        if values.dtype == pl.String:
            marked |= values.str.strip_chars().is_in(list(self.na_values)).fill_null(False)
        return values.set(marked, None)
