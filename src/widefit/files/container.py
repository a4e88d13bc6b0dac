"""The file format: tensors in safetensors, one JSON document in its metadata, one checksum over every byte.

Layout of a file, version 1: an ordinary safetensors file whose metadata has the single key "widefit" with a JSON object
{"checksum", "document", "format": "widefit", "kind", "version", "widefit"}. The checksum is the SHA-256 of the whole
file with the 64 digits of the checksum itself read as zeros, so no byte can change unnoticed: tensors, names, shapes,
the document, even padding. Numbers that JSON does not have are written as Python's json writes them (NaN).

A document of more than `MAX_IN_METADATA` bytes (the history of many thousand steps) is stored as a tensor of bytes
called "widefit.document" instead, and "document" is null.

A checksum guards against accidents, not against somebody who computes it anew. So nothing else is trusted either: what
a file claims is checked before memory is asked for it.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from widefit.files.atomic import replacing
from widefit.files.json_text import parse, refuse_swelling
from widefit.records import FileError, read
from widefit.records.contents import contents

FORMAT = "widefit"
VERSION = 1
KINDS = {"model": "a model file", "checkpoint": "a checkpoint", "delta": "a fine-tuning delta"}
# By the names that safetensors has for them.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
DTYPES = tuple(_NAMES)
MAX_IN_METADATA = 1 << 20
_DOCUMENT = "widefit.document"
_METADATA = "__metadata__"
_NO_CHECKSUM = "0" * 64
_CHUNK = 1 << 22
# A document in the metadata with every character escaped, and the places of some fifty thousand tensors.
_MAX_HEADER = 2 * MAX_IN_METADATA + (1 << 23)
_MAX_DIMENSIONS = 8

# In the bytes of a header, before any of it is parsed. JSON within a string of JSON has its quotes escaped.
_CHECKSUM = re.compile(rb'\\"checksum\\":\s*\\"([0-9a-f]{64})\\"')
_WRITTEN_BY = re.compile(rb'\\"version\\":\s*(\d{1,9}),\s*\\"widefit\\"')
_OFFSETS = re.compile(rb'[^\\]"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,18})\s*\]')

# First bytes of files that are handed over by mistake.
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive (perhaps one of torch.save, or an .npz)"),
    (b"\x80\x02", "a pickle, which widefit never opens"),
    (b"\x80\x03", "a pickle, which widefit never opens"),
    (b"\x80\x04", "a pickle, which widefit never opens"),
    (b"\x80\x05", "a pickle, which widefit never opens"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"PAR1", "a Parquet file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
)


@dataclass(frozen=True)
class _Envelope:
    """The JSON object in the metadata."""

    checksum: str
    document: dict[str, Any] | None
    format: str
    kind: str
    version: int
    widefit: str


@dataclass(frozen=True)
class _Entry:
    """Dtype, shape and place of a tensor, as safetensors has them in its header."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


def write_container(
    path: str | Path, tensors: Mapping[str, torch.Tensor], document: Mapping[str, Any], kind: str
) -> None:
    """Write tensors and a JSON document to one file, whole or not at all.

    Parameters
    ----------
    path
        An existing file is replaced in the same moment in which the new one is complete.
    tensors
        Dense tensors of any shape, of one of `DTYPES`, on any device.
    document
        Values that JSON can hold; NumPy's numbers are taken for Python's.
    kind
        One of `KINDS`.

    Raises
    ------
    ValueError
        An unknown kind; a tensor that is sparse or of another dtype.
    TypeError
        The document holds something that JSON cannot.
    OSError
        The folder does not exist or is not writable, or the disk is full.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    plain = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    content = _json(document).encode()
    refuse_swelling(content, "the document")
    if len(content) > MAX_IN_METADATA:
        plain[_DOCUMENT] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    envelope = {
        "checksum": _NO_CHECKSUM,
        "document": None if _DOCUMENT in plain else document,
        "format": FORMAT,
        "kind": kind,
        "version": VERSION,
        "widefit": _version(),
    }
    # As safetensors orders them: the widest numbers first, so that all of them are aligned.
    ordered = dict(sorted(plain.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    header = _header(ordered, _json(envelope))
    checksum = _CHECKSUM.search(header)
    assert checksum is not None
    with replacing(path) as temporary, open(temporary, "rb+") as file:
        digest = hashlib.sha256()
        for piece in (struct.pack("<Q", len(header)), header, *map(contents, ordered.values())):
            digest.update(piece)
            file.write(piece)
        file.seek(8 + checksum.start(1))
        file.write(digest.hexdigest().encode())


def read_container(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of `write_container`: its tensors, on the CPU, and its document.

    Raises
    ------
    FileError
        No such file, not a file of widefit, of another kind, of a newer version, truncated or altered.
    OSError
        The file cannot be read at all.
    """
    path = Path(path)
    if path.is_dir():
        raise FileError(f"{path} is a folder, not {KINDS[kind]}")
    if not path.exists():
        raise FileError(f"there is no file {path}")
    if not path.is_file():
        raise FileError(f"{path} is a device or a pipe, not {KINDS[kind]}")
    # Outside of inference mode, whose tensors could never be trained.
    with open(path, "rb") as file, torch.inference_mode(False):
        header = _intact_header(file, path, kind)
        with altered(path):
            entries = parse(header, "its header")
            envelope = _read_envelope(entries.pop(_METADATA, None))
        if envelope.version > VERSION:
            raise FileError(_newer(path, envelope.version))
        if envelope.kind != kind:
            raise FileError(f"{path} is {KINDS.get(envelope.kind, envelope.kind)}, not {KINDS[kind]}")
        with altered(path):
            places = _checked_places(read(dict[str, _Entry], entries, "its header"), file, len(header))
            tensors = {name: _read_tensor(file, name, entry, 8 + len(header)) for name, entry in places.items()}
            return _with_document(tensors, envelope)


@contextmanager
def altered(path: str | Path) -> Iterator[None]:
    """Name the file in the message, where its content turns out to be wrong.

    Raises
    ------
    FileError
        Where the block raises a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise FileError(f"{path} is altered: {error}") from error


def _read_envelope(record: Any) -> _Envelope:
    metadata = read(dict[str, str], record, "its metadata")
    text = metadata.get(FORMAT, "").encode()
    envelope = read(_Envelope, parse(text, "its description"), "its description")
    if envelope.format != FORMAT:
        raise FileError(f"its format is {envelope.format[:40]!r}")
    return envelope


def _with_document(
    tensors: dict[str, torch.Tensor], envelope: _Envelope
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, and the document from where it stands."""
    if envelope.document is not None:
        return tensors, envelope.document
    kept = tensors.pop(_DOCUMENT, None)
    if kept is None or kept.dtype != torch.uint8 or kept.ndim != 1:
        raise FileError("it has no document")
    return tensors, parse(kept.numpy().data, "its document")


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous on the CPU."""
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} cannot be stored: it is {tensor.layout} of {tensor.dtype}")
    if name in (_METADATA, _DOCUMENT):
        raise ValueError(f"tensor {name!r} cannot be stored: the name is taken")
    return tensor.detach().cpu().contiguous()


def _header(tensors: Mapping[str, torch.Tensor], metadata: str) -> bytes:
    """The metadata and the places of all tensors; padded so that the tensors begin at a multiple of 8."""
    header: dict[str, Any] = {_METADATA: {FORMAT: metadata}}
    position = 0
    for name, tensor in tensors.items():
        offsets = [position, position + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    content = json.dumps(header, separators=(",", ":")).encode()
    return content + b" " * (-len(content) % 8)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_number)


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a document cannot hold a {type(value).__name__}")


@cache
def _version() -> str:
    try:
        return version_of("widefit")
    except PackageNotFoundError:  # run from its source
        return "unknown"


def _digest(file: BufferedReader, checksum: "re.Match[bytes]") -> str:
    """SHA-256 of the file with the digits of its checksum, found in its header, read as zeros."""
    header = checksum.string
    digest = hashlib.sha256(struct.pack("<Q", len(header)))
    digest.update(header[: checksum.start(1)] + _NO_CHECKSUM.encode() + header[checksum.end(1) :])
    file.seek(8 + len(header))
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _intact_header(file: BufferedReader, path: Path, kind: str) -> bytes:
    """The header, not parsed yet, once the file is seen to be complete, ours, and as it was written."""
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise FileError(f"{path} is empty")
    start = file.read(9)
    if start[8:9] != b"{":
        for signature, description in _FOREIGN:
            if start.startswith(signature):
                raise FileError(f"{path} is not {KINDS[kind]}: it is {description}")
        raise FileError(f"{path} is not {KINDS[kind]}: it does not start like one, or is altered there")
    (length,) = struct.unpack("<Q", start[:8])
    if length > _MAX_HEADER:
        raise FileError(f"{path} is not {KINDS[kind]}, or is altered: its header claims {length:,} bytes")
    file.seek(8)
    header = file.read(length)
    if len(header) < length:
        raise FileError(f"{path} is truncated: {size:,} bytes, less than its header alone")
    end = 8 + length + max((int(found) for found in _OFFSETS.findall(header)), default=0)
    if size < end:
        raise FileError(f"{path} is truncated: {size:,} of {end:,} bytes")
    if size > end:
        raise FileError(f"{path} is altered: {size - end:,} bytes follow its end")
    checksum = _CHECKSUM.search(header)
    if checksum is None:
        raise FileError(f"{path} is a safetensors file, but not one that widefit wrote (or is altered)")
    if _digest(file, checksum) != checksum[1].decode():
        # A newer version may have another checksum.
        written_by = _WRITTEN_BY.findall(header)
        if written_by and int(written_by[-1]) > VERSION:
            raise FileError(_newer(path, int(written_by[-1])))
        raise FileError(f"{path} is altered: its checksum does not match its content")
    return header


def _newer(path: Path, found: int) -> str:
    return (
        f"{path} was written by a newer widefit: its format version is {found}, and this one ({_version()}) reads up "
        f"to {VERSION}; upgrade widefit"
    )


def _checked_places(entries: dict[str, _Entry], file: BufferedReader, length: int) -> dict[str, _Entry]:
    """The tensors in their order: they fill the file, and each takes what its shape says."""
    ordered = dict(sorted(entries.items(), key=lambda item: item[1].data_offsets))
    position = 0
    for name, entry in ordered.items():
        if entry.dtype not in _DTYPES:
            raise FileError(f"tensor {name!r} is of {entry.dtype[:40]}")
        if len(entry.shape) > _MAX_DIMENSIONS or any(extent < 0 for extent in entry.shape):
            raise FileError(f"tensor {name!r} has no shape")
        taken = prod(entry.shape) * _DTYPES[entry.dtype].itemsize
        if entry.data_offsets != [position, position + taken]:
            raise FileError(f"tensor {name!r} is not where its shape says")
        position += taken
    if 8 + length + position != os.fstat(file.fileno()).st_size:
        raise FileError("its tensors do not fill it")
    return ordered


def _read_tensor(file: BufferedReader, name: str, entry: _Entry, origin: int) -> torch.Tensor:
    """A tensor of its own: it must not change or vanish when somebody overwrites the file in place."""
    first, last = entry.data_offsets
    content = torch.empty(last - first, dtype=torch.uint8)
    file.seek(origin + first)
    if content.numel() and file.readinto(content.numpy().data) != content.numel():
        raise FileError(f"tensor {name!r} is truncated")
    if entry.dtype == "BOOL" and content.numel() and int(content.max()) > 1:
        raise FileError(f"tensor {name!r} holds what is neither true nor false")
    return content.view(_DTYPES[entry.dtype]).reshape(entry.shape)
