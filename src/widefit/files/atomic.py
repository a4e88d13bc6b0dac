"""Files that appear under their names complete, or not at all."""

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EISDIR
from pathlib import Path

try:
    import fcntl
except ImportError:  # where files cannot be locked, nothing tells the leavings of a dead process from work in progress
    fcntl = None

# Bytes of a file's name that its temporary one shows: together with the rest they fit in any file system.
_SHOWN = 100


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Hand out a fresh name in the same folder; when the block ends, move what was written there to `path`.

    The data is on the disk before the name changes, and the change itself is as well when the block is left. When the
    block raises, `path` keeps what it had and nothing else is left behind. What processes have left that were killed in
    a block for the same file is removed.

    A file keeps its permissions, and a symbolic link keeps pointing to the file. What is no file (a device, a pipe),
    or is standard output or standard error under another name, is written into instead.

    Raises
    ------
    OSError
        The folder does not exist, the folder or the file is not writable, or the disk is full.
    """
    if _is_stream(path):
        with _into_stream(path) as temporary:
            yield temporary
        return
    target, mode = _checked(path)
    _remove_leavings(target)
    with _locked_file(target) as temporary:
        if mode is not None:
            os.chmod(temporary, mode)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)


def check_writable(path: str | Path) -> None:
    """Do everything that `replacing` does but for the writing.

    Raises
    ------
    OSError
        The file could not be written.
    """
    if _is_stream(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES), str(path))
        return
    with _locked_file(_checked(path)[0]):
        pass


def _is_stream(path: str | Path) -> bool:
    """True for what has to be written into: no regular file, or one that this process speaks to already."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(found.st_mode):
        return False
    return not stat.S_ISREG(found.st_mode) or _spoken_to(found) is not None


def _spoken_to(found: os.stat_result) -> int | None:
    """The descriptor of standard output or standard error, where a file is one of them."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None


@contextmanager
def _into_stream(path: str | Path) -> Iterator[Path]:
    """Hand out a name in a folder of its own; when the block ends, write into `path` what was written there."""
    with tempfile.TemporaryDirectory(prefix="widefit") as folder:
        temporary = Path(folder, "content")
        temporary.touch()
        yield temporary
        own = _spoken_to(os.stat(path))
        if own is not None and (said := sys.stdout if own == 1 else sys.stderr) is not None:
            said.flush()
        # Through the descriptor that there is: two of them would write over one another.
        with open(temporary, "rb") as content, open(path if own is None else os.dup(own), "wb") as stream:
            shutil.copyfileobj(content, stream)


def _checked(path: str | Path) -> tuple[Path, int | None]:
    """The file behind a name, and its permissions (None: there is none yet)."""
    target = Path(os.path.realpath(path))
    try:
        # By the name as given: links that run in a circle, and names that are too long, are told apart here.
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        return target, None
    if target.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(EACCES, "the file is read-only", str(path))
    return target, mode


@contextmanager
def _locked_file(target: Path) -> Iterator[Path]:
    """An empty file beside the target, locked for as long as this process lives; removed unless it was moved away."""
    temporary, descriptor = _created(target)
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        os.close(descriptor)


def _created(target: Path) -> tuple[Path, int]:
    while True:
        temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(6)}.tmp")
        # The mode that any new file has: what the user's umask leaves.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            return temporary, descriptor
        # Not every file system knows locks; without, what a killed process leaves stays.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # somebody took it for a leaving before it was locked


def _prefix(target: Path) -> str:
    """The beginning of the names of all temporary files for a target, and of no other's."""
    name = os.fsencode(target.name)
    if len(name) <= _SHOWN:
        return f".{target.name}."
    shown = name[:_SHOWN].decode(errors="ignore")
    return f".{shown}.{hashlib.sha256(name).hexdigest()[:12]}."


def _remove_leavings(target: Path) -> None:
    """Remove what killed processes have left of earlier attempts: files that nobody holds locked."""
    if fcntl is None:
        return
    prefix = _prefix(target)
    with os.scandir(target.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(".tmp")]
    for name in names:
        if len(name) != len(prefix) + 16:
            continue  # of another target, whose name begins with this one's
        with contextlib.suppress(OSError):
            descriptor = os.open(target.with_name(name), os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                target.with_name(name).unlink()
            finally:
                os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # folders cannot be opened elsewhere, and need not be
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
