"""Callbacks: watch a run, and end it. A callback is one file here and one line below."""

from widefit.callbacks.early_stopping import EarlyStopping
from widefit.callbacks.log import Log, describe
from widefit.callbacks.progress import Progress
from widefit.training.callback import Callback, Run

__all__ = ["Callback", "EarlyStopping", "Log", "Progress", "Run", "describe"]
