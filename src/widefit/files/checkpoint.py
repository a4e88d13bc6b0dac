"""The state of a training run on disk, every so often."""

import time
import warnings
from pathlib import Path
from typing import Any

import torch

from widefit.files.container import read_container, write_container
from widefit.training.callback import Callback, Run
from widefit.training.history import History, StepInfo


class Checkpoint(Callback):
    """Writes the state of the run to a file, from which training goes on to the same bits.

    Written after a step when `every_seconds` have passed since the last time, and always when training ends or is
    interrupted. A file that cannot be written (a full disk) is a warning: the training is worth more. Of several
    processes that share a training the first one writes, and the run may go on with another number of them.

    Parameters
    ----------
    path
        The file; each state replaces the one before in one move.
    every_seconds
        Time between two states, in seconds; 0 writes after every step.

    Raises
    ------
    ValueError
        A negative `every_seconds`.
    """

    def __init__(self, path: str | Path, every_seconds: float = 30.0):
        if not every_seconds >= 0:
            raise ValueError(f"every_seconds must be at least 0, got {every_seconds}")
        self.path = Path(path)
        self.every_seconds = every_seconds
        self._written_at = 0.0

    def start(self, run: Run) -> None:
        self._written_at = time.monotonic()

    def step(self, run: Run, info: StepInfo) -> bool | None:
        # Rejected steps are rejected on every process, but clocks differ.
        due = bool(info.accepted) and time.monotonic() - self._written_at >= self.every_seconds
        if run.processes.any(due):
            self._write(run)

    def finish(self, run: Run, history: History) -> None:
        self._write(run)

    def _write(self, run: Run) -> None:
        state = run.state()
        if run.processes.rank == 0:
            write_checkpoint(self.path, state)
        self._written_at = time.monotonic()


def write_checkpoint(path: str | Path, state: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> bool:
    """Write the state of a run; a file that cannot be written is a warning.

    Parameters
    ----------
    path
        The file, replaced in one move.
    state
        From `Run.state`.

    Returns
    -------
    True when it is written.
    """
    tensors, document = state
    try:
        write_container(path, tensors, document, "checkpoint")
    except OSError as error:
        message = f"the checkpoint {path} could not be written: {error.strerror or error}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        return False
    return True


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what `Checkpoint` wrote: the tensors and the document of the run's state.

    Raises
    ------
    FileError
        No such file, or one that is not a checkpoint, truncated, altered, or of a newer version.
    """
    return read_container(path, "checkpoint")
