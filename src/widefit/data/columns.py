"""One feature column: what kind it is, what training learns about it, and the numbers it becomes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from widefit.data.table import TableError, listing, plural

Kind = Literal["number", "boolean", "category"]

MAX_CATEGORIES = 1000
# Whole numbers up to here are floating-point numbers of their own.
EXACT = 2**53
# Beyond this, squares and their sums overflow.
LARGEST = 1e100
# A text column is taken for numbers with mistakes in it when at least this share of its values are numbers.
MOSTLY_NUMBERS = 0.5


@dataclass(frozen=True)
class Column:
    """A feature column as training saw it.

    Attributes
    ----------
    name
        The column.
    kind
        "number", "boolean" (0 or 1) or "category" (one 0/1 column per category).
    categories
        The categories in order; empty for the other kinds.
    fill
        What stands in for a missing value; None where missing values are an error.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    fill: float | str | None = None

    @property
    def width(self) -> int:
        """How many numbers the column becomes."""
        return len(self.categories) if self.kind == "category" else 1

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each of those numbers."""
        return tuple(f"{self.name}={category}" for category in self.categories) or (self.name,)

    def to_dict(self) -> dict:
        """Plain Python values, ready for JSON."""
        return {"name": self.name, "kind": self.kind, "categories": list(self.categories), "fill": self.fill}

    @classmethod
    def from_dict(cls, record: dict) -> "Column":
        """The inverse of `to_dict`."""
        return cls(record["name"], record["kind"], tuple(record["categories"]), record["fill"])

    def encode(self, values: pl.Series, out: np.ndarray) -> tuple[str, ...]:
        """Write the numbers of a column without missing values into `out`, shape (n, width), zeros at first.

        Returns
        -------
        The values that training did not see; their rows stay zero.

        Raises
        ------
        TableError
            Text where training saw numbers or booleans, infinite numbers.
        """
        if self.kind == "number":
            out[:, 0] = as_numbers(values)
            return ()
        if self.kind == "boolean":
            out[:, 0] = _as_booleans(values)
            return ()
        text = as_text(values)
        codes = text.replace_strict(list(self.categories), list(range(self.width)), default=None, return_dtype=pl.Int64)
        known = codes.is_not_null().to_numpy()
        out[np.flatnonzero(known), codes.drop_nulls().to_numpy()] = 1.0
        return tuple(text.filter(~known).unique(maintain_order=True).to_list())


def kind_of(values: pl.Series) -> Kind:
    """What kind of feature a column is.

    Raises
    ------
    TableError
        Dates and times, lists and other nested types, text that is numbers with mistakes in it.
    """
    name, dtype = values.name, values.dtype
    if dtype.is_temporal():
        what = "durations" if dtype == pl.Duration else "times of day" if dtype == pl.Time else "dates"
        raise TableError(
            f"column {name!r} holds {what}; turn it into numbers (year, month, days since a fixed day) or leave "
            f"it out with --drop {shell(name)}"
        )
    if dtype.is_numeric():
        return "number"
    if dtype == pl.Boolean:
        return "boolean"
    if dtype in (pl.Categorical, pl.Enum):
        return "category"
    if dtype != pl.String:
        raise TableError(
            f"column {name!r} holds {dtype} values, which are not one number or text; use --drop {shell(name)}"
        )
    _refuse_broken_numbers(values)
    return "category"


def learn_categories(values: pl.Series) -> tuple[str, ...]:
    """The categories of a column, sorted.

    Raises
    ------
    TableError
        About a category per row (names, identifiers, free text), or more than `MAX_CATEGORIES`.
    """
    text = as_text(values).drop_nulls()
    categories = text.unique().sort().to_list()
    if len(categories) > MAX_CATEGORIES or (len(categories) >= 10 and 2 * len(categories) > len(text)):
        raise TableError(
            f"column {values.name!r} has {len(categories):,} different texts in {plural(len(text), 'row')} (such as "
            f"{listing(categories[:2])}), too many to be categories; leave it out with --drop {shell(values.name)}"
        )
    return tuple(categories)


def missing(values: pl.Series) -> pl.Series:
    """True where a value is null, NaN, or text of nothing but blanks."""
    absent = values.is_null()
    if values.dtype.is_float():
        return absent | values.is_nan().fill_null(False)
    if values.dtype == pl.String:
        return absent | (values.str.strip_chars() == "").fill_null(False)
    return absent


def as_numbers(values: pl.Series) -> np.ndarray:
    """float64, finite.

    Raises
    ------
    TableError
        Text, or infinite values, with the first row.
    """
    numbers = values.cast(pl.Float64, strict=False)
    if numbers.null_count():
        row = int(numbers.is_null().arg_true()[0])
        raise TableError(
            f"column {values.name!r}, row {row + 1}: {values[row]!r} is not a number, as it was in training"
        )
    infinite = numbers.is_infinite()
    if infinite.any():
        raise TableError(
            f"column {values.name!r} has {plural(int(infinite.sum()), 'infinite value')} (first in row "
            f"{int(infinite.arg_true()[0]) + 1}); correct or remove those rows"
        )
    huge = numbers.abs() > LARGEST
    if huge.any():
        row = int(huge.arg_true()[0])
        raise TableError(
            f"column {values.name!r}, row {row + 1}: {numbers[row]:g} is too large to compute with; rescale the column"
        )
    return numbers.to_numpy()


def as_text(values: pl.Series) -> pl.Series:
    """Text; whole floating-point numbers as they would have been written in a column with text in it."""
    if values.dtype.is_float():
        present = values.drop_nulls()
        if bool(((present % 1 == 0) & (present.abs() <= EXACT)).all()):
            values = values.cast(pl.Int64)
    return values.cast(pl.String).str.strip_chars()


def shell(name: str) -> str:
    """A column name as one types it in a shell."""
    plain = name.replace("_", "").replace("-", "").replace(".", "").isalnum()
    return name if plain else "'" + name.replace("'", "'\\''") + "'"


def _as_booleans(values: pl.Series) -> np.ndarray:
    if values.dtype == pl.Boolean:
        return values.cast(pl.Float64).to_numpy()
    lower = values.cast(pl.String).str.to_lowercase()
    known = ["true", "false", "1", "0", "1.0", "0.0"]
    flags = lower.replace_strict(known, [1.0, 0.0] * 3, default=None, return_dtype=pl.Float64)
    if flags.null_count():
        row = int(flags.is_null().arg_true()[0])
        raise TableError(f"column {values.name!r}, row {row + 1}: {values[row]!r} is not true or false, as in training")
    return flags.to_numpy()


def _refuse_broken_numbers(values: pl.Series) -> None:
    present = values.filter(~missing(values))
    if not len(present):
        return
    wrong = present.cast(pl.Float64, strict=False).is_null()
    count = int(wrong.sum())
    if count and count < (1 - MOSTLY_NUMBERS) * len(present) and present.n_unique() > 20:
        first = present.filter(wrong)[0]
        row = int((values == first).arg_true()[0])
        raise TableError(
            f"column {values.name!r} holds numbers except for {plural(count, 'value')} (first {first!r} in row "
            f"{row + 1}); correct them, or leave them empty and use --impute"
        )
