"""The file format: tensors in safetensors, one JSON document in its metadata, one checksum over every byte.

Layout of a file, version 1: an ordinary safetensors file whose metadata has the single key "widefit" with a JSON object
{"checksum", "document", "format": "widefit", "kind", "version", "widefit"}. The checksum is the SHA-256 of the whole
file with the 64 digits of the checksum itself read as zeros, so no byte can change unnoticed: tensors, names, shapes,
the document, even padding. Numbers that JSON does not have are written as Python's json writes them (NaN).

safetensors allows 100 MB of metadata; a document of more than `MAX_IN_METADATA` bytes (the history of many thousand
steps) is stored as a tensor of bytes called "widefit.document" instead, and "document" is null.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import widefit
from widefit.files.atomic import replacing

FORMAT = "widefit"
VERSION = 1
KINDS = {"model": "a model file", "checkpoint": "a checkpoint", "delta": "a fine-tuning delta"}
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
MAX_IN_METADATA = 1 << 24
_DOCUMENT = "widefit.document"
_NO_CHECKSUM = "0" * 64
_CHUNK = 1 << 22
_MAX_HEADER = 1 << 27

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


class FileError(ValueError):
    """A file that is not what it should be. The message names the file and says what it is instead."""


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
        Values that JSON can hold.
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
    separate = _separate(tensors)
    content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    if len(content) > MAX_IN_METADATA:
        separate[_DOCUMENT] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    envelope = {
        "checksum": _NO_CHECKSUM,
        "document": None if _DOCUMENT in separate else document,
        "format": FORMAT,
        "kind": kind,
        "version": VERSION,
        "widefit": widefit.__version__,
    }
    text = json.dumps(envelope, sort_keys=True, separators=(",", ":"))
    with replacing(path) as temporary:
        # save_file makes files that nobody else may read; touch() asks the user's umask.
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(separate, temporary, metadata={FORMAT: text})
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            digest, position = _checksum(file, _NO_CHECKSUM.encode())
            file.seek(position)
            file.write(digest.encode())


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
    with open(path, "rb") as file:
        envelope = _read_envelope(file, path, kind)
        checksum = envelope.get("checksum")
        if not isinstance(checksum, str) or _checksum(file, checksum.encode())[0] != checksum:
            raise FileError(f"{path} is altered: its checksum does not match its content")
    if envelope["kind"] != kind:
        raise FileError(f"{path} is {KINDS.get(envelope['kind'], envelope['kind'])}, not {KINDS[kind]}")
    try:
        with safe_open(path, framework="pt") as content:
            # Copies: a tensor must not change or vanish when somebody overwrites the file in place.
            tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FileError(f"{path} is altered: {error}") from error
    if envelope["document"] is None:
        return tensors, json.loads(tensors.pop(_DOCUMENT).numpy().tobytes())
    return tensors, envelope["document"]


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous on the CPU, no two in the same memory, as safetensors wants them."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
            raise ValueError(f"tensor {name!r} cannot be stored: it is {tensor.layout} of {tensor.dtype}")
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if address in seen else plain
        seen.add(address)
    return separate


def _checksum(file: Any, checksum: bytes) -> tuple[str, int]:
    """SHA-256 of the file with the first `checksum` in its header read as zeros, and where that stands."""
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    header = file.read(length)
    position = header.find(checksum)
    if len(checksum) != len(_NO_CHECKSUM) or position < 0:
        return "", -1
    header = header[:position] + _NO_CHECKSUM.encode() + header[position + len(checksum) :]
    digest = hashlib.sha256(struct.pack("<Q", length))
    digest.update(header)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest(), 8 + position


def _read_envelope(file: Any, path: Path, kind: str) -> dict[str, Any]:
    """The JSON of the metadata, once the file is seen to be complete and ours."""
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
    header_bytes = file.read(length)
    if len(header_bytes) < length:
        raise FileError(f"{path} is truncated: {size:,} bytes, less than its header alone")
    try:
        header = json.loads(header_bytes)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise FileError(f"{path} is not {KINDS[kind]}, or is altered: its header cannot be read") from error
    if size < end:
        raise FileError(f"{path} is truncated: {size:,} of {end:,} bytes")
    if size > end:
        raise FileError(f"{path} is altered: {size - end:,} bytes follow its end")
    return _checked_envelope(header.get("__metadata__"), path, kind)


def _checked_envelope(metadata: Any, path: Path, kind: str) -> dict[str, Any]:
    text = metadata.get(FORMAT) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise FileError(f"{path} is a safetensors file, but not one that widefit wrote (or is altered)")
    try:
        envelope = json.loads(text)
        ours = envelope["format"] == FORMAT
        version = envelope["version"]
        complete = isinstance(envelope["document"], dict | None) and isinstance(envelope["kind"], str)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{path} is altered: its description cannot be read") from error
    if not ours or not complete or not isinstance(version, int):
        raise FileError(f"{path} is altered: its description is not one of widefit's")
    if version > VERSION:
        raise FileError(
            f"{path} was written by a newer widefit: its format version is {version}, and this one "
            f"({widefit.__version__}) reads up to {VERSION}; upgrade widefit"
        )
    return envelope
