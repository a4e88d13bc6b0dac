"""Delimited text, from bytes to typed columns, a block of rows at a time; a table is a text of one block."""

import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, cast

import polars as pl

from widefit.data.dialect import Dialect
from widefit.data.notation import MISSING, Notation, notations
from widefit.data.reading import Reading
from widefit.data.rows import parse_rows
from widefit.data.sources import damage_in_words
from widefit.data.table import Table
from widefit.data.words import TableError, plural

# The dialect is seen from this many lines, or from fewer if they are long, however large a block is.
_HEAD_LINES = 256
_HEAD_LETTERS = 2**20
# Rows that are Python lists at a time, before they become columns.
_ROWS_AT_A_TIME = 2**15
# Numbers with more than digits and one decimal mark: signs of currencies, separators of thousands.
_DRESSED = r"[^0-9.,eE+-]|[.,].*[.,]|[0-9],[0-9]{3}$"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


class Delimited:
    """Blocks of a text: separator, names and what else `Dialect` says come from its first lines, the notation of each
    column from its first block.

    Parameters
    ----------
    file
        The bytes, UTF-8.
    path
        For messages.
    reading
        Instructions.
    tabs
        True where the name of the file says that tabs separate.

    Attributes
    ----------
    notes
        Decisions of the reader, in sentences, complete with the first block.
    decimal, doubts
        As in `Table`, known with the first block.

    Raises
    ------
    TableError
        Nothing but blank lines, wrong separator, duplicate column names. While reading: text that is not UTF-8, a line
        with too many or too few fields, a quote that is never closed, each with its line.
    """

    def __init__(self, file: io.BufferedIOBase, path: Path, reading: Reading, *, tabs: bool):
        self._path, self._reading = path, reading
        lines = _lines(file, path)
        first = next(((number, line) for number, line in lines if line.strip()), None)
        if first is None:
            raise TableError(f"{path} holds only blank lines")
        head, letters = [first], 0
        for number, line in islice(lines, _HEAD_LINES):
            head.append((number, line))
            letters += len(line)
            if letters > _HEAD_LETTERS:
                break
        self._first_line = first[0]
        self._dialect = Dialect.of([line for _, line in head], path, reading, self._first_line, tabs=tabs)
        self._lines = (line for _, line in chain(head, lines))
        self._notations: dict[str, Notation] | None = None
        self.notes = tuple(f"{path.name} {note}" for note in self._dialect.notes)
        self.decimal = ""
        self.doubts: dict[str, str] = {}

    def blocks(self, rows: int | None) -> Iterator[pl.DataFrame]:
        """Frames of at most `rows` rows, or one frame of all of them; none where there are no rows."""
        fields = self._fields()
        while True:
            text = self._text(fields if rows is None else islice(fields, rows))
            if not text.height:
                return
            yield self._typed(text)

    def _fields(self) -> Iterator[tuple[str, ...]]:
        """The fields of each row whose column has a name."""
        dialect = self._dialect
        width = len(dialect.names)
        kept = [index for index, name in enumerate(dialect.names) if name]
        first_line = self._first_line + dialect.skipped
        parsed = parse_rows(islice(self._lines, dialect.skipped, None), dialect.separator, self._path, first_line)
        heading = dialect.heading
        where = f"line {first_line}" if first_line > 1 else "the first line"
        for line, row in parsed:
            if dialect.comments and row[0].lstrip().startswith("#"):
                continue
            if heading:
                heading -= 1
                continue
            if len(row) != width:
                raise TableError(
                    f"{self._path}, line {line}: {plural(len(row), 'field')} where {where} has {width}; "
                    "quote fields that contain the separator"
                )
            yield tuple(row) if len(kept) == width else tuple(row[index] for index in kept)

    def _text(self, fields: Iterator[tuple[str, ...]]) -> pl.DataFrame:
        """Columns of text without blanks around it, null where missing."""
        names = [name for name in self._dialect.names if name]
        frames = []
        while rows := list(islice(fields, _ROWS_AT_A_TIME)):
            columns = zip(names, zip(*rows, strict=True), strict=True)
            frames.append(pl.DataFrame([self._column(name, values) for name, values in columns]))
        return pl.concat(frames) if frames else pl.DataFrame()

    def _column(self, name: str, values: Iterable[str]) -> pl.Series:
        text = pl.Series(name, values, dtype=pl.String).str.strip_chars()
        return self._reading.without_marks(text.set(text.is_in(list(MISSING)), None))

    def _typed(self, text: pl.DataFrame) -> pl.DataFrame:
        if self._notations is not None:
            return pl.DataFrame([self._notations[column.name].read(column) for column in text])
        self._notations, self.decimal = notations(text, self._dialect.separator, self._reading)
        self.doubts = {name: notation.doubt for name, notation in self._notations.items() if notation.doubt}
        typed = pl.DataFrame([self._notations[column.name].read(column) for column in text])
        self.notes += _notes(text, typed, self._path)
        return typed


def read_delimited(file: io.BufferedIOBase, path: Path, name: str, reading: Reading, *, tabs: bool) -> Table:
    """Parse delimited text; see `Delimited`.

    Raises
    ------
    TableError
        What `Delimited` raises, and a text without rows.
    """
    text = Delimited(file, path, reading, tabs=tabs)
    frame = next(text.blocks(None), None)
    if frame is None:
        raise TableError(f"{path} has a header and no rows")
    return Table(frame, name, notes=text.notes, decimal=text.decimal, doubts=text.doubts)


def _lines(file: io.BufferedIOBase, path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; every way to end a line becomes "\\n"."""
    wrapper = io.TextIOWrapper(cast(BinaryIO, file), encoding="utf-8-sig", errors="surrogateescape", newline=None)
    with damage_in_words(path), wrapper as text:
        for number, line in enumerate(text, start=1):
            if not line.isascii() and (wrong := _NOT_UTF8.search(line)) is not None:
                byte = ord(wrong[0]) - 0xDC00
                raise TableError(f"{path}, line {number}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8")
            yield number, line


def _notes(text: pl.DataFrame, typed: pl.DataFrame, path: Path) -> tuple[str, ...]:
    """Numbers that are not written as plain ones, and marks among them that count as missing."""
    dressed, gaps = [], []
    for column in typed:
        written = text[column.name]
        if not column.dtype.is_numeric():
            continue
        marks = written.filter(column.is_null() & written.is_not_null())
        if len(marks):
            gaps.append(f"{marks[0]!r} in {column.name!r}")
        odd = written.str.contains(_DRESSED) & column.is_not_null() & written.cast(pl.Float64, strict=False).is_null()
        if odd.any():
            row = int(odd.arg_true()[0])
            dressed.append(f"{column.name!r} ({written[row]!r} is {column[row]:g})")
    notes = []
    if dressed:
        notes.append(f"{path.name}: read as numbers: {_shortened(dressed)} (--decimal settles what , and . mean)")
    if gaps:
        notes.append(f"{path.name}: among numbers, counted as missing: {_shortened(gaps)}")
    return tuple(notes)


def _shortened(parts: list[str], limit: int = 5) -> str:
    rest = len(parts) - limit
    return ", ".join(parts[:limit]) + (f" and {plural(rest, 'column')} more" if rest > 0 else "")
