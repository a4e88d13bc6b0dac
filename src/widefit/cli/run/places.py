"""Files that a command will write: refused before the work, not after it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path


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
        A folder that does not exist or is not writable, a folder in place of a file, the same file twice.
    """
    seen = {Path(source).resolve(): name for name, source in sources.items() if Path(source).is_file()}
    for option, path in places.items():
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{option}: {path} is a folder; name a file")
        resolved = path.resolve()
        if resolved in seen:
            raise ValueError(f"{option}: {path} is the same file as {seen[resolved]}")
        seen[resolved] = option
        folder = path.parent
        if not folder.is_dir():
            raise ValueError(f"{option}: the folder {folder} does not exist")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"{option}: the folder {folder} is not writable ({error.strerror})") from error
