"""Ending a run that no longer gets better."""

import math

from widefit.training.callback import Callback, Run
from widefit.training.history import StepInfo


class EarlyStopping(Callback):
    """Ends the training when the metric or the loss has not improved for some steps.

    Rejected steps count: they bring nothing. The network is left as the last step left it.

    Parameters
    ----------
    patience
        Steps without improvement after which training ends, at least 1.
    min_delta
        The least amount that counts as an improvement, in the units of the metric or loss.
    monitor
        "metric": the validation metric of the run. "loss": the training loss.
    higher_is_better
        Direction of the metric, such as True for an accuracy and False for an error. A loss is better when it is lower.

    Raises
    ------
    ValueError
        Another `monitor`, a patience below 1, a negative `min_delta`; in a run, a metric that is not recorded.
    """

    def __init__(
        self,
        patience: int = 5,
        min_delta: float = 0.0,
        monitor: str = "metric",
        higher_is_better: bool = True,
    ):
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta must be a finite number ≥ 0, got {min_delta}")
        if monitor not in ("metric", "loss"):
            raise ValueError(f'monitor must be "metric" or "loss", got {monitor!r}')
        self.patience = patience
        self.min_delta = min_delta
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self._best = -math.inf
        self._waited = 0

    def start(self, run: Run) -> None:
        """Begin anew from what the run has come to so far."""
        self._best = -math.inf
        self._waited = 0
        for info in run.history:
            self._waits(info)

    def step(self, run: Run, info: StepInfo) -> bool | None:
        """Return True when the patience is over."""
        self._waits(info)
        return self._waited >= self.patience

    def _waits(self, info: StepInfo) -> None:
        """Count a step that brought no improvement."""
        score = self._score(info)
        if score > self._best + self.min_delta or math.isinf(self._best):
            self._best = score
            self._waited = 0
        else:
            self._waited += 1

    def _score(self, info: StepInfo) -> float:
        """The watched number, turned so that higher is better; NaN is worst."""
        if self.monitor == "loss":
            score = -info.loss
        elif info.metric is None:
            raise ValueError(
                "EarlyStopping watches the metric of the run, and there is none: give metric or validation, or "
                'monitor="loss"'
            )
        else:
            score = info.metric if self.higher_is_better else -info.metric
        return -math.inf if math.isnan(score) else score
