"""The state of the optimizer that one step hands to the next."""

import math
from dataclasses import dataclass


@dataclass
class StepState:
    """Everything but tensors that a later step depends on; all of it is in the state dict.

    Attributes
    ----------
    level
        Relative λ to begin with.
    step, seconds
        Taken so far.
    changing
        Whether steps see different data.
    tolerance
        Accuracy to which an iteration solves the next equations.
    products
        Products with H that an iteration takes a step, half of it from the latest one.
    pace, trend
        Part of a step that is taken, and trend of the losses before it, where every step sees few, other data.
    reached
        Loss after the latest step, on its data.
    surprise
        Loss before the latest step over that which the step before it had reached, on other data. Infinity: not known.
    exact
        Whether J is to be as exact as the parameters are although steps see different data.
    squared
        Whether λ is so large that JᵀJ, summed in float64, tells it from rounding.
    promise
        Decrease of the loss by the linear model of the latest step, as a part of the loss: 0 where nothing beyond
        rounding was left to gain. None: no step has been taken.
    """

    level: float
    step: int = 0
    seconds: float = 0.0
    changing: bool = False
    tolerance: float = 1e-3
    products: float = 50.0
    pace: float = 1.0
    trend: float = math.inf
    reached: float = 0.0
    surprise: float = math.inf
    exact: bool = False
    squared: bool = True
    promise: float | None = None
