"""NPZ and svmlight: arrays whose columns get their names here."""

import io
import re
import sys
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from widefit.data.table import Table
from widefit.data.words import TableError, listing

MAX_COLUMNS = 20_000
_LINE = re.compile(r"\s*[^\s:]+(\s+qid:\d+)?(\s+\d+:\S+)*\s*(#.*)?")


def from_arrays(X: np.ndarray, y: np.ndarray | None, names: list[str] | None = None) -> pl.DataFrame:
    """Columns x0, x1, … (or `names`) of X, shape (n, d), and y, shape (n,), as the last column "y"."""
    columns = names if names is not None else [f"x{index}" for index in range(X.shape[1])]
    frame = pl.DataFrame([pl.Series(name, np.ascontiguousarray(X[:, j])) for j, name in enumerate(columns)])
    return frame if y is None else frame.with_columns(pl.Series("y", y))


def read_npz(data: bytes, path: Path, name: str) -> Table:
    """Arrays X, shape (n, d) or (n, …), and y, shape (n,) or (n, 1); y may be absent where no target is needed.

    Raises
    ------
    TableError
        Damaged archive, other keys, pickled objects, shapes that do not fit, types that are no numbers.
    """
    found = _loaded(data, path)
    if "X" not in found:
        raise TableError(f"{path} holds the arrays {listing(list(found))}; widefit reads X and y")
    X, y = (None if found.get(key) is None else _native(found[key], key, path) for key in ("X", "y"))
    assert X is not None
    if X.ndim < 2 or X.dtype.kind not in "fiub":
        raise TableError(f"{path}: X has shape {X.shape} and type {X.dtype}; it must be numbers of shape (n, d)")
    if not X.size:
        raise TableError(f"{path}: X has shape {X.shape}, there is nothing in it")
    X = X.reshape(len(X), -1)
    if y is not None:
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if y.shape != (len(X),):
            raise TableError(
                f"{path}: y has shape {y.shape} and X {len(X)} rows; one value per row is needed "
                "(several outputs: widefit.WideRegressor)"
            )
        if y.dtype.kind not in "fiubU":
            raise TableError(f"{path}: y has type {y.dtype}; it must be numbers, booleans or text")
    _refuse_wide(X.shape, path)
    return Table(from_arrays(X, y), name, target=None if y is None else "y", declares_target=True)


def _loaded(data: bytes, path: Path) -> dict[str, np.ndarray | bytes | None]:
    """X and y of an archive; None for other members, which are not opened."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] if name in ("X", "y") else None for name in archive.files}
    except MemoryError as error:
        raise TableError(f"{path} does not fit in memory, or is damaged: {error}") from error
    except Exception as error:  # NumPy evaluates the headers of members, which can be wrong in any way
        if "allow_pickle" in str(error):
            raise TableError(f"{path} holds pickled objects, which widefit does not open; save plain arrays") from error
        truncated = isinstance(error, OSError | EOFError | zipfile.BadZipFile)
        raise TableError(f"{path} is damaged{' or truncated' if truncated else ''}: {error}") from error


def _native(array: np.ndarray | bytes | None, key: str, path: Path) -> np.ndarray:
    """The array in a type that Polars takes, in this machine's order of bytes.

    Raises
    ------
    TableError
        A member that is no array, or text with numbers beyond Unicode.
    """
    if not isinstance(array, np.ndarray):
        raise TableError(f"{path}: the member {key} is not an array; save it with numpy.savez")
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "f" and size not in (4, 8):
        with np.errstate(over="ignore"):
            return array.astype(np.float32 if size < 4 else np.float64)
    if kind == "U":
        codes = np.ascontiguousarray(array).reshape(-1).view(np.uint32 if array.dtype.isnative else ">u4")
        if codes.size and (codes.max() > sys.maxunicode or ((codes >= 0xD800) & (codes < 0xE000)).any()):
            raise TableError(f"{path} is damaged: {key} holds text that is not Unicode")
    return array.astype(array.dtype.newbyteorder("="))


def read_libsvm(data: bytes, path: Path, name: str) -> Table:
    """svmlight lines "label index:value …"; columns are x<index>, with the indices of the file.

    Raises
    ------
    TableError
        A line that is not of this form, indices that do not increase, more than `MAX_COLUMNS` of them.
    """
    from sklearn import datasets

    load: Callable = datasets.load_svmlight_file

    # scikit-learn guesses whether indices start at 0 or 1 from the file at hand; training and test file may differ.
    try:
        matrix, labels = load(io.BytesIO(data), zero_based=True, dtype=np.float64)
    except (ValueError, OverflowError) as error:
        _refuse_line(data, path)
        raise TableError(f"{path} is not a readable svmlight file: {error}") from error
    if not matrix.shape[0]:
        raise TableError(f"{path} has no samples")
    _refuse_wide(matrix.shape, path)
    dense = matrix.toarray()
    first = 0 if matrix.shape[1] == 0 or matrix[:, 0].nnz else 1
    names = [f"x{index}" for index in range(first, matrix.shape[1])]
    if not names:
        raise TableError(f"{path} has labels and no features")
    return Table(from_arrays(dense[:, first:], labels, names), name, "y", declares_target=True, absent_is_zero=True)


def _refuse_line(data: bytes, path: Path) -> None:
    """Name the first line that does not parse."""
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        content = line.split("#")[0]
        if not content.strip():
            continue
        shown = line if len(line) <= 60 else line[:57] + "…"
        if not _LINE.fullmatch(line):
            raise TableError(f"{path}, line {number}: {shown!r} is not 'label index:value index:value …'")
        label, *pairs = [field for field in content.split() if not field.startswith("qid:")]
        for field in (label, *(pair.partition(":")[2] for pair in pairs)):
            try:
                float(field)
            except ValueError as error:
                raise TableError(f"{path}, line {number}: {field!r} is not a number") from error
        indices = [int(pair.partition(":")[0]) for pair in pairs]
        if any(after <= before for before, after in pairwise(indices)):
            raise TableError(f"{path}, line {number}: the indices must increase from left to right")


def _refuse_wide(shape: tuple[int, ...], path: Path) -> None:
    if shape[1] > MAX_COLUMNS:
        raise TableError(
            f"{path} has {shape[1]:,} features; as a table at most {MAX_COLUMNS:,} are read. "
            "Give such data to widefit.WideClassifier or WideRegressor as a sparse matrix"
        )
