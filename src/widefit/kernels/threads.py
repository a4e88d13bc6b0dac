"""Threads for kernels that release the GIL, with results that do not depend on how many there are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import threadpoolctl

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


@cache
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@contextmanager
def serial_blas() -> Iterator[None]:
    """Confine NumPy's matrix products to the calling thread: the blocks that they work on run in parallel."""
    with _controller().limit(limits=1, user_api="blas"):
        yield
