"""Before widefit is imported: shapes and types are checked at run time, threads and the compilation cache are fixed."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest
import typecheck
from filelock import FileLock

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".numba_cache")))
CACHE.mkdir(parents=True, exist_ok=True)
# The cores are for the processes of pytest-xdist. Tests of threads ask for their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")

from numba.core.caching import IndexDataCacheFile  # noqa: E402  (numba reads the environment when it is imported)


def one_process_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    """Numba writes index and data one after the other: of two processes one could read the other's kernel."""

    @wraps(method)
    def locked(*args: Any) -> Any:
        with FileLock(CACHE / "lock"):
            return method(*args)

    return locked


for name in ("save", "load"):
    setattr(IndexDataCacheFile, name, one_process_at_a_time(getattr(IndexDataCacheFile, name)))

# The hook wraps every function it meets. Numba and Triton need theirs bare; the estimators have to meet bad input
# themselves, and return Self, which only a class decorator can check.
BARE = {"kernels", "estimators"}
PARTS = {path.stem for path in (ROOT / "src" / "widefit").iterdir() if not path.name.startswith(("_", "."))}
jaxtyping.jaxtyped = typecheck.jaxtyped  # which the hook looks up there
jaxtyping.install_import_hook(sorted(f"widefit.{part}" for part in PARTS - BARE), "typecheck.checked")

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them press.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, kept: list[str]):
        super().__init__()
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Messages that widefit logs in a test."""
    logger, level = logging.getLogger("widefit"), logging.getLogger("widefit").level
    handler = Messages([])
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.kept
    logger.setLevel(level)
    logger.removeHandler(handler)


hypothesis.settings.register_profile("widefit", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("widefit")
