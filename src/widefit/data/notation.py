"""Notations of the values of a text column: numbers, true and false, dates, or words."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

from widefit.data.reading import Reading
from widefit.data.words import shell

# pandas' list of what stands for a missing value, and the "?" of the UCI repository.
MISSING = (
    *("", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NaN", "-NaN", "nan", "-nan", "NULL", "null", "None"),
    *("1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "?"),
)
# A category may be called so; among numbers they stand for a missing one.
MISSING_AMONG_NUMBERS = (
    *("-", "--", "---", "–", "—", ".", "..", "...", "na", "n.a.", "N.A.", "missing", "Missing", "none", "Null"),
    *("#DIV/0!", "#VALUE!", "#REF!", "#NUM!", "#NAME?", "#NULL!"),
)
_SIGN = "[+\u2212-]?"
_EXPONENT = r"([eE][+-]?[0-9]+)?"
_CURRENCY = r"(?:[$€£¥₹₩]|USD|EUR|GBP|CHF|JPY)"
_SPACE = "[ '’\u00a0\u202f]"
_GRAMMARS = {
    mark: rf"^{_SIGN}(([0-9]+{decimal}?[0-9]*|{decimal}[0-9]+){_EXPONENT}"
    rf"|[0-9]{{1,3}}({thousands}[0-9]{{3}})+({decimal}[0-9]*)?|[0-9]{{1,3}}({_SPACE}[0-9]{{3}})+({decimal}[0-9]*)?)$"
    for mark, decimal, thousands in ((".", r"\.", ","), (",", ",", r"\."))
}
_DRESSED = re.compile(
    rf"{_SIGN}{_CURRENCY}?\s*{_SIGN}([0-9][0-9.,' \u00a0\u202f]*|[.,][0-9]+){_EXPONENT}\s*(?:{_CURRENCY}|%)?"
)
# Accountants write -1.50 as (1.50), typesetters with a sign of its own.
_NEGATIVE = r"^\(([^-+()\u2212]+)\)$"
# Rows that show what most columns are not.
_FIRST = 1000
_NOT_FINITE = r"(?i)^[+-]?(inf(inity)?|nan)$"

Kind = Literal["number", "boolean", "time", "text"]


def is_number(field: str) -> bool:
    """Return whether a field looks like a number in some notation: 3, -1.5e3, 3,5, 1,016.00, $900, 12%, (3)."""
    return _DRESSED.fullmatch(re.sub(_NEGATIVE, r"-\1", field)) is not None


@dataclass(frozen=True)
class Notation:
    """The notation of the values of one column.

    Attributes
    ----------
    kind
        "number", "boolean", "time" (dates, times of day, or both) or "text".
    decimal
        For numbers, the decimal mark "." or ","; "" where no value shows it.
    percent
        True where every number is followed by a percent sign.
    doubt
        For text that is numbers in two ways, the question to the user.
    """

    kind: Kind = "text"
    decimal: str = ""
    percent: bool = False
    doubt: str = ""

    def read(self, text: pl.Series) -> pl.Series:
        """Return the values as what they are if every one of them is written so; otherwise the text as it is.

        Parameters
        ----------
        text
            Fields without blanks around them, null where missing.
        """
        if self.kind == "text" or text.null_count() == len(text):
            return text
        if self.kind == "boolean":
            return _booleans(text)
        if self.kind == "time":
            return _times(text)
        bare = text.set(text.is_in(list(MISSING_AMONG_NUMBERS)).fill_null(False), None)
        numbers = _numbers(bare, self.decimal, self.percent)
        return text if numbers is None else numbers


@dataclass(frozen=True)
class _Appearance:
    """The look of one column, before the columns are compared.

    Attributes
    ----------
    kind, percent
        As in `Notation`.
    fits
        The decimal marks with which every value is a number.
    example
        For a number that reads in two ways, one such value.
    """

    kind: Kind
    percent: bool = False
    fits: tuple[str, ...] = ()
    example: str | None = None

    @property
    def sole_mark(self) -> str:
        """The decimal mark where only one fits, otherwise ""."""
        return self.fits[0] if self.kind == "number" and len(self.fits) == 1 else ""


def notations(frame: pl.DataFrame, separator: str, reading: Reading) -> tuple[dict[str, Notation], str]:
    """The notation of each column of text, and the decimal mark of the whole, "" where nothing shows it.

    A column such as "1,016", "2,140" is settled by the other columns, by the mark in training, or by the separator:
    who separates fields by semicolons writes decimal commas.

    Parameters
    ----------
    frame
        Columns of text, null where missing.
    separator
        Between fields.
    reading
        Instructions; `kinds` says which columns stay text whatever they look like.
    """
    appearances = {column.name: _look(column, reading.kinds.get(column.name)) for column in frame}
    mark = reading.decimal or _shared_mark(list(appearances.values()), separator, reading.usual_decimal)
    return {name: _settle(name, found, separator, reading, mark) for name, found in appearances.items()}, mark


def _shared_mark(appearances: list[_Appearance], separator: str, usual: str) -> str:
    """The decimal mark of the whole text, "" where its columns disagree or show nothing.

    Columns of digits alone take it too, so that no later block of a stream can contradict it in silence.
    """
    evidence = {appearance.sole_mark for appearance in appearances} - {""}
    if len(evidence) == 1:
        return evidence.pop()
    if usual or evidence:
        return usual
    examples = [appearance.example for appearance in appearances if appearance.example is not None]
    commas = any("," in example for example in examples)
    points = any("," not in example for example in examples)
    if commas:
        return "" if points else {",": ".", ";": ","}.get(separator, "")
    return "." if points or separator == "," else ""


def _look(text: pl.Series, kind: str | None) -> _Appearance:
    present = text.drop_nulls()
    if kind in ("moment", "time"):
        return _Appearance("time" if len(present) and _times(present).dtype.is_temporal() else "text")
    if kind not in (None, "number"):
        return _Appearance("text")
    values = present.filter(~present.is_in(list(MISSING_AMONG_NUMBERS)))
    fits = tuple(mark for mark in (".", ",") if _all_fit(values, mark)) if len(values) else ()
    if fits and kind is None and values.str.starts_with("(").all():
        # "(1)", "(2)": labels rather than negative numbers.
        return _Appearance("text")
    if fits:
        # Where one mark alone fits, no example is needed.
        marked = values.filter(_bare(values).str.contains("[.,]")) if len(fits) == 2 else values[:0]
        percent = values[0].endswith("%")
        if values.str.ends_with("%").all() if percent else not values.str.contains("%", literal=True).any():
            return _Appearance("number", percent, fits, marked[0] if len(marked) else None)
    if kind == "number" or not len(present):
        return _Appearance("text")
    if _booleans(present).dtype == pl.Boolean:
        return _Appearance("boolean")
    return _Appearance("time" if _times(present).dtype.is_temporal() else "text")


def _all_fit(values: pl.Series, decimal: str) -> bool:
    """Return whether all values are numbers with this mark; most columns that are not show it in their first rows."""
    if not _fits(_bare(values.head(_FIRST)), decimal).all():
        return False
    if decimal == "." and not values.cast(pl.Float64, strict=False).null_count():
        return True
    return bool(_fits(_bare(values), decimal).all())


def _settle(name: str, found: _Appearance, separator: str, reading: Reading, mark: str) -> Notation:
    if found.kind != "number":
        return Notation(found.kind)
    if reading.decimal is not None:
        return Notation("number", mark, found.percent) if mark in found.fits else Notation()
    if found.sole_mark or found.example is None:
        return Notation("number", found.sole_mark or mark, found.percent)
    # "1.234" beside decimal commas, or "1,016" and "3,5" between commas.
    odd = mark == "," and reading.usual_decimal != "," and (separator == "," or "," not in found.example)
    if odd or not mark:
        return Notation(doubt=_question(name, found.example))
    return Notation("number", mark, found.percent)


def _question(name: str, example: str) -> str:
    values = [_numbers(pl.Series([example]), mark, example.endswith("%")) for mark in (".", ",")]
    with_point, with_comma = (f"{found[0]:g}" if found is not None else example for found in values)
    return (
        f"column {name!r}: {example!r} is {with_point} with --decimal . and {with_comma} with --decimal ,; "
        f"say which, or leave it out with --drop {shell(name)}"
    )


def _bare(text: pl.Series) -> pl.Series:
    """Numbers without the percent sign or the currency, negative ones with a hyphen in front."""
    return (
        text.str.replace(_NEGATIVE, "-${1}")
        .str.replace_all("\u2212", "-", literal=True)
        .str.replace(r"\s*%$", "")
        .str.replace(rf"^({_SIGN}){_CURRENCY}\s*({_SIGN})", "${1}${2}")
        .str.replace(rf"\s*{_CURRENCY}$", "")
    )


def _fits(bare: pl.Series, decimal: str) -> pl.Series:
    return bare.str.contains(_GRAMMARS[decimal]) | bare.str.contains(_NOT_FINITE)


def _numbers(text: pl.Series, decimal: str, percent: bool) -> pl.Series | None:
    """Int64 or Float64, or None where a value is written in another way."""
    missing = text.null_count()
    if not percent and decimal != ",":
        for dtype in (pl.Int64, pl.Float64):
            numbers = text.cast(dtype, strict=False)
            if numbers.null_count() == missing:
                return numbers
    if not decimal and text.str.contains(",", literal=True).any():
        return None
    if percent and not text.drop_nulls().str.ends_with("%").all():
        return None
    if not percent and text.str.ends_with("%").any():
        return None
    mark = decimal or "."
    bare = _bare(text)
    if not _fits(bare.drop_nulls(), mark).all():
        return None
    plain = bare.str.replace_all(_SPACE, "")
    if mark == ",":
        plain = plain.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    else:
        plain = plain.str.replace_all(",", "", literal=True)
    for dtype in (pl.Float64,) if percent else (pl.Int64, pl.Float64):
        numbers = plain.cast(dtype, strict=False)
        if numbers.null_count() == missing:
            return numbers / 100 if percent else numbers
    return None


def _booleans(text: pl.Series) -> pl.Series:
    lower = text.str.to_lowercase()
    return lower == "true" if lower.drop_nulls().is_in(["true", "false"]).all() else text


def _times(text: pl.Series) -> pl.Series:
    present = text.drop_nulls()
    if not len(present) or not present.str.contains(r"^[0-9].*[-/:.T]").all():
        return text
    readers: tuple[Callable[[pl.Series], pl.Series], ...] = (
        lambda values: values.str.to_date(strict=False),
        lambda values: values.str.to_datetime(strict=False),
        lambda values: values.str.to_time(strict=False),
    )
    for reader in readers:
        try:
            times = reader(text)
        except pl.exceptions.PolarsError:
            # No format fits the first value.
            continue
        if times.null_count() == text.null_count():
            return times
    return text
