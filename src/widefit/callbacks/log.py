"""One line a step, for people who read logs."""

import logging

from widefit.training.callback import Callback, Run
from widefit.training.history import StepInfo

logger = logging.getLogger("widefit")


class Log(Callback):
    """One line a step to the logger "widefit", level INFO."""

    def step(self, run: Run, info: StepInfo) -> bool | None:
        logger.info(describe(info))
        return None


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
