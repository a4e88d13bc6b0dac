"""Available memory, and the return of freed memory to the system."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

try:
    import resource
except ImportError:  # where processes have no limits of their own
    resource = None

Item = TypeVar("Item")

# Items of work after which freed memory is returned: far more than small problems have.
_ITEMS = 256
# Above this a limit of a control group is none: version 1 has no other word for it.
_UNLIMITED = 1 << 60
# Of a control group of version 2 and of version 1: its limit, and what it uses.
_FILES = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}


def available_memory() -> int:
    """Bytes that can be allocated without swapping, within the limits of the process and of its control groups."""
    free = [_free_in_the_machine(), *_free_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    own = _free_in_the_process()
    return max(0, min(free if own is None else [*free, own]))


def _free_in_the_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _free_in_the_process() -> int | None:
    """Bytes left below `ulimit -v`; None without a limit."""
    if resource is None:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not statm.exists():
        return None
    return limit - int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _free_in_groups(membership: Path, mounted: Path) -> list[int]:
    """Bytes left in each control group of the process, and in all groups around those.

    Parameters
    ----------
    membership
        Lines "number:controllers:path", as in /proc/self/cgroup.
    mounted
        Where the groups are: version 2, or the controllers of version 1 in folders of their names. In a container the
        path may lead from the root of the machine, and its own group is the one mounted.
    """
    if not membership.exists():
        return []
    free = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        controller = "memory" if "memory" in controllers.split(",") else controllers
        if controller not in _FILES:
            continue
        root = mounted / controller
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                free += _free_in(folder, *_FILES[controller])
    return free


def _free_in(folder: Path, limit_name: str, used_name: str) -> list[int]:
    try:
        limit, used = ((folder / name).read_text().strip() for name in (limit_name, used_name))
    except OSError:  # the root has no limits, and what is outside of a container is not to be seen
        return []
    return [] if limit == "max" or int(limit) >= _UNLIMITED else [int(limit) - int(used)]


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
