"""What can watch a training run and end it."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from widefit.history import History, StepInfo

if TYPE_CHECKING:
    import torch
    from rich.console import Console

logger = logging.getLogger("widefit")


@runtime_checkable
class Run(Protocol):
    """What a callback sees of the training."""

    history: History
    max_iter: int
    tol: float

    def state(self) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
        """Everything needed to go on from here to the same bits: tensors, and a document of plain values."""
        ...


class Callback:
    """Does nothing; override what you need."""

    def start(self, run: Run) -> None:
        """Before the first step; `run.history` holds step 0."""

    def step(self, run: Run, info: StepInfo) -> bool | None:
        """After every step; return True to end the training."""

    def finish(self, run: Run, history: History) -> None:
        """After the last step, also when it was interrupted."""


class Log(Callback):
    """One line a step to the logger "widefit", level INFO."""

    def step(self, run: Run, info: StepInfo) -> bool | None:
        logger.info(describe(info))
        return None


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


def describe(info: StepInfo) -> str:
    """A step in one short line."""
    parts = [f"step {info.step}" if info.samples is None else f"{info.samples:,} rows", f"loss {info.loss:.3e}"]
    if info.samples and info.seconds > 0:
        parts.append(f"{info.samples / info.seconds:,.0f} rows/s")
    if info.metric is not None:
        parts.append(f"metric {info.metric:.4f}")
    if info.flips is not None and info.step:
        parts.append(f"{info.flips:,} flips")
    if not info.accepted:
        parts.append("rejected")
    return " · ".join(parts)


@contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Ctrl-C sets the flag, so that the step in progress ends whole; a second Ctrl-C interrupts as usual."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(number, frame):
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
