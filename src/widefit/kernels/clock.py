"""The clock of runs: it stands still while kernels are compiled, which happens once on a machine and is no training."""

import time


class _Compilation:
    """Seconds that compilers have taken; one compilation may need others within it.

    Numba compiles under a lock of the process, so that what one thread compiles every other waits for.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._begun = 0.0

    def start(self) -> None:
        """Note that a compilation begins."""
        if self._depth == 0:
            self._begun = time.perf_counter()
        self._depth += 1

    def end(self) -> None:
        """Note that the innermost one has ended."""
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._begun

    def so_far(self) -> float:
        """Return the seconds until now, those of a compilation that is going on included."""
        return self.seconds + (time.perf_counter() - self._begun if self._depth else 0.0)


compilation = _Compilation()


def now() -> float:
    """Return seconds of wall-clock time without those in which kernels were compiled."""
    return time.perf_counter() - compilation.so_far()


def seconds_compiling() -> float:
    """Return the seconds that this process has spent on compiling kernels."""
    return compilation.so_far()
