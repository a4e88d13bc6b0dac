"""Files of tables opened: decompressed, their format known from the name or, where there is none, the first bytes."""

import bz2
import gzip
import io
import lzma
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import cast

from widefit.data.words import TableError, listing

STANDARD_INPUT = "-"
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npz": "npz",
    ".svm": "libsvm",
    ".libsvm": "libsvm",
    ".svmlight": "libsvm",
    ".txt": "text",
    ".arff": "arff",
    ".xlsx": "excel",
    ".xls": "excel",
    ".ods": "excel",
}
COMPRESSED = {
    ".gz": ("gzip", b"\x1f\x8b"),
    ".bz2": ("bzip2", b"BZh"),
    ".xz": ("xz", b"\xfd7zXZ"),
    ".zst": ("zstd", b"\x28\xb5\x2f\xfd"),
    ".zip": ("zip", b"PK"),
}
FORMATS = (
    ".csv, .tsv, .txt, .parquet, .npz, .svm, .libsvm, .svmlight, .arff, .xlsx, .xls or .ods; also with .gz, .bz2, .xz, "
    ".zst or .zip"
)
_TEXT = ("csv", "tsv", "libsvm", "arff")
_ARTICLE = {
    "csv": "a CSV",
    "tsv": "a TSV",
    "parquet": "a Parquet",
    "npz": "an NPZ",
    "libsvm": "an svmlight",
    "arff": "an ARFF",
    "excel": "a spreadsheet",
}
_FIRST_BYTES = {"parquet": (b"PAR1",), "npz": (b"PK",), "excel": (b"PK", b"\xd0\xcf\x11\xe0")}
# First bytes of what people hand over under another name.
_SIGNATURES = (
    (b"PAR1", "a Parquet file"),
    (b"PK\x03\x04", "a zip archive (an .npz, .xlsx or .zip file)"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a single NumPy array (.npy)"),
    (b"\x80\x02", "a pickle, which widefit does not open"),
    (b"\x80\x03", "a pickle, which widefit does not open"),
    (b"\x80\x04", "a pickle, which widefit does not open"),
    (b"\x80\x05", "a pickle, which widefit does not open"),
    (b"ARROW1", "an Arrow/Feather file"),
    (b"%PDF", "a PDF document"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"\xfd7zXZ", "xz-compressed"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
)
_START = 65536
_SVMLIGHT = re.compile(rb"\s*[^\s:,;]+(\s+qid:\d+)?(\s+\d+:\S+)+\s*(#.*)?")


@dataclass(frozen=True)
class TableFile:
    """An open file.

    Attributes
    ----------
    path
        For messages.
    name
        Of the table: that of the file without its suffixes.
    kind
        "csv", "tsv", "parquet", "npz", "libsvm", "arff" or "excel".
    compressed
        Whether the bytes on the disk are others.
    file
        The decompressed bytes, from the first on.
    """

    path: Path
    name: str
    kind: str
    compressed: bool
    file: io.BufferedIOBase

    def read(self) -> bytes:
        """All bytes."""
        with self.file, damage_in_words(self.path):
            return self.file.read()


@contextmanager
def damage_in_words(path: Path) -> Iterator[None]:
    """Turn the errors of reading compressed or unreadable files into a TableError."""
    try:
        yield
    except EOFError as error:
        raise TableError(f"{path} is truncated: the compressed data ends early") from error
    except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise TableError(f"{path} is damaged: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        # zipfile: passwords, methods that it does not know.
        raise TableError(f"{path} cannot be decompressed: {error}") from error
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error
    except TableError:
        raise
    except Exception as error:  # other decompressors have errors of their own
        raise TableError(f"{path} is damaged: {error}") from error


def place(source: str | Path) -> Path:
    """The path of a source, with ~ as the home folder where that is known."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def open_table(source: str | Path) -> TableFile:
    """Open a file by its path, or standard input by "-".

    Raises
    ------
    TableError
        No such file, a folder, a file that cannot be read, an unknown format, a file that is not what its name says.
    """
    if str(source) == STANDARD_INPUT:
        return _resolved(Path("standard input"), "stdin", "", "", cast(io.BufferedIOBase, sys.stdin.buffer))
    path = place(source)
    _refuse_missing(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = COMPRESSED[suffixes.pop()][0] if suffixes and suffixes[-1] in COMPRESSED else ""
    kind = SUFFIXES.get(suffixes[-1], "") if suffixes else ""
    if not kind and compression != "zip":
        raise TableError(f"{path}: the name does not end in a format that widefit reads ({FORMATS})")
    with damage_in_words(path):
        file = path.open("rb")
    count = bool(compression) + bool(kind)
    name = path.name[: -len("".join(path.suffixes[-count:]))]
    try:
        return _resolved(path, name, kind, compression, file)
    except BaseException:
        file.close()
        raise


def _refuse_missing(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise TableError(f"there is no file {path}") from error
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TableError(f"{str(path)!r} is not the name of a file: {error}") from error
    if stat.S_ISDIR(mode):
        raise TableError(f"{path} is a folder, not a file")


def _resolved(path: Path, name: str, kind: str, compression: str, file: io.BufferedIOBase) -> TableFile:
    """The file with its compression undone and its format made certain."""
    start, file = _peeked(file, path)
    if not start:
        raise TableError(f"{path} is empty")
    if not kind and not compression:
        compression = next((name for name, first in COMPRESSED.values() if start.startswith(first)), "")
        if compression == "zip":
            kind, compression = "npz", ""
    if compression:
        kind, plain = _decompressed(path, kind, compression, start, file)
        start, file = _peeked(plain, path, below=file)
        if not start:
            raise TableError(f"{path} is empty once decompressed")
    kind = _from_content(start, kind)
    refuse_disguise(start, kind, path)
    return TableFile(path, name, kind, bool(compression), file)


def _peeked(
    file: io.BufferedIOBase, path: Path, below: io.BufferedIOBase | None = None
) -> tuple[bytes, io.BufferedIOBase]:
    """The first bytes, and a file that has them still; closing it closes the one below, which decompressors leave."""
    with damage_in_words(path):
        start = file.read(_START)
    # Decompressors say that they can seek, whether what they read from can or not.
    if isinstance(file, io.BufferedReader) and file.seekable():
        file.seek(0)
        return start, file
    return start, io.BufferedReader(_Rejoined(start, file, below), _START)


class _Rejoined(io.RawIOBase):
    """Bytes that were read already, followed by the rest of their file."""

    def __init__(self, start: bytes, file: io.BufferedIOBase, below: io.BufferedIOBase | None):
        self._start = memoryview(start)
        self._file = file
        self._below = below

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        part = self._start[: len(buffer)] if len(self._start) else self._file.read(len(buffer))
        self._start = self._start[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        super().close()
        self._file.close()
        if self._below is not None:
            self._below.close()


def _decompressed(
    path: Path, kind: str, compression: str, start: bytes, file: io.BufferedIOBase
) -> tuple[str, io.BufferedIOBase]:
    """The format, which the member of a zip archive names, and the plain bytes."""
    suffix, first = next((suffix, first) for suffix, (name, first) in COMPRESSED.items() if name == compression)
    if not start.startswith(first):
        raise TableError(f"{path} ends in {suffix} but is not {compression}-compressed; take {suffix} off its name")
    if compression == "zip":
        return _member(path, kind, file)
    opener = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "zstd": _open_zstd}[compression]
    with damage_in_words(path):
        return kind, opener(file, "rb")


def _member(path: Path, kind: str, file: io.BufferedIOBase) -> tuple[str, io.BufferedIOBase]:
    """The only file of a zip archive."""
    with damage_in_words(path):
        archive = zipfile.ZipFile(file)
        members = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if len(members) != 1:
            found = listing(members, 4) or "nothing"
            raise TableError(f"{path} holds {found}; a zip archive with one table in it is read")
        kind = SUFFIXES.get(PurePosixPath(members[0]).suffix.lower(), kind)
        if not kind:
            raise TableError(f"{path} holds {members[0]!r}, whose name does not end in a format that widefit reads")
        return kind, cast(io.BufferedIOBase, archive.open(members[0]))


def _open_zstd(file: io.BufferedIOBase, mode: str) -> io.BufferedIOBase:
    # Python's own since 3.14.
    for module in ("compression.zstd", "zstandard"):
        try:
            return io.BufferedReader(import_module(module).open(file, mode))
        except ImportError:
            continue
    raise TableError("reading .zst needs the package zstandard: pip install 'widefit[tables]', or decompress the file")


def _from_content(start: bytes, kind: str) -> str:
    """The format of a .txt file or of standard input."""
    if kind not in ("", "text"):
        return kind
    if not kind and start.startswith(b"PAR1"):
        return "parquet"
    if not kind and start.startswith(b"PK"):
        return "npz"
    lines = [line for line in start.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    if lines and _SVMLIGHT.fullmatch(lines[0]):
        return "libsvm"
    return "arff" if _is_arff(start) else "csv"


def _is_arff(start: bytes) -> bool:
    lower = start.lower()
    return lower.lstrip().startswith((b"@relation", b"%")) and b"@attribute" in lower


def refuse_disguise(start: bytes, kind: str, path: Path) -> None:
    """Say what a file is when its first bytes contradict its suffix."""
    own = _FIRST_BYTES.get(kind, ())
    if own and start.startswith(own):
        return
    for signature, description in _SIGNATURES:
        if start.startswith(signature):
            advice = f"; rename it to {path.name}.gz" if description == "gzip-compressed" and kind in _TEXT else ""
            raise TableError(f"{path} is not {_ARTICLE[kind]} file: it is {description}{advice}")
    if own:
        raise TableError(f"{path} is not {_ARTICLE[kind]} file: it does not start like one")
    if b"\0" in start:
        raise TableError(f"{path} is not {_ARTICLE[kind]} file: it holds binary data")
    beginning = start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if beginning.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise TableError(f"{path} is not {_ARTICLE[kind]} file: it is a web page or XML (a failed download?)")
    if beginning.startswith((b"{", b"[{")):
        raise TableError(f"{path} is not {_ARTICLE[kind]} file: it looks like JSON")
    if kind != "arff" and _is_arff(start):
        raise TableError(f"{path} is not {_ARTICLE[kind]} file: it is ARFF; rename it to {path.stem}.arff")
