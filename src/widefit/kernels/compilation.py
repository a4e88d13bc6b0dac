"""Announcement that kernels are being compiled, once in an environment."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

from numba.core import event

from widefit.kernels import clock, fire_rows
from widefit.kernels.certificate import passes
from widefit.kernels.sparse import rows as sparse

logger = logging.getLogger("widefit")


class _ToClock(event.Listener):
    """Tells the clock of runs when Numba compiles."""

    def on_start(self, event: Any) -> None:
        clock.compilation.start()

    def on_end(self, event: Any) -> None:
        clock.compilation.end()


event.register("numba:compile", _ToClock())


@cache
def announce_compilation() -> None:
    """Warn, at most once a process, that the first call in this environment compiles; the result is cached on disk."""
    # One kernel of each tracker that "auto" may take, and one that every deep network needs.
    if not any(_is_cached(kernel) for kernel in (fire_rows.fire_block, passes.pass_block, sparse.take_above)):
        logger.warning("compiling kernels for this machine, once: at most half a minute, not counted as training")


def _is_cached(kernel: Any) -> bool:
    """Return True where the disk holds a compiled version of a kernel."""
    folder = Path(kernel.stats.cache_path or "")
    name = f"{kernel.py_func.__module__.rpartition('.')[2]}.{kernel.py_func.__name__}"
    return any(folder.glob(f"{name}-*.nbi"))
