"""Progress where there is no terminal to draw a bar in: a line now and then."""

import time

from rich.console import Console

from widefit.callbacks import Callback, Run, describe
from widefit.training.history import History, StepInfo

# Every step of a run in a handful of them; but a log of ten thousand is not to be ten thousand lines.
ALL = 20
SECONDS_BETWEEN_LINES = 1.0


class Lines(Callback):
    """The first twenty steps, the last, and in between one a second.

    Parameters
    ----------
    console
        Where the lines go.
    metric_name
        What the metric of the run is called.
    """

    def __init__(self, console: Console, metric_name: str = "metric"):
        self._console = console
        self._metric_name = metric_name
        self._lines = 0
        self._printed_at = 0.0
        self._printed: tuple[int, float] | None = None

    def start(self, run: Run) -> None:
        self._print(run.history[-1])

    def step(self, run: Run, info: StepInfo) -> bool | None:
        if self._lines <= ALL or time.monotonic() - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._print(info)

    def finish(self, run: Run, history: History) -> None:
        self._print(history[-1])

    def _print(self, info: StepInfo) -> None:
        # The first block of a stream is its start, and the last step of a run its end.
        if (info.step, info.loss) == self._printed:
            return
        self._console.print(describe(info, self._metric_name), soft_wrap=True, highlight=False, markup=False)
        self._lines += 1
        self._printed = (info.step, info.loss)
        self._printed_at = time.monotonic()
