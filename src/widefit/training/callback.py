"""The interface of callbacks: they see every step of a run and can end it."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from widefit.processes import Alone
from widefit.training.history import History, StepInfo

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Run(Protocol):
    """A run as its callbacks see it.

    Attributes
    ----------
    history
        The steps so far.
    processes
        Those that share the state of the run out, and ask for it at once; one process by itself otherwise.
    """

    history: History
    processes: Alone

    @property
    def max_iter(self) -> int | None:
        """Largest number of the last step; None: no limit, as for a stream."""
        ...

    @property
    def tol(self) -> float | None:
        """Loss at which the run ends; None: none."""
        ...

    def state(self) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
        """Everything needed to go on from here to the same bits: tensors, and a document of plain values."""
        ...


class Callback:
    """Does nothing; override what you need."""

    def start(self, run: Run) -> bool | None:
        """Before the first step; `run.history` holds step 0 or those of a resumed run; return True to end it here."""

    def step(self, run: Run, info: StepInfo) -> bool | None:
        """After every step; return True to end the training."""

    def finish(self, run: Run, history: History) -> None:
        """After the last step, also when it was interrupted."""
