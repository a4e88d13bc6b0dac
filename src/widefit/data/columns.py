"""One feature column: its kind, what training learns about it, and the numbers it becomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float64

from widefit.data import moments
from widefit.data.moments import Part, seconds_of
from widefit.data.notation import is_number
from widefit.data.words import TableError, listing, plural, shell
from widefit.records import FileError

Kind = Literal["number", "boolean", "category", "moment", "time", "duration"]

MAX_CATEGORIES = 1000
# Categories of a column, up to which each becomes a 0/1 column where there is a choice.
MOST_INDICATORS = 30
# Whole numbers up to here are floating-point numbers of their own.
EXACT = 2**53
# Beyond this, squares and their sums overflow.
LARGEST = 1e100
# A text column is taken for numbers with mistakes in it when at least this share of its values are numbers.
MOSTLY_NUMBERS = 0.5
_SAW: dict[Kind, str] = {
    "number": "numbers",
    "boolean": "true or false",
    "category": "categories",
    "moment": "dates",
    "time": "times of day",
    "duration": "durations",
}


@dataclass(frozen=True)
class Column:
    """A feature column as training saw it.

    Attributes
    ----------
    name
        The column.
    kind
        "number", "boolean" (0 or 1), "category" (one 0/1 column per category, or its `effects`), "moment" (dates, by
        `parts`), "time" (of day, by `parts`) or "duration" (days).
    categories
        The categories in order; empty for the other kinds.
    fill
        What stands in for a missing value, in seconds for dates and times; None where missing values are an error. A
        category that is missing stays none of the categories where `indicator` is True.
    indicator
        Whether one more 0/1 column says that the value is missing.
    effects
        Numbers that stand for each category, and in the last row for none of them; empty: 0/1 columns do.
    parts
        Parts of dates and times that become numbers; empty for the other kinds.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    fill: float | str | None = None
    indicator: bool = False
    effects: tuple[tuple[float, ...], ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def values_width(self) -> int:
        """The count of numbers that a value becomes, without the indicator."""
        if self.kind == "category":
            return len(self.effects[0]) if self.effects else len(self.categories)
        return moments.width_of(self.parts) if self.parts else 1

    @property
    def width(self) -> int:
        """The count of numbers that a value becomes."""
        return self.values_width + self.indicator

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each of those numbers."""
        if self.effects:
            several = self.values_width > 1
            names = tuple(f"{self.name} by its mean target" + several * f" {i}" for i in range(self.values_width))
        elif self.kind == "category":
            names = tuple(f"{self.name}={category}" for category in self.categories)
        else:
            names = moments.names_of(self.name, self.parts) or (self.name,)
        return (*names, f"{self.name} is missing") if self.indicator else names

    @property
    def takes_gaps(self) -> bool:
        """True where a missing value is no error."""
        return self.fill is not None or self.indicator

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        record: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "categories": list(self.categories),
            "fill": self.fill,
        }
        record |= {"indicator": True} if self.indicator else {}
        record |= {"effects": [list(row) for row in self.effects]} if self.effects else {}
        return record | ({"parts": list(self.parts)} if self.parts else {})

    def checked(self) -> "Column":
        """The column itself, or a FileError where its fields do not belong together."""
        if self.fill is not None and isinstance(self.fill, str) != (self.kind == "category"):
            raise FileError(f"the encoding fills the gaps of column {self.name!r} with {self.fill!r}")
        if isinstance(self.fill, float) and not np.isfinite(self.fill):
            raise FileError(f"the encoding fills the gaps of column {self.name!r} with {self.fill}")
        if len(set(self.categories)) < len(self.categories) or (self.categories and self.kind != "category"):
            raise FileError(f"the encoding has wrong categories for column {self.name!r}")
        if (self.kind in ("moment", "time")) != bool(self.parts) or len(set(self.parts)) < len(self.parts):
            raise FileError(f"the encoding has the parts {self.parts!r} of column {self.name!r}")
        if self.effects:
            widths = {len(row) for row in self.effects}
            finite = all(np.isfinite(row).all() for row in self.effects)
            if len(self.effects) != len(self.categories) + 1 or len(widths) > 1 or widths == {0} or not finite:
                raise FileError(f"the encoding has wrong effects for column {self.name!r}")
        return self

    def read(self, values: pl.Series, gaps: pl.Series) -> np.ndarray | pl.Series:
        """Return the values as training read its own: float64 with NaN, or text with null, where they are missing.

        Raises
        ------
        TableError
            Values of another kind than in training, or infinite ones.
        """
        return read_as(self.kind, values, gaps, self.categories)

    def write(
        self, values: np.ndarray | pl.Series, gaps: pl.Series, out: Float64[np.ndarray, "n width"]
    ) -> tuple[str, ...]:
        """Write the numbers of a column into `out`, zeros at first.

        Parameters
        ----------
        values
            The values that `read` gives.
        gaps
            True where a value is missing.
        out
            Where to write.

        Returns
        -------
        The values that training did not see, whose rows stay zero; none where effects stand for them.
        """
        if self.indicator:
            out[:, -1] = gaps.to_numpy()
        if not isinstance(values, pl.Series):
            filled = np.where(np.isnan(values), 0.0 if self.fill is None else self.fill, values)
            if self.parts:
                moments.write_parts(filled, self.parts, out[:, : self.values_width])
            else:
                out[:, 0] = filled
            return ()
        codes = self.codes(values)
        if self.effects:
            out[:, : self.values_width] = np.array(self.effects)[codes]
            return ()
        known = codes >= 0
        out[np.flatnonzero(known), codes[known]] = 1.0
        unseen = values.filter(pl.Series(~known)).drop_nulls()
        return tuple(unseen.unique(maintain_order=True).to_list())

    def codes(self, values: pl.Series) -> np.ndarray:
        """The place of each text among the categories, after gaps are filled; −1 for those that are none."""
        text = values if self.fill is None else values.fill_null(self.fill)
        known = list(self.categories)
        return text.replace_strict(known, list(range(len(known))), default=-1, return_dtype=pl.Int64).to_numpy()


def read_as(kind: Kind, values: pl.Series, gaps: pl.Series, categories: Sequence[str] = ()) -> np.ndarray | pl.Series:
    """Return values as what they are in training: float64 with NaN, or text with null, where they are missing.

    Raises
    ------
    TableError
        Values of another kind, or infinite ones.
    """
    return as_text(values, gaps, categories) if kind == "category" else read_numbers(values, gaps, kind)


def kind_of(values: pl.Series) -> Kind:
    """The kind of feature that a column is.

    Raises
    ------
    TableError
        Lists and other nested types.
    """
    name, dtype = values.name, values.dtype
    if dtype.is_temporal():
        return "duration" if dtype == pl.Duration else "time" if dtype == pl.Time else "moment"
    if dtype.is_numeric():
        return "number"
    if dtype == pl.Boolean:
        return "boolean"
    if dtype in (pl.Categorical, pl.Enum, pl.String):
        return "category"
    raise TableError(
        f"column {name!r} holds {dtype} values, which are not one number or text; leave it out "
        f"(in the shell: --drop {shell(name)})"
    )


def refuse_many(text: pl.Series, many_allowed: bool = False) -> None:
    """Refuse a category per row (names, identifiers, free text), or more than `MAX_CATEGORIES`."""
    present = text.drop_nulls()
    categories = present.unique().sort().to_list()
    too_many = len(categories) > MAX_CATEGORIES and not many_allowed
    if too_many or (len(categories) >= 10 and 2 * len(categories) > len(present)):
        raise TableError(
            f"column {text.name!r} has {len(categories):,} different texts in {plural(len(present), 'row')} (such as "
            f"{listing(categories[:2])}), too many to be categories; leave it out with --drop {shell(text.name)}"
        )


def missing(values: pl.Series) -> pl.Series:
    """True where a value is null, NaN, or text of nothing but blanks."""
    absent = values.is_null()
    if values.dtype.is_float():
        return absent | values.is_nan().fill_null(False)
    if values.dtype == pl.String:
        return absent | (values.str.strip_chars() == "").fill_null(False)
    return absent


def described(values: pl.Series) -> str:
    """The type of a column in words: "dates", "times of day", "numbers", "List(Int64) values"."""
    dtype = values.dtype
    if dtype in (pl.Duration, pl.Time):
        return "durations" if dtype == pl.Duration else "times of day"
    if dtype.is_temporal():
        return "dates"
    if dtype.is_numeric():
        return "numbers"
    if dtype == pl.Boolean:
        return "true and false"
    return "text" if dtype in (pl.String, pl.Categorical, pl.Enum) else f"{dtype} values"


def refuse_type(values: pl.Series, gaps: pl.Series, kind: Kind) -> None:
    """Refuse a type of which no value can be what training saw: dates or true and false for numbers, lists.

    Raises
    ------
    TableError
        The column with its first row.
    """
    dtype = values.dtype
    if dtype.is_temporal() or kind in ("moment", "time", "duration"):
        fits = dtype.is_temporal() and kind_of(values) == kind
    else:
        fits = dtype.is_numeric() or dtype in (pl.String, pl.Categorical, pl.Enum)
        fits |= dtype == pl.Boolean and kind != "number"
    if fits or gaps.all():
        return
    row = int((~gaps).arg_true()[0])
    raise TableError(
        f"column {values.name!r}, row {row + 1}: {shown(values[row])} is not what training saw in it ({_SAW[kind]}); "
        f"the column holds {described(values)}"
    )


def shown(value: object) -> str:
    """A value in a message: text in quotes, everything else as it prints, shortened."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def read_numbers(values: pl.Series, gaps: pl.Series, kind: Kind) -> Float64[np.ndarray, " n"]:
    """Numbers, 0 and 1 for "boolean", seconds for dates and times, days for durations; NaN where missing.

    Raises
    ------
    TableError
        Values of another kind, infinite or too large ones, with the first row.
    """
    refuse_type(values, gaps, kind)
    if kind == "boolean":
        return _as_booleans(values, gaps)
    if kind in ("moment", "time", "duration"):
        if gaps.all():
            return np.full(len(values), np.nan)
        return seconds_of(values) / (moments.DAY if kind == "duration" else 1.0)
    numbers = _cast(values, gaps)
    wrong = numbers.is_null() & ~gaps
    if wrong.any():
        row = int(wrong.arg_true()[0])
        raise TableError(
            f"column {values.name!r}, row {row + 1}: {shown(values[row])} is not a number, as it was in training"
        )
    infinite = numbers.is_infinite().fill_null(False)
    if infinite.any():
        raise TableError(
            f"column {values.name!r} has {plural(int(infinite.sum()), 'infinite value')} (first in row "
            f"{int(infinite.arg_true()[0]) + 1}); correct or remove those rows"
        )
    huge = (numbers.abs() > LARGEST).fill_null(False) & ~gaps
    if huge.any():
        row = int(huge.arg_true()[0])
        raise TableError(
            f"column {values.name!r}, row {row + 1}: {numbers[row]:g} is too large to compute with; rescale the column"
        )
    return numbers.fill_null(np.nan).to_numpy()


def as_text(values: pl.Series, gaps: pl.Series, categories: Sequence[str] = ()) -> pl.Series:
    """Text, null where missing; whole floating-point numbers as they would have been written in a column of text.

    Parameters
    ----------
    values, gaps
        The column, and True where a value is missing.
    categories
        Those of training; they decide how true and false are written.

    Raises
    ------
    TableError
        Dates, lists and other types that are no text, with the first row.
    """
    refuse_type(values, gaps, "category")
    if gaps.all():
        return pl.Series(values.name, [None] * len(values), dtype=pl.String)
    text = values.cast(pl.String)
    if values.dtype.is_float():
        whole = ((values % 1 == 0) & (values.abs() <= EXACT)).fill_null(False)
        text = values.set(~whole, None).cast(pl.Int64).cast(pl.String).zip_with(whole, text)
    if values.dtype == pl.Boolean:
        written = {spelling.lower(): spelling for spelling in categories}
        text = text.replace({"true": written.get("true", "true"), "false": written.get("false", "false")})
    return text.str.strip_chars().set(gaps, None)


def _cast(values: pl.Series, gaps: pl.Series) -> pl.Series:
    if values.dtype.is_numeric():
        return values.cast(pl.Float64)
    if gaps.all():
        return pl.Series(values.name, [None] * len(values), dtype=pl.Float64)
    return values.cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)


def flags(values: pl.Series) -> pl.Series:
    """True and false, and 1 and 0, as booleans; null for everything else."""
    if values.dtype == pl.Boolean:
        return values
    plain = values.cast(pl.Float64) if values.dtype.is_numeric() else values
    lower = plain.cast(pl.String).str.strip_chars().str.to_lowercase()
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    return lower.replace_strict(known, default=None, return_dtype=pl.Boolean)


def _as_booleans(values: pl.Series, gaps: pl.Series) -> np.ndarray:
    if gaps.all():
        return np.full(len(values), np.nan)
    found = flags(values)
    wrong = found.is_null() & ~gaps
    if wrong.any():
        row = int(wrong.arg_true()[0])
        raise TableError(
            f"column {values.name!r}, row {row + 1}: {shown(values[row])} is not true or false, as in training"
        )
    return found.cast(pl.Float64).fill_null(np.nan).to_numpy()


def refuse_broken_numbers(values: pl.Series, gaps: pl.Series) -> None:
    """Refuse text that is numbers with mistakes in it."""
    present = values.filter(~gaps)
    wrong = [text for text in present.unique(maintain_order=True).to_list() if not is_number(text.strip())]
    if not wrong or present.n_unique() <= 20:
        return
    count = int(present.is_in(wrong).sum())
    if count < (1 - MOSTLY_NUMBERS) * len(present):
        row = int((values == wrong[0]).arg_true()[0])
        raise TableError(
            f"column {values.name!r} holds numbers except for {plural(count, 'value')} (first {wrong[0]!r} in row "
            f"{row + 1}); correct them, or say that they are missing with --na-value {shell(wrong[0])}"
        )
