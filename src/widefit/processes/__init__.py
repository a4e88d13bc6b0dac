"""Several processes that work on one problem, through torch.distributed."""

from widefit.processes.alone import ALONE, Alone
from widefit.processes.group import ProcessError, Processes, as_processes

__all__ = ["ALONE", "Alone", "ProcessError", "Processes", "as_processes"]
