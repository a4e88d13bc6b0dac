"""A progress bar in the terminal."""

from typing import TYPE_CHECKING, Any

from widefit.callbacks.log import describe
from widefit.training.callback import Callback, Run
from widefit.training.history import History, StepInfo

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Callback):
    """A progress bar with loss, metric, flips and time left.

    Parameters
    ----------
    console
        Where to draw; None: standard error.
    metric_name
        What the metric of the run is called.
    """

    def __init__(self, console: "Console | None" = None, metric_name: str = "metric"):
        self._console = console
        self._metric_name = metric_name
        self._bar: Any = None

    def start(self, run: Run) -> None:
        """Draw the bar, as far as the run has come."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console or Console(stderr=True),
        )
        self._bar.start()
        last = run.history[-1]
        text = describe(last, self._metric_name)
        # A stream does not say how long it is.
        self._bar.add_task("training", total=run.max_iter or None, completed=last.step, text=text)

    def step(self, run: Run, info: StepInfo) -> bool | None:
        """Move the bar."""
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=info.step, text=describe(info, self._metric_name))
        return None

    def finish(self, run: Run, history: History) -> None:
        """Leave the bar as it is."""
        self._bar.stop()
