"""The dialect of delimited text, seen from its first lines: separator, names, and what is not data."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from widefit.data.notation import MISSING, MISSING_AMONG_NUMBERS, is_number
from widefit.data.reading import Reading
from widefit.data.rows import parse_rows
from widefit.data.words import TableError, plural, shell

SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(\t|[^\w\s"])"?\s*', re.IGNORECASE)
_YEARS = range(1700, 2200)


@dataclass(frozen=True)
class Dialect:
    """The way in which delimited text is written.

    Attributes
    ----------
    separator
        Between fields.
    names
        One for each field of a line, "" for columns without a name, which are left out.
    skipped
        Lines before the first line that counts.
    heading
        Rows after those that hold names and units.
    comments
        True where lines that begin with # are comments.
    notes
        Decisions, in words that follow the name of the file.
    """

    separator: str
    names: tuple[str, ...]
    skipped: int = 0
    heading: int = 0
    comments: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, lines: Sequence[str], path: Path, reading: Reading, first_line: int, *, tabs: bool) -> "Dialect":
        """Infer the dialect from the first lines.

        Parameters
        ----------
        lines
            They end in "\\n"; the first is not blank.
        path
            For messages.
        reading
            Instructions.
        first_line
            Number of the first of these lines in the file.
        tabs
            True where the name of the file says that tabs separate.

        Raises
        ------
        TableError
            Wrong separator, duplicate column names, no names at all.
        """
        skipped, comments, separator = _preamble(lines)
        body = lines[skipped:] or [""]
        if separator is None:
            separator = _tabs_or_refusal(body[0], path) if tabs else _separator(body)
        rows = _rows(body, separator)
        _refuse_blanks(rows, path)
        if comments:
            rows = [row for row in rows if not row[0].startswith("#")]
        if not rows:
            # The parser says what is wrong with the first row.
            return cls(separator, ("",), skipped, 0, comments)
        names, heading, notes = _names(rows, lines[:skipped], separator, reading)
        _refuse_names(names, path, first_line + skipped + heading - 1)
        nameless = [str(index + 1) for index, name in enumerate(names) if not name]
        if nameless:
            places = f"{'column' if len(nameless) == 1 else 'columns'} {', '.join(nameless[:8])}"
            more = ", …" if len(nameless) > 8 else ""
            notes.append(f"has {plural(len(nameless), 'column')} without a name, left out ({places}{more})")
        if heading and _are_units(rows):
            heading += 1
            notes.append(f"has a line of units under its names, left out ({', '.join(filter(None, rows[1]))})")
        return cls(separator, tuple(names), skipped, heading, comments, tuple(notes))


def _preamble(lines: Sequence[str]) -> tuple[int, bool, str | None]:
    """Lines before the table, whether they are comments, and the separator where one of them names it."""
    skipped, comments, separator = 0, False, None
    for line in lines:
        if separator is None and (found := _SEPARATOR_LINE.fullmatch(line)) is not None:
            separator = found[1]
        elif line.lstrip().startswith("#"):
            comments = True
        elif line.strip():
            break
        skipped += 1
    return skipped, comments, separator


def _tabs_or_refusal(line: str, path: Path) -> str:
    if "\t" not in line and "," in line:
        raise TableError(f"{path} is not a TSV file: its first line has commas and no tabs; rename it to .csv")
    return "\t"


def _separator(lines: Sequence[str]) -> str:
    """The first separator that cuts all rows into equally many fields; failing that, the one of the first line."""
    parsed = {mark: _rows(lines, mark) for mark in SEPARATORS}
    several = [mark for mark, rows in parsed.items() if rows and len(rows[0]) > 1]
    even = [mark for mark in several if len({len(row) for row in parsed[mark]}) == 1]
    if "," in several and ";" in even and all(is_number(field) for field in parsed[";"][0]):
        # "3,5;4,1" is two numbers with decimal commas, not three fields.
        return ";"
    return (even or several or [","])[0]


def _refuse_blanks(rows: list[list[str]], path: Path) -> None:
    """Refuse what seems to be one column, and is several of numbers with blanks between."""
    if len(rows) < 2 or any(len(row) > 1 for row in rows):
        return
    fields = [row[0].split() for row in rows if row and row[0]]
    widths = {len(row) for row in fields}
    if len(widths) == 1 and widths != {1} and all(map(is_number, chain.from_iterable(fields[1:]))):
        raise TableError(
            f"{path}: {widths.pop()} numbers a line with blanks between them; widefit reads commas, semicolons, tabs "
            f"and bars: tr -s ' ' , < {shell(str(path))} > table.csv makes commas of them"
        )


def _rows(lines: Sequence[str], separator: str) -> list[list[str]]:
    """The rows in these lines without blank ones, up to the first that the parser refuses or that is cut short."""
    found = []
    with suppress(TableError):
        for _, row in parse_rows(lines, separator, Path()):
            found.append([field.strip() for field in row])
    return found


def _names(
    rows: list[list[str]], preamble: Sequence[str], separator: str, reading: Reading
) -> tuple[list[str], int, list[str]]:
    """The names of the columns, how many rows hold them, and what there is to say about it."""
    if _is_header(rows, reading):
        return rows[0], 1, []
    width = len(rows[0])
    if (commented := _commented_names(preamble, separator, width)) is not None:
        return commented, 0, []
    note = f"has no header line: its columns are called column_1 … column_{width}"
    return [f"column_{index + 1}" for index in range(width)], 0, [note]


def _is_header(rows: list[list[str]], reading: Reading) -> bool:
    """Return whether the first row holds names.

    It does where a column of numbers begins with a word. Numbers are names where they count from 0, as pandas writes
    them, or are years above numbers that are none.
    """
    first, rest = rows[0], rows[1:]
    if reading.header is not None:
        return reading.header
    if any(field in reading.kinds for field in first):
        return True
    numeric = _numeric_columns(rest)
    tops = [(index, field) for index, field in enumerate(first) if field not in MISSING]
    numbers = [(index, field) for index, field in tops if is_number(field)]
    over_numbers = [field for index, field in tops if index in numeric]
    if len(numbers) == len(tops):
        return not tops or _are_names(numbers, rest)
    if not over_numbers or not all(is_number(field) for field in over_numbers):
        return True
    return _are_names([(index, field) for index, field in numbers if index in numeric], rest)


def _are_names(numbers: list[tuple[int, str]], rest: list[list[str]]) -> bool:
    fields = [field for _, field in numbers]
    if len(fields) > 2 and fields == [str(index) for index in range(len(fields))]:
        return True
    below = [row[index] for row in rest for index, _ in numbers if index < len(row)]
    rising = sorted(set(fields)) in (fields, fields[::-1])
    return rising and all(map(_is_year, fields)) and not all(map(_is_year, below))


def _is_year(field: str) -> bool:
    return len(field) == 4 and field.isascii() and field.isdecimal() and int(field) in _YEARS


def _numeric_columns(rows: list[list[str]]) -> set[int]:
    """Columns that hold numbers, at least one, and nothing else."""
    found = set()
    for index in range(min(map(len, rows), default=0)):
        values = [row[index] for row in rows if row[index] not in (*MISSING, *MISSING_AMONG_NUMBERS)]
        if values and all(map(is_number, values)):
            found.add(index)
    return found


def _are_units(rows: list[list[str]]) -> bool:
    """Return whether the second row holds words above several columns of numbers."""
    if len(rows) < 4:
        return False
    numeric = _numeric_columns(rows[2:])
    units = [rows[1][index] for index in sorted(numeric) if index < len(rows[1])]
    words = [field for field in units if field not in (*MISSING, *MISSING_AMONG_NUMBERS)]
    alone = len(numeric) == len(rows[1])
    return len(words) >= (1 if alone else 2) and not any(map(is_number, words)) and max(map(len, words)) <= 16


def _commented_names(preamble: Sequence[str], separator: str, width: int) -> list[str] | None:
    """The names in the last comment, as numpy.savetxt writes them, where there are as many as columns."""
    for line in reversed(preamble):
        if line.lstrip().startswith("#"):
            names = [name.strip() for name in line.strip().lstrip("#").split(separator)]
            return names if len(names) == width > 1 else None
    return None


def _refuse_names(header: list[str], path: Path, line: int) -> None:
    repeated = [name for name, count in Counter(header).items() if count > 1 and name]
    if repeated:
        positions = [str(index + 1) for index, name in enumerate(header) if name == repeated[0]]
        raise TableError(
            f"{path}, line {line}: {plural(len(positions), 'column')} called {repeated[0]!r} "
            f"(columns {', '.join(positions)}); give each column a name of its own"
        )
    if not any(header):
        raise TableError(f"{path}, line {line}: no column has a name; with --no-header they are called column_1, …")
