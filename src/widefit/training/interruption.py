"""Ctrl-C, and requests to end: a step ends whole, or is given up where that leaves everything as it was."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

# Of Ctrl-C, of kill and batch systems, and of a terminal that closes; the last is not everywhere.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Of the runs in progress, in all threads.
_flags: list[threading.Event] = []
# Of the run whose step is in progress here, where the step may be given up.
_current: ContextVar[threading.Event | None] = ContextVar("widefit_interrupted", default=None)


class AbandonedError(Exception):
    """A step has been given up before it changed anything: the run was asked to end."""


@contextmanager
def abandonable(flag: threading.Event) -> Iterator[None]:
    """Inside, `abandon_if_asked` looks at the flag of this run."""
    token = _current.set(flag)
    try:
        yield
    finally:
        _current.reset(token)


def abandon_if_asked() -> None:
    """Raise `AbandonedError` where the run in progress was asked to end; for long work that changes nothing yet."""
    flag = _current.get()
    if flag is not None and flag.is_set():
        raise AbandonedError


@contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Hand out a flag that is set by Ctrl-C, SIGTERM and SIGHUP; a second one interrupts as Ctrl-C usually does.

    Signals that the process ignores (a run in the background, nohup) stay ignored, and handlers for SIGTERM and SIGHUP
    that somebody has set stay in force. Python delivers signals to the main thread: a run in another thread has its
    flag set as long as one in the main thread is in progress. Handlers are what they were when the block is left.
    """
    flag = threading.Event()
    _flags.append(flag)
    try:
        if threading.current_thread() is threading.main_thread():
            with _handled():
                yield flag
        else:
            yield flag
    finally:
        _flags.remove(flag)


@contextmanager
def _handled() -> Iterator[None]:
    """Signals set the flags of all runs."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        for flag in tuple(_flags):
            flag.set()

    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number in _SIGNALS if _is_ours_to_take(number, previous[number])]
    for number in taken:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, previous[number])


def _is_ours_to_take(number: int, handler: object) -> bool:
    """Ctrl-C unless it is ignored or handled outside of Python; the others where they would end the process."""
    if number == signal.SIGINT:
        return handler is not None and handler != signal.SIG_IGN
    return handler == signal.SIG_DFL or getattr(handler, "__module__", None) == __name__
