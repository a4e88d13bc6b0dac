"""Rows of delimited text: the one parser, Python's, with the line of whatever it refuses."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from widefit.data.words import TableError

# A field longer than this is a quote that was never closed.
LONGEST_FIELD = 2**24
_ADVICE = {
    "unexpected end of data": "a quote that is not closed?",
    "field larger than field limit": "a quote that is not closed?",
    "expected after": "write a quote inside quotes twice",
}


def parse_rows(
    lines: Iterable[str], separator: str, path: Path, first_line: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line that each begins in, without blank lines.

    A line with separators and nothing else is a row of missing values; a quote in the middle of a field is a letter.

    Parameters
    ----------
    lines
        They end in "\\n".
    separator
        Between fields.
    path
        For messages.
    first_line
        Number of the first line in the file.

    Raises
    ------
    TableError
        A quote that is never closed, or one inside quotes that is not doubled.
    """
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = first_line + reader.line_num
        # The limit belongs to the process.
        limit = csv.field_size_limit(LONGEST_FIELD)
        try:
            row = next(reader, None)
        except csv.Error as error:
            advice = next((advice for part, advice in _ADVICE.items() if part in str(error)), "is the text damaged?")
            raise TableError(f"{path}, line {line}: {error} ({advice})") from error
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if not _is_blank(row):
            yield line, row


def _is_blank(row: Sequence[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip())
