"""The callbacks of a command: progress as a bar or, where there is no terminal to draw it in, as lines; checkpoints."""

import time
from pathlib import Path

from rich.console import Console

from widefit.callbacks import Callback, Progress, Run, describe
from widefit.cli.output import Output
from widefit.files import Checkpoint
from widefit.training.history import History, StepInfo

# Every step of a run in a handful of them; but a log of ten thousand is not to be ten thousand lines.
ALL = 20
SECONDS_BETWEEN_LINES = 1.0


def callbacks_of(
    output: Output, checkpoint: Path | None, checkpoint_every: float, metric_name: str = "metric"
) -> list[Callback]:
    """Return the progress that `output` asks for, and a checkpoint where there is a file for it."""
    found: list[Callback] = []
    if not output.quiet:
        found.append((Progress if output.stderr.is_terminal else Lines)(output.stderr, metric_name))
    if checkpoint is not None:
        found.append(Checkpoint(checkpoint, checkpoint_every))
    return found


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
