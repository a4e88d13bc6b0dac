"""The standard streams: whatever they are connected to, they take every text and cost no work."""

import contextlib
import os
import sys
from errno import EBADF
from typing import Any


def make_ready() -> None:
    """Make the standard streams take every letter, and keep files that are opened later from taking their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def silence(stream: object) -> None:
    """Send to nowhere what a stream no longer takes, up to what Python flushes when the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # pyright: ignore[reportAttributeAccessIssue]
        os.close(nowhere)


def standard_output() -> Any:
    """Return standard output, for what is lost without it.

    Raises
    ------
    OSError
        It is closed.
    """
    if sys.stdout is None:
        raise OSError(EBADF, "standard output is closed")
    return sys.stdout


class Dispensable:
    """A stream for remarks: when it takes no more (a full disk, a closed pipe), they are dropped, and the work goes on.

    Parameters
    ----------
    stream
        Where they go, like `sys.stderr`; None: nowhere.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                silence(self._stream)
        return len(text)

    def flush(self) -> None:
        """Do nothing: everything is flushed at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
