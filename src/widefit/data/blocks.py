"""Tables that are read a block at a time, in memory that does not grow with their rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from widefit.data.datasets import BUILT_IN, OPENML_PREFIX
from widefit.data.delimited import Delimited
from widefit.data.readers import index_columns, index_note
from widefit.data.reading import Reading
from widefit.data.sources import STANDARD_INPUT, TableFile, open_table
from widefit.data.table import Table
from widefit.data.words import TableError

_STREAMED = "a stream is read from .csv, .tsv or .txt (also compressed), .parquet, or standard input"
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
    """Delimited text (also compressed, also standard input) or a .parquet file as blocks.

    A file can be gone through again, standard input once. Names and notations are those of the first block; a later
    value that is written otherwise leaves its column in that block a column of text.

    Parameters
    ----------
    path
        The file, or "-".
    rows
        Rows of a block.
    reading
        Instructions; None leaves everything to the table.

    Attributes
    ----------
    name
        Of the table: the name of the file without its suffixes.
    reading
        Instructions; a stream that goes on with a model takes those of its encoding.
    notes, decimal, doubts
        As in `Table`, complete with the first block.

    Raises
    ------
    TableError
        No such file, another format, a file that is not what its name says. While reading: what cannot be read, with
        its line.
    """

    def __init__(self, path: str | Path, rows: int, reading: Reading | None = None):
        self._source = path
        self.rows = rows
        self.reading = reading or Reading()
        if str(path) in BUILT_IN or str(path).startswith(OPENML_PREFIX):
            raise TableError(f"{path}: {_STREAMED}")
        self._opened: TableFile | None = open_table(path)
        self.path, self.name, kind = self._opened.path, self._opened.name, self._opened.kind
        if kind not in _FORMATS or (kind == "parquet" and (self._opened.compressed or str(path) == STANDARD_INPUT)):
            self._opened.file.close()
            raise TableError(f"{path}: {_STREAMED}")
        self.notes: tuple[str, ...] = ()
        self.decimal = ""
        self.doubts: dict[str, str] = {}

    def table(self, first: Block) -> Table:
        """The first block as a table, with what the reader decided."""
        return Table(first.frame, self.name, notes=self.notes, decimal=self.decimal, doubts=self.doubts)

    def __iter__(self) -> Iterator[Block]:
        file = self._opened or open_table(self._source)
        self._opened = None
        first = 0
        for frame in self._parquet(file) if file.kind == "parquet" else self._text(file):
            yield Block(frame, first)
            first += frame.height

    def _parquet(self, file: TableFile) -> Iterator[pl.DataFrame]:
        file.file.close()
        index: list[str] | None = None
        first = 0
        while True:
            try:
                # A name is a name: q[1].parquet is not q1.parquet.
                frame = pl.scan_parquet(self.path, glob=False).slice(first, self.rows).collect()
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
                raise TableError(f"{self.path} is damaged or truncated: {str(error).splitlines()[0]}") from error
            if not frame.height:
                return
            if index is None:
                index = index_columns(frame, self.path)
                self.notes = (index_note(self.path.name, index),) if index else ()
            yield pl.DataFrame([self.reading.without_marks(column) for column in frame.drop(index)])
            first += frame.height

    def _text(self, file: TableFile) -> Iterator[pl.DataFrame]:
        with file.file:
            text = Delimited(file.file, file.path, self.reading, tabs=file.kind == "tsv")
            for frame in text.blocks(self.rows):
                self.notes, self.decimal, self.doubts = text.notes, text.decimal, text.doubts
                yield frame
