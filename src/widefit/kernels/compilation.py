"""Saying that kernels are being compiled, once an environment."""

import logging
from functools import cache
from pathlib import Path

from widefit.kernels import fire_rows as cpu

logger = logging.getLogger("widefit")


@cache
def announce_compilation() -> None:
    """Warn, at most once a process, that the first call in this environment compiles; the result is cached on disk."""
    folder = Path(cpu.fire_block.stats.cache_path or "")
    # One kernel of each tracker that "auto" may take, and one that every deep network needs.
    kernels = ("cpu.fire_block", "certificate_pass.pass_block", "sparse.take_above")
    if not any(any(folder.glob(f"{kernel}*.nbi")) for kernel in kernels):
        logger.warning("compiling kernels for this machine: some seconds, once")
