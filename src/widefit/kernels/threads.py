"""Threads for kernels that release the GIL, with results that do not depend on how many there are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import threadpoolctl

from widefit.kernels.shared_setting import SharedSetting

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Map in `threads` threads: results come in order, a bounded number ahead of the reader."""
    if threads <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="widefit") as executor:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(executor.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def for_ranges(work: Callable[[int, int], object], size: int, step: int, threads: int) -> None:
    """Call `work(first, last)` for consecutive ranges of `step` numbers below `size`, in `threads` threads."""
    edges = ((first, min(first + step, size)) for first in range(0, size, step))
    for _ in ordered_map(lambda edge: work(*edge), edges, threads):
        pass


@contextmanager
def team(threads: int) -> Iterator[Callable[[Callable[[Item], None], list[Item]], None]]:
    """Give a `for_each(function, items)` that runs every item in a thread of its own, the first in the caller's.

    The threads live as long as the context: for work of a millisecond that is handed out thousands of times.
    """
    with ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="widefit") as executor:

        def for_each(function: Callable[[Item], None], items: list[Item]) -> None:
            others = [executor.submit(function, item) for item in items[1:]]
            for item in items[:1]:
                function(item)
            for other in others:
                other.result()

        yield for_each


def _limit_blas() -> Callable[[], None]:
    """Limit BLAS to the calling thread; return what puts back the limit before."""
    with _in_control():
        limit = _controller().limit(limits=1, user_api="blas")

    def put_back() -> None:
        with _in_control():
            limit.restore_original_limits()

    return put_back


_one_thread = SharedSetting(_limit_blas)


@cache
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@contextmanager
def _in_control() -> Iterator[None]:
    """Put this thread in control of limits: threadpoolctl 3.8 ignores all but the first thread that sets OpenBLAS's."""
    let_go = getattr(getattr(threadpoolctl, "OpenBLASController", None), "clear_controlling_thread", None)
    if let_go is None:
        yield
        return
    let_go(force=True)
    try:
        yield
    finally:
        let_go(force=True)


@contextmanager
def serial_blas() -> Iterator[None]:
    """NumPy's matrix products use the calling thread alone: the blocks they work on are what runs in parallel.

    The limit holds in the whole process; it ends when the last block that overlaps has ended.
    """
    with _one_thread:
        yield
