"""Tables that are read a block at a time, in memory that does not grow with their rows."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from widefit.data.delimited import Dialect, parse
from widefit.data.readers import SUFFIXES, refuse_disguise
from widefit.data.table import TableError

_FORMATS = ("csv", "tsv", "parquet")


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a table.

    Attributes
    ----------
    frame
        The rows.
    first
        Rows before them.
    """

    frame: pl.DataFrame
    first: int


class TableBlocks:
    """A .csv, .tsv (both also .gz) or .parquet file as blocks; can be gone through once or again.

    Columns that are text in the first block are read as text in all of them. A field with line breaks in quotes is
    allowed; blocks are then a little shorter.

    Parameters
    ----------
    path
        The file.
    rows
        Rows of a block.

    Attributes
    ----------
    name
        Of the table: the name of the file without its suffixes.

    Raises
    ------
    TableError
        No such file, another format, a file that is not what its name says. While reading: what cannot be read, with
        its line.
    """

    def __init__(self, path: str | Path, rows: int):
        self.path, self.rows = Path(path).expanduser(), rows
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        self._compressed = suffixes[-1:] == [".gz"]
        kept = suffixes[:-1] if self._compressed else suffixes
        self._kind = SUFFIXES.get(kept[-1] if kept else "", "")
        if self._kind not in _FORMATS or (self._compressed and self._kind == "parquet"):
            raise TableError(f"{path}: a stream is read from .csv, .tsv (also .gz) or .parquet files")
        if not self.path.is_file():
            raise TableError(f"{path} is a folder, not a file" if self.path.is_dir() else f"there is no file {path}")
        count = 2 if self._compressed else 1
        self.name = self.path.name[: -len("".join(self.path.suffixes[-count:]))]
        with self._opened() as file:
            start = self._read(file, 65536)
        if not start:
            raise TableError(f"{path} is empty")
        refuse_disguise(start, self._kind, self.path)

    def __iter__(self) -> Iterator[Block]:
        return self._parquet() if self._kind == "parquet" else self._text()

    def _parquet(self) -> Iterator[Block]:
        table, first = pl.scan_parquet(self.path), 0
        while True:
            try:
                frame = table.slice(first, self.rows).collect()
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
                raise TableError(f"{self.path} is damaged or truncated: {str(error).splitlines()[0]}") from error
            if not frame.height:
                break
            yield Block(frame, first)
            first += frame.height

    def _text(self) -> Iterator[Block]:
        dialect, text_columns, first = None, [], 0
        for line, text in self._pieces():
            if dialect is None:
                dialect = Dialect.of(text, self.path, tabs=self._kind == "tsv")
            if not text.strip():
                continue
            frame = parse(text, dialect, self.path, first_line=line, text_columns=text_columns)
            if line == 1:
                text_columns = [column.name for column in frame if column.dtype == pl.String]
            if frame.height:
                yield Block(frame, first)
                first += frame.height

    def _pieces(self) -> Iterator[tuple[int, str]]:
        """Runs of whole lines with the number of the first; a quote that is open keeps a run going."""
        lines: list[str] = []
        number, quotes = 1, 0
        with self._opened() as file:
            while line := self._read_line(file, number + len(lines)):
                if number == 1 and not lines and not line.strip():
                    continue
                lines.append(line)
                quotes += line.count('"')
                # Of a quote that is never closed the parser finds the line.
                wanted = self.rows + (number == 1)
                if len(lines) > 2 * wanted or (len(lines) >= wanted and quotes % 2 == 0):
                    yield number, "".join(lines)
                    number, lines, quotes = number + len(lines), [], 0
        if lines:
            yield number, "".join(lines)

    def _opened(self):
        try:
            return gzip.open(self.path, "rb") if self._compressed else open(self.path, "rb")
        except OSError as error:
            raise TableError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _read_line(self, file, number: int) -> str:
        line = self._read(file, None)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise TableError(
                f"{self.path}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8; save the file as UTF-8"
            ) from error
        return text.replace("\r\n", "\n")

    def _read(self, file, size: int | None) -> bytes:
        """Some bytes, or a line."""
        try:
            return file.readline() if size is None else file.read(size)
        except EOFError as error:
            raise TableError(f"{self.path} is truncated: the compressed data ends early") from error
        except gzip.BadGzipFile as error:
            raise TableError(f"{self.path} ends in .gz but is not gzip-compressed; take .gz off its name") from error
        except (OSError, zlib.error) as error:
            raise TableError(f"{self.path} cannot be read: {error}") from error
