"""Settings of the process that several threads may need at once."""

import threading
from collections.abc import Callable


class SharedSetting:
    """A setting that holds from when the first asks for it until the last needs it no more.

    Were each to set it and to put back what it found, two that overlap would put back one another's: it would stay when
    it is needed no more, or not be there when it is relied on.

    Parameters
    ----------
    change
        Makes the setting, and returns what puts back the one before.
    """

    def __init__(self, change: Callable[[], Callable[[], object]]):
        self._change = change
        self._lock = threading.Lock()
        self._holders = 0
        self._put_back: Callable[[], object] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._put_back = self._change()
            self._holders += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._put_back is not None:
                self._put_back()
