"""Ending a training whose further steps would change predictions by less than they are wrong."""

from widefit.training.callback import Callback, Run
from widefit.training.history import StepInfo

# Part of the squared leave-one-out error that is too little to matter: errors grow by a fortieth at most.
_NEGLIGIBLE = 0.05


class Settled(Callback):
    """Ends the training when the loss, or its change in a step, is a small part of the leave-one-out error.

    Without a ridge the loss goes to its floor, and with one to somewhere above: what is left of the way in the units of
    predictions is then far below what they err by.

    Parameters
    ----------
    error
        Mean squared leave-one-out residual, summed over outputs.
    floor
        The loss that no function of the rows can remove.

    Attributes
    ----------
    reached
        Whether that is so.
    """

    def __init__(self, error: float, floor: float):
        self.reached = False
        self._limit = _NEGLIGIBLE * error
        self._floor = floor

    def step(self, run: Run, info: StepInfo) -> bool | None:
        """Return True when it is so."""
        if info.accepted is False:
            return False
        change = abs(run.history[-2].loss - info.loss) if len(run.history) > 1 else float("inf")
        self.reached = min(info.loss - self._floor, change) <= self._limit
        return self.reached
