"""Progress where there is no terminal to draw a bar in: a line now and then."""

import time

from rich.console import Console

from widefit.callbacks import Callback, Run, describe
from widefit.training.history import History, StepInfo

# A log of ten thousand steps is not to be ten thousand lines.
SECONDS_BETWEEN_LINES = 1.0


class Lines(Callback):
    """The first step, the last, and in between one a second.

    Parameters
    ----------
    console
        Where the lines go.
    """

    def __init__(self, console: Console):
        self._console = console
        self._printed_at = 0.0
        self._printed: StepInfo | None = None

    def start(self, run: Run) -> None:
        self._print(run.history[-1])

    def step(self, run: Run, info: StepInfo) -> bool | None:
        if time.monotonic() - self._printed_at >= SECONDS_BETWEEN_LINES or info.step == 1:
            self._print(info)

    def finish(self, run: Run, history: History) -> None:
        if history[-1] is not self._printed:
            self._print(history[-1])

    def _print(self, info: StepInfo) -> None:
        self._console.print(describe(info), soft_wrap=True, highlight=False, markup=False)
        self._printed, self._printed_at = info, time.monotonic()
