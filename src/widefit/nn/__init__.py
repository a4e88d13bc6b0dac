"""The networks, as nn.Modules."""

from widefit.nn.delta import Delta, restorable
from widefit.nn.shifted_relu import ShiftedReLU
from widefit.nn.two_layer import TwoLayer, automatic_threshold

__all__ = ["Delta", "ShiftedReLU", "TwoLayer", "automatic_threshold", "restorable"]
