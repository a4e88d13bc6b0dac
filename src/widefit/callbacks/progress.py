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
    """

    def __init__(self, console: "Console | None" = None):
        self._console = console
        self._bar: Any = None

    def start(self, run: Run) -> None:
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
        self._bar.add_task("training", total=run.max_iter, text=describe(run.history[-1]))

    def step(self, run: Run, info: StepInfo) -> bool | None:
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=info.step, text=describe(info))
        return None

    def finish(self, run: Run, history: History) -> None:
        self._bar.stop()
