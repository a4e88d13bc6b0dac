"""From a file or a data set's name to a Table."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import polars as pl

from widefit.data.arrays import read_libsvm, read_npz
from widefit.data.datasets import BUILT_IN, OPENML_PREFIX, load_built_in, load_openml
from widefit.data.delimited import read_delimited
from widefit.data.table import Table, TableError

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npz": "npz",
    ".svm": "libsvm",
    ".libsvm": "libsvm",
    ".svmlight": "libsvm",
    ".txt": "libsvm",
}
_TEXT = ("csv", "tsv", "libsvm")

# First bytes of what people hand over under another name.
_SIGNATURES = (
    (b"PAR1", "a Parquet file", "parquet"),
    (b"PK\x03\x04", "a zip archive (an .npz, .xlsx or .zip file)", "npz"),
    (b"\x1f\x8b", "gzip-compressed", ""),
    (b"\x89HDF", "an HDF5 file", ""),
    (b"\x93NUMPY", "a single NumPy array (.npy)", ""),
    (b"\x80\x02", "a pickle, which widefit does not open", ""),
    (b"\x80\x03", "a pickle, which widefit does not open", ""),
    (b"\x80\x04", "a pickle, which widefit does not open", ""),
    (b"\x80\x05", "a pickle, which widefit does not open", ""),
    (b"ARROW1", "an Arrow/Feather file", ""),
    (b"%PDF", "a PDF document", ""),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", ""),
    (b"BZh", "bzip2-compressed", ""),
    (b"\xfd7zXZ", "xz-compressed", ""),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8", ""),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8", ""),
)


def read_table(source: str | Path) -> Table:
    """Read a data set by name ("digits", "openml:adult") or a file by path.

    Parameters
    ----------
    source
        The name of a built-in data set, `openml:NAME`, or a path that ends in .csv, .tsv, .parquet, .npz, .svm,
        .libsvm, .svmlight or .txt (svmlight); text formats may end in .gz as well.

    Raises
    ------
    TableError
        No such file or name; a file that is not what its suffix says; content that cannot be read, with the line and
        the column where the format has them.
    """
    text = str(source)
    if text in BUILT_IN:
        return load_built_in(text)
    if text.startswith(OPENML_PREFIX):
        return load_openml(text.removeprefix(OPENML_PREFIX))
    return _read_file(Path(source).expanduser())


def _read_file(path: Path) -> Table:
    if path.is_dir():
        raise TableError(f"{path} is a folder, not a file")
    if not path.exists():
        if not path.suffix:
            known = ", ".join(BUILT_IN)
            raise TableError(f"there is no file and no built-in data set called {str(path)!r}; built in are {known}")
        raise TableError(f"there is no file {path}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = SUFFIXES.get(suffixes[-2] if compressed and len(suffixes) > 1 else suffixes[-1] if suffixes else "", "")
    if not kind or (compressed and kind not in _TEXT):
        raise TableError(
            f"{path}: the name does not end in a format that widefit reads (.csv, .tsv, .parquet, .npz, .svm, .libsvm, "
            ".svmlight or .txt for svmlight; text also with .gz)"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise TableError(f"{path} is empty")
    if compressed:
        data = _decompress(data, path)
    refuse_disguise(data, kind, path)
    name = path.name[: -len("".join(path.suffixes[-2:] if compressed else path.suffixes[-1:]))]
    return _FORMATS[kind](data, path, name)


def _decompress(data: bytes, path: Path) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        raise TableError(f"{path} ends in .gz but is not gzip-compressed; take .gz off its name")
    try:
        plain = gzip.decompress(data)
    except EOFError as error:
        raise TableError(f"{path} is truncated: the compressed data ends early") from error
    except (OSError, zlib.error) as error:
        raise TableError(f"{path} is damaged: {error}") from error
    if not plain:
        raise TableError(f"{path} is empty once decompressed")
    return plain


def refuse_disguise(data: bytes, kind: str, path: Path) -> None:
    """Say what a file is when its first bytes contradict its suffix."""
    for signature, description, own_kind in _SIGNATURES:
        if data.startswith(signature) and kind != own_kind:
            advice = f"; rename it to {path.name}.gz" if description == "gzip-compressed" and kind in _TEXT else ""
            raise TableError(f"{path} is not {_ARTICLE[kind]} file: it is {description}{advice}")
    if kind not in _TEXT:
        expected = b"PAR1" if kind == "parquet" else b"PK"
        if not data.startswith(expected):
            raise TableError(f"{path} is not {_ARTICLE[kind]} file: it does not start like one")
        return
    if b"\0" in data[:65536]:
        raise TableError(f"{path} is not {_ARTICLE[kind]} file: it holds binary data")
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise TableError(f"{path} is not {_ARTICLE[kind]} file: it is a web page or XML (a failed download?)")
    if start.startswith((b"{", b"[{")):
        raise TableError(f"{path} is not {_ARTICLE[kind]} file: it looks like JSON")
    if start.startswith((b"@relation", b"% ")) and b"@attribute" in data[:65536].lower():
        raise TableError(f"{path} is not {_ARTICLE[kind]} file: it is ARFF; delete its header and save it as CSV")


def _read_csv(data: bytes, path: Path, name: str) -> Table:
    return read_delimited(data, path, name, tabs=False)


def _read_tsv(data: bytes, path: Path, name: str) -> Table:
    return read_delimited(data, path, name, tabs=True)


def _read_parquet(data: bytes, path: Path, name: str) -> Table:
    try:
        frame = pl.read_parquet(data)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise TableError(f"{path} is damaged or truncated: {str(error).splitlines()[0]}") from error
    if not frame.height or not frame.width:
        raise TableError(f"{path} has no rows" if frame.width else f"{path} has no columns")
    return Table(frame, name)


_ARTICLE = {"csv": "a CSV", "tsv": "a TSV", "parquet": "a Parquet", "npz": "an NPZ", "libsvm": "an svmlight"}
_FORMATS: dict[str, Callable[[bytes, Path, str], Table]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "npz": read_npz,
    "libsvm": read_libsvm,
}
