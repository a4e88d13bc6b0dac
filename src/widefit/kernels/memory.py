"""Available memory, and the return of freed memory to the system."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

# Items of work after which freed memory is returned: far more than small problems have.
_ITEMS = 256


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping, within the limit of the control group if any."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 0)


def trimming_freed_memory(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the same items, and now and then return memory that was freed meanwhile to the system.

    The allocator of glibc keeps what a thread has freed for that thread, so that threads which free what others have
    allocated come to hold half as much again as is in use.
    """
    for number, item in enumerate(items, 1):
        yield item
        if number % _ITEMS == 0:
            _trim()(0)


@cache
def _trim() -> Callable[[int], int]:
    """Return glibc's malloc_trim, or a function without effect where there is none."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    return found or (lambda kept: 0)
