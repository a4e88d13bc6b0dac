"""Losses of the outputs: values, gradients, local least squares. A loss is one file here and one line in `family`."""

from widefit.losses.base import LocalLeastSquares, OutputLoss
from widefit.losses.custom import Custom
from widefit.losses.envelopes import Envelope
from widefit.losses.family import output_loss
from widefit.losses.huber import Huber
from widefit.losses.logistic import Logistic
from widefit.losses.poisson import Poisson
from widefit.losses.quantile import Quantile
from widefit.losses.softmax import Softmax
from widefit.losses.squared import HalfSquare, Squared

__all__ = [
    "Custom",
    "Envelope",
    "HalfSquare",
    "Huber",
    "LocalLeastSquares",
    "Logistic",
    "OutputLoss",
    "Poisson",
    "Quantile",
    "Softmax",
    "Squared",
    "output_loss",
]
