"""Ending a training whose further steps would change predictions by less than they are wrong."""

import math

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
    ridge
        Where steps are dear: what the linear model of a step under no more damping than this ridge has missed is taken
        for what further steps could gain. None: they are taken.

    Attributes
    ----------
    reached
        Whether that is so.
    """

    def __init__(self, error: float, floor: float, ridge: float | None = None):
        self.reached = False
        self._limit = _NEGLIGIBLE * error
        self._floor = floor
        self._ridge = ridge

    def start(self, run: Run) -> bool:
        """Return True where a resumed run had settled already."""
        return self._look(run)

    def step(self, run: Run, info: StepInfo) -> bool:
        """Return True when it is so."""
        return self._look(run)

    def _look(self, run: Run) -> bool:
        last = run.history[-1]
        if len(run.history) < 2 or last.accepted is False:
            return False
        change = abs(run.history[-2].loss - last.loss)
        self.reached = min(last.loss - self._floor, change, self._missed(last, change)) <= self._limit
        return self.reached

    def _missed(self, last: StepInfo, change: float) -> float:
        """The part of a decrease that the linear model of the step was wrong by."""
        if self._ridge is None or last.gain_ratio is None or last.damping > self._ridge * (1 + 1e-9):
            return math.inf
        return abs(1 - last.gain_ratio) * change
