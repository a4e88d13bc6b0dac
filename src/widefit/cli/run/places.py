"""Files that a command will write: refused before the work, not after it."""

import os
from collections.abc import Mapping
from pathlib import Path

from widefit.files.atomic import check_writable


def refuse_unwritable(places: Mapping[str, Path | None], sources: Mapping[str, str]) -> None:
    """Check that every file can be written and that none of them is another one or a source.

    Parameters
    ----------
    places
        What will be written, by the name of its option; None: nothing.
    sources
        What is read, by name; data sets by name are fine.

    Raises
    ------
    ValueError
        A folder that does not exist or is not writable, a folder or a read-only file in place of a file, a name that
        is too long, the same file twice.
    """
    seen = {os.path.realpath(source): name for name, source in sources.items() if os.path.isfile(source)}
    for option, path in places.items():
        if path is None:
            continue
        if os.path.isdir(path):
            raise ValueError(f"{option}: {path} is a folder; name a file")
        resolved = os.path.realpath(path)
        if resolved in seen:
            raise ValueError(f"{option}: {path} is the same file as {seen[resolved]}")
        if os.path.isfile(path) or not os.path.exists(path):
            seen[resolved] = option
        _try(option, path)


def refuse_unwritable_folders(places: Mapping[str, Path | None], sources: Mapping[str, Path], file: str) -> None:
    """Check that every folder is there or can be made, takes a file, and is no other one and no source.

    Parameters
    ----------
    places
        Folders that will be written, by the name of their option; None: nothing.
    sources
        Folders that are read, by name.
    file
        Name of a file that will be written into each.

    Raises
    ------
    ValueError
        A file in place of a folder, a folder above it that does not exist, one that is not writable, the same folder
        twice.
    """
    seen = {os.path.realpath(source): name for name, source in sources.items()}
    for option, path in places.items():
        if path is None:
            continue
        if path.exists() and not path.is_dir():
            raise ValueError(f"{option}: {path} is a file; name a folder")
        resolved = os.path.realpath(path)
        if resolved in seen:
            raise ValueError(f"{option}: {path} is {seen[resolved]}; name another folder")
        seen[resolved] = f"that of {option}"
        _try(option, path / file if path.is_dir() else Path(resolved))


def refuse_checkpoint(path: Path | None, resume: bool) -> None:
    """Check that a checkpoint is there exactly when it is resumed.

    Raises
    ------
    ValueError
        It is not.
    """
    if path is None:
        return
    if resume and not path.exists():
        raise ValueError(f"there is no checkpoint {path} to resume; leave out --resume to begin afresh")
    if not resume and path.exists():
        raise ValueError(f"the checkpoint {path} exists; go on from it with --resume, or delete it first")


def _try(option: str, path: Path) -> None:
    folder = path.parent
    try:
        check_writable(path)
    except FileNotFoundError as error:
        if folder.is_dir():  # it lets nobody make files, as /proc
            raise ValueError(f"{option}: the folder {folder} is not writable ({error.strerror})") from error
        raise ValueError(f"{option}: the folder {folder} does not exist") from error
    except OSError as error:
        if os.path.lexists(path) or not os.access(folder, os.F_OK) or error.filename == str(path):
            raise ValueError(f"{option}: {path} cannot be written ({error.strerror})") from error
        raise ValueError(f"{option}: the folder {folder} is not writable ({error.strerror})") from error
