"""JSON that was not written here, parsed without taking far more memory than its bytes."""

import json
import re
from typing import Any

from widefit.records import FileError

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
# Half of a pair of characters, which no text holds alone.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Bytes that Python may take for a container, a key or a value: as much again as most.
_BYTES_A_VALUE = 64
# Parsed text may take so many times its bytes, and this much whatever its size.
_SWELLING, _FREE = 10, 1 << 24


def parse(content: bytes | memoryview, what: str) -> dict[str, Any]:
    """Return the JSON object in some bytes.

    Parameters
    ----------
    content
        UTF-8.
    what
        The name of the object, for messages.

    Raises
    ------
    FileError
        No JSON object; one nested too deep, with text that is none, or of so many small parts that it would take many
        times its size in memory.
    """
    refuse_swelling(content, what)
    try:
        value = json.loads(str(content, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what} cannot be read") from error
    if not isinstance(value, dict):
        raise FileError(f"{what} must be an object, it is a {type(value).__name__}")
    if _SURROGATE.search(content):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise FileError(f"{what} holds text that is none") from error
    return value


def refuse_swelling(content: bytes | memoryview, what: str) -> None:
    """Refuse JSON whose many small parts would take many times its size in memory.

    Raises
    ------
    FileError
        That is so.
    """
    if len(content) < _FREE // _BYTES_A_VALUE:
        return
    outside = _STRING.sub(b"", content)
    parts = sum(outside.count(mark) for mark in (b"[", b"{", b",", b":"))
    if parts * _BYTES_A_VALUE > _SWELLING * len(content) + _FREE:
        raise FileError(f"{what} has {parts:,} parts in {len(content):,} bytes, more than a file of widefit has")
