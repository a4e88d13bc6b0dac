"""Seconds spent in each phase of the work."""

from collections.abc import Iterator
from contextlib import contextmanager

from widefit.kernels import clock


class Phases:
    """Clocks of the phases of a run; a phase inside another stops the outer clock.

    Attributes
    ----------
    seconds
        Seconds so far, by the name of the phase.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase."""
        begun = clock.now()
        inner = sum(self.seconds.values())
        try:
            yield
        finally:
            spent = clock.now() - begun - (sum(self.seconds.values()) - inner)
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
