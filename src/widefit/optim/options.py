"""What an optimizer may be asked for."""

import math
from typing import Literal


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
    if damping != "auto" and not (float(damping) >= 0 and math.isfinite(float(damping))):
        raise ValueError(f"damping must be 'auto' or a number >= 0, got {damping}")
    if momentum != "auto" and not 0 <= float(momentum) < 1:
        raise ValueError(f"momentum must be 'auto' or lie in [0, 1), got {momentum}")
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    if memory != "auto" and not int(memory) > 0:
        raise ValueError(f"memory must be 'auto' or a positive number of bytes, got {memory}")
