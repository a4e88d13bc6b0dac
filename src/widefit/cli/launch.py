"""Commands that torchrun has started: processes that share the work, of which the first one speaks."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    # torch comes in where there are several processes.
    from widefit.processes import Processes

BAD_INPUT = 2

Result = TypeVar("Result")


def several_processes() -> bool:
    """Return True where torchrun has started more than one."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def launched() -> Iterator["Processes | None"]:
    """Join the processes that torchrun has started, until the block ends; None: this is the only one."""
    if not several_processes():
        yield None
        return
    import torch.distributed as dist

    from widefit.processes import Processes

    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo")
    try:
        yield Processes()
    finally:
        if ours:
            dist.destroy_process_group()


def checked_by_all(work: Callable[[], Result], processes: "Processes | None") -> Result:
    """Do work that refuses bad input, on all processes; the first one says what is wrong on any."""
    if processes is None:
        return work()
    try:
        return processes.attempt(work)
    except Exception:
        if processes.rank == 0:
            raise
        raise typer.Exit(BAD_INPUT) from None
