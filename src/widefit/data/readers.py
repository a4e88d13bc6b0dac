"""From a file or a data set's name to a Table."""

import io
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from widefit.data.arrays import read_libsvm, read_npz
from widefit.data.datasets import BUILT_IN, OPENML_PREFIX, load_built_in, load_openml
from widefit.data.delimited import read_delimited
from widefit.data.reading import Reading
from widefit.data.sources import STANDARD_INPUT, TableFile, open_table, place
from widefit.data.table import Table
from widefit.data.words import TableError, listing

_INDEX = re.compile(r"__index_level_\d+__")


def read_table(source: str | Path, reading: Reading | None = None) -> Table:
    """Read a data set by name ("digits", "openml:adult"), a file by path, or standard input by "-".

    Parameters
    ----------
    source
        The name of a built-in data set, `openml:NAME`, "-", or a path that ends in a suffix of `SUFFIXES`, perhaps
        followed by one of `COMPRESSED`; a .txt file may be delimited text or svmlight.
    reading
        Instructions; None leaves everything to the table.

    Raises
    ------
    TableError
        No such file or name; a file that is not what its suffix says; content that cannot be read, with the line and
        the column where the format has them.
    """
    reading = reading or Reading()
    text = str(source)
    if text in BUILT_IN:
        table = load_built_in(text)
    elif text.startswith(OPENML_PREFIX):
        table = load_openml(text.removeprefix(OPENML_PREFIX))
    else:
        table = _read_file(source, reading)
    if not reading.na_values:
        return table
    return replace(table, frame=pl.DataFrame([reading.without_marks(column) for column in table.frame]))


def _read_file(source: str | Path, reading: Reading) -> Table:
    path = place(source)
    if str(source) != STANDARD_INPUT and not path.suffix and not path.exists():
        known = ", ".join(BUILT_IN)
        raise TableError(f"there is no file and no built-in data set called {str(path)!r}; built in are {known}")
    file = open_table(source)
    if file.kind in ("csv", "tsv"):
        with file.file:
            return read_delimited(file.file, file.path, file.name, reading, tabs=file.kind == "tsv")
    return _FORMATS[file.kind](file)


def index_columns(frame: pl.DataFrame, source: Path | bytes) -> list[str]:
    """Columns of a Parquet file that hold the index of pandas: by its own record, or by their names."""
    try:
        metadata = pl.read_parquet_metadata(io.BytesIO(source) if isinstance(source, bytes) else source)
        declared = json.loads(metadata.get("pandas", "{}")).get("index_columns", [])
    except (pl.exceptions.PolarsError, OSError, ValueError, AttributeError):
        declared = []
    return [name for name in frame.columns if name in declared or _INDEX.fullmatch(name)]


def index_note(name: str, index: list[str]) -> str:
    """The sentence about index columns that were left out."""
    return f"{name}: the index of pandas is left out: {listing(index)}"


def _read_parquet(file: TableFile) -> Table:
    data = file.read()
    try:
        frame = pl.read_parquet(data)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise TableError(f"{file.path} is damaged or truncated: {str(error).splitlines()[0]}") from error
    if not frame.height or not frame.width:
        raise TableError(f"{file.path} has no rows" if frame.width else f"{file.path} has no columns")
    index = index_columns(frame, data)
    notes = (index_note(file.path.name, index),) if index else ()
    return Table(frame.drop(index), file.name, notes=notes)


def _read_npz(file: TableFile) -> Table:
    return read_npz(file.read(), file.path, file.name)


def _read_libsvm(file: TableFile) -> Table:
    return read_libsvm(file.read(), file.path, file.name)


def _read_arff(file: TableFile) -> Table:
    from scipy.io import arff

    try:
        found, meta = arff.loadarff(io.StringIO(file.read().decode("utf-8")))
    except NotImplementedError as error:
        raise TableError(f"{file.path}: {error}; delete that attribute, or save the table as CSV") from error
    except Exception as error:  # scipy's parser fails in as many ways as a file can be wrong
        raise TableError(f"{file.path} is not a readable ARFF file: {error}") from error
    columns = [_arff_column(name, found[name], meta[name][0]) for name in meta.names()]
    return Table(pl.DataFrame(columns), file.name)


def _arff_column(name: str, values: np.ndarray, kind: str) -> pl.Series:
    if kind == "nominal":
        text = [value.decode("utf-8", "replace") for value in values.tolist()]
        return pl.Series(name, [None if value == "?" else value for value in text], dtype=pl.String)
    return pl.Series(name, values.astype("datetime64[us]") if kind == "date" else values)


def _read_excel(file: TableFile) -> Table:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = pl.read_excel(io.BytesIO(file.read()), engine="calamine", raise_if_empty=False)
    except ImportError as error:
        raise TableError(
            f"{file.path}: spreadsheets need the package fastexcel: pip install 'widefit[tables]', or save it as CSV"
        ) from error
    except Exception as error:  # the errors of fastexcel are its own, and it is not always installed
        raise TableError(f"{file.path} is not a readable spreadsheet: {str(error).splitlines()[0]}") from error
    if not frame.height:
        raise TableError(f"{file.path}: the first sheet has no rows")
    return Table(frame, file.name, notes=(f"{file.path.name}: its first sheet",))


_FORMATS: dict[str, Callable[[TableFile], Table]] = {
    "parquet": _read_parquet,
    "npz": _read_npz,
    "libsvm": _read_libsvm,
    "arff": _read_arff,
    "excel": _read_excel,
}
