"""One line a step, for people who read logs."""

import logging

from widefit.training.callback import Callback, Run
from widefit.training.history import StepInfo

logger = logging.getLogger("widefit")


class Log(Callback):
    """One line a step to the logger "widefit", level INFO.

    Parameters
    ----------
    metric_name
        What the metric of the run is called.
    """

    def __init__(self, metric_name: str = "metric"):
        self._metric_name = metric_name

    def step(self, run: Run, info: StepInfo) -> bool | None:
        """Log the step."""
        logger.info(describe(info, self._metric_name))
        return None


def describe(info: StepInfo, metric_name: str = "metric") -> str:
    """Return a step in one short line.

    Parameters
    ----------
    info
        The step.
    metric_name
        What its metric is called.
    """
    parts = [f"step {info.step}" if info.samples is None else f"{info.samples:,} rows", f"loss {info.loss:.3e}"]
    if info.samples and info.seconds > 0:
        parts.append(f"{info.samples / info.seconds:,.0f} rows/s")
    if info.metric is not None:
        parts.append(f"{metric_name} {info.metric:.4f}")
    if info.flips is not None and info.step:
        parts.append(f"{info.flips:,} flips")
    if not info.accepted:
        parts.append("rejected")
    return " · ".join(parts)
