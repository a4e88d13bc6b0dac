"""A folder for compiled kernels where Numba finds none: in a read-only installation of a user without a home."""

import os
import stat
import sys
import tempfile
from pathlib import Path


def ensure() -> None:
    """Give Numba a folder for temporary files where it can write neither beside the package nor in the user's cache.

    Without one, Numba refuses to load functions that it is to cache. Nothing happens where `NUMBA_CACHE_DIR` is set.
    """
    if os.environ.get("NUMBA_CACHE_DIR") or any(map(_writable, _places_of_numba())):
        return
    os.environ["NUMBA_CACHE_DIR"] = folder = str(_temporary())
    if numba := sys.modules.get("numba"):  # it has read the environment
        numba.config.CACHE_DIR = folder


def _places_of_numba() -> tuple[Path, Path]:
    beside = Path(__file__).parent / "__pycache__"
    if sys.platform == "darwin":
        return beside, Path("~/Library/Caches/numba")
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return beside, Path(home) / "numba"


def _writable(folder: Path) -> bool:
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, RuntimeError):  # the latter where there is no home to expand
        return False


def _temporary() -> Path:
    """Return a folder that other processes of this user find again, and nobody else can write to."""
    user = os.getuid() if hasattr(os, "getuid") else None
    shared = Path(tempfile.gettempdir()) / f"widefit-kernels-{user}"
    if user is not None:
        try:
            shared.mkdir(mode=0o700, exist_ok=True)
            found = shared.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022:
                return shared
        except OSError:
            pass
    return Path(tempfile.mkdtemp(prefix="widefit-kernels-"))
