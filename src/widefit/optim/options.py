"""Arguments of the optimizer, checked."""

import math
import warnings
from typing import Any, Literal

from torch import nn

# A rate that nobody wants of second-order steps: it was meant for another optimizer.
RATE_OF_ADAM = 0.01


def check_model(model: Any) -> None:
    """Refuse parameters where the model is wanted."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            "GaussNewton takes the model itself, for it has to see the derivative of every sample: write "
            f"GaussNewton(model), not GaussNewton(model.parameters()); got {type(model).__name__}"
        )


def check_options(
    lr: float,
    damping: float | Literal["auto"],
    momentum: float | Literal["auto"],
    max_norm: float | None,
    memory: int | Literal["auto"],
) -> None:
    """Refuse options out of range."""
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if lr <= RATE_OF_ADAM:
        warnings.warn(
            f"lr={lr:g} takes {lr:.1%} of every step: lr is the part of a full step here, 1 by default, not the rate "
            "of a gradient; leave it out",
            stacklevel=3,
        )
    if damping != "auto" and not (float(damping) >= 0 and math.isfinite(float(damping))):
        raise ValueError(f"damping must be 'auto' or a number >= 0, got {damping}")
    if momentum != "auto" and not 0 <= float(momentum) < 1:
        raise ValueError(f"momentum must be 'auto' or lie in [0, 1), got {momentum}")
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    if memory != "auto" and not int(memory) > 0:
        raise ValueError(f"memory must be 'auto' or a positive number of bytes, got {memory}")
