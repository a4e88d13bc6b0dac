"""CSV and TSV: separator, header, types, and the line of whatever is wrong."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from widefit.data.table import Table, TableError, plural

# pandas' list of what stands for a missing value, and the "?" of the UCI repository.
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None", "?")
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")


@dataclass(frozen=True)
class Dialect:
    """How delimited text is written.

    Attributes
    ----------
    separator
        Between fields.
    names
        Of the columns.
    named
        True where the first line holds the names; otherwise the columns are called column_1, column_2, ….
    decimal_comma
        True where numbers are written as 3,5.
    """

    separator: str
    names: tuple[str, ...]
    named: bool
    decimal_comma: bool

    @classmethod
    def of(cls, text: str, path: Path, *, tabs: bool) -> "Dialect":
        """Seen from the beginning of the text.

        A .csv whose first line has no comma but semicolons or tabs is read with those. A first line made of numbers is
        data.

        Raises
        ------
        TableError
            Wrong separator, duplicate column names, a quote that is never closed.
        """
        try:
            first = next(csv.reader(io.StringIO(text)), [])
            separator = _separator(text.partition("\n")[0], first, path, tabs)
            header = [field.strip() for field in next(csv.reader(io.StringIO(text), delimiter=separator), [])]
        except csv.Error as error:
            raise TableError(f"{path}, line 1: {error} (a quote that is not closed?)") from error
        named = not _is_data(header)
        if named:
            _refuse_duplicates(header, path)
        names = tuple(header) if named else tuple(f"column_{index + 1}" for index in range(len(header)))
        decimal_comma = separator == ";" and any(
            _DECIMAL_COMMA.fullmatch(field.strip())
            for line in _without_blank_lines(text, separator).split("\n", 21)[1:21]
            for field in line.split(";")
        )
        return cls(separator, names, named, decimal_comma)

    @property
    def notes(self) -> str:
        """What was decided about the names, "" for nothing."""
        return "" if self.named else f"no header line: its columns are called column_1 … column_{len(self.names)}"


def read_delimited(data: bytes, path: Path, name: str, *, tabs: bool) -> Table:
    """Parse delimited text with a header line; see `Dialect`. Empty fields and `MISSING` are missing values.

    Raises
    ------
    TableError
        Not UTF-8, wrong separator, no rows, duplicate column names, a line with too many or too few fields, a quote
        that is never closed: each with its line.
    """
    text = _decode(data, path)
    dialect = Dialect.of(text, path, tabs=tabs)
    frame = parse(text, dialect, path)
    if not frame.height:
        raise TableError(f"{path} has a header and no rows")
    return Table(frame, name, notes=(f"{path.name} has {dialect.notes}",) if dialect.notes else ())


def _decode(data: bytes, path: Path) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TableError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.strip("\n")
    if not text.strip():
        raise TableError(f"{path} holds only blank lines")
    return text


def _separator(line: str, by_comma: list[str], path: Path, tabs: bool) -> str:
    if tabs:
        if "\t" not in line and len(by_comma) > 1:
            raise TableError(f"{path} is not a TSV file: its first line has commas and no tabs; rename it to .csv")
        return "\t"
    if len(by_comma) > 1:
        # "3,5;4,1" is two numbers with decimal commas, not three fields.
        semicolons = line.count(";")
        return ";" if semicolons and _is_data(line.split(";")) else ","
    return max(";\t|", key=line.count) if any(mark in line for mark in ";\t|") else ","


def _is_data(fields: list[str]) -> bool:
    """A first line is data when it has numbers and nothing but numbers; 0, 1, 2, … are names that pandas gave."""
    if len(fields) > 2 and fields == [str(index) for index in range(len(fields))]:
        return False
    filled = [field for field in fields if field not in MISSING]
    return bool(filled) and all(_NUMBER.fullmatch(field) for field in filled)


def _refuse_duplicates(header: list[str], path: Path) -> None:
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        positions = [str(index + 1) for index, name in enumerate(header) if name == repeated[0]]
        name = repr(repeated[0]) if repeated[0] else "without a name"
        raise TableError(
            f"{path}, line 1: {plural(len(positions), 'column')} called {name} "
            f"(columns {', '.join(positions)}); give each column a name of its own"
        )


def parse(
    text: str, dialect: Dialect, path: Path, *, first_line: int = 1, text_columns: Sequence[str] = ()
) -> pl.DataFrame:
    """The rows of a text, or of a part of one.

    Parameters
    ----------
    text
        Lines that end in "\\n".
    dialect
        How they are written.
    path
        For messages.
    first_line
        Number of the first line in the file; the line of names stands in the first.
    text_columns
        Columns that are text whatever they look like here.

    Raises
    ------
    TableError
        A line with too many or too few fields, a quote that is never closed.
    """
    separator, width = dialect.separator, len(dialect.names)
    named = dialect.named and first_line == 1
    try:
        frame = pl.read_csv(
            io.BytesIO(_without_blank_lines(text, separator).encode()),
            separator=separator,
            has_header=named,
            infer_schema_length=None,
            null_values=list(MISSING),
            try_parse_dates=True,
            decimal_comma=dialect.decimal_comma,
            raise_if_empty=False,
            schema_overrides=dict.fromkeys(text_columns, pl.String),
            new_columns=None if named else list(dialect.names),
        )
    except pl.exceptions.PolarsError as error:
        _refuse_ragged(text, separator, width, path, first_line)
        raise TableError(f"{path}: {str(error).splitlines()[0]}") from error
    if frame.width != width or (frame.height and frame[:, -1].null_count()):
        _refuse_ragged(text, separator, width, path, first_line)
    frame.columns = list(dialect.names)
    return frame.with_columns(
        [
            _stripped(column) if column.name in text_columns else _tidy(column)
            for column in frame
            if column.dtype == pl.String
        ]
    )


def _without_blank_lines(text: str, separator: str) -> str:
    if not re.search(r"\n[ \t]*\n", text):
        return text
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if not _is_blank(row)]
    copy = io.StringIO()
    csv.writer(copy, delimiter=separator, lineterminator="\n").writerows(rows)
    return copy.getvalue()


def _is_blank(row: list[str]) -> bool:
    """A blank line; one with separators is a row of missing values."""
    return not row or (len(row) == 1 and not row[0].strip())


def _refuse_ragged(text: str, separator: str, width: int, path: Path, first_line: int = 1) -> None:
    """Name the first line whose number of fields is not the header's."""
    rows = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    line = first_line
    try:
        for row in rows:
            if len(row) != width and not _is_blank(row):
                raise TableError(
                    f"{path}, line {line}: {plural(len(row), 'field')} where the first line has {width}; "
                    "quote fields that contain the separator"
                )
            line = first_line + rows.line_num
    except csv.Error as error:
        raise TableError(f"{path}, line {line}: {error} (a quote that is not closed?)") from error


def _tidy(column: pl.Series) -> pl.Series:
    """Text with blanks around it ("39, Private, ?") read as if they were not there."""
    stripped = _stripped(column)
    if stripped.null_count() == len(stripped):
        return stripped
    for dtype in (pl.Int64, pl.Float64):
        numbers = stripped.cast(dtype, strict=False)
        if numbers.null_count() == stripped.null_count():
            return numbers
    lower = stripped.str.to_lowercase()
    if lower.drop_nulls().is_in(["true", "false"]).all():
        return lower == "true"
    return stripped


def _stripped(column: pl.Series) -> pl.Series:
    stripped = column.str.strip_chars()
    return stripped.set(stripped.is_in(list(MISSING)), None)
