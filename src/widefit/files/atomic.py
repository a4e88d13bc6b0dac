"""A file appears under its name complete, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Hand out a fresh name in the same folder; when the block ends, move what was written there to `path`.

    The data is on the disk before the name changes, and the change itself is as well when the block is left. When the
    block raises, `path` keeps what it had and nothing else is left behind.

    Raises
    ------
    OSError
        The folder does not exist, is not writable, or the disk is full.
    """
    target = Path(os.path.realpath(path))  # a symbolic link keeps pointing to the file
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # folders cannot be opened elsewhere, and need not be
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
