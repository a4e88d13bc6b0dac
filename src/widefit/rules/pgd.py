"""Projected gradient descent on the inputs: the adversary of adversarial training."""

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class PGD:
    """Ascends the loss in x inside a ball around every sample (Madry et al. 2018, arXiv 1706.06083, section 2.1).

    x ← Π(x + step_size · direction), from the sample itself: sign ∇ with norm="linf", ∇ / ‖∇‖ with norm="l2", Π the
    projection onto the ball. Points are not projected back to the unit sphere. A network is defined off it, and the
    ball with its part off the sphere leaves more room to the adversary, not less.

    Parameters
    ----------
    radius
        ρ ≥ 0 of the ball, in the units of the inputs as the network gets them.
    steps
        How many, ≥ 1. Each costs an evaluation of the batch and a gradient in its inputs.
    step_size
        Length of a step in the norm of the ball, > 0; "auto": 2.5 ρ / steps, enough to reach the boundary from
        anywhere and to come back.
    norm
        "linf" or "l2".

    Raises
    ------
    ValueError
        An argument out of its range.
    """

    radius: float
    steps: int = 10
    step_size: float | str = "auto"
    norm: str = "linf"

    def __post_init__(self) -> None:
        if isinstance(self.radius, bool) or not 0 <= self.radius < math.inf:
            raise ValueError(f"radius must be a finite number ≥ 0, got {self.radius!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, Integral) or self.steps < 1:
            raise ValueError(f"steps must be an integer ≥ 1, got {self.steps!r}")
        if self.step_size != "auto" and (isinstance(self.step_size, str | bool) or not 0 < self.step_size < math.inf):
            raise ValueError(f'step_size must be a positive number or "auto", got {self.step_size!r}')
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm must be 'linf' or 'l2', got {self.norm!r}")

    def move(
        self, origin: Float[np.ndarray, "b d"], x: Float[np.ndarray, "b d"], gradient: Float[np.ndarray, "b d"]
    ) -> Float[np.ndarray, "b d"]:
        """One step up the loss, in the dtype of x; where the gradient is 0 a point stays."""
        length = 2.5 * self.radius / self.steps if isinstance(self.step_size, str) else self.step_size
        if self.norm == "linf":
            offset = x.astype(np.float64) + length * np.sign(gradient) - origin
            return (origin + offset.clip(-self.radius, self.radius)).astype(x.dtype)
        offset = x.astype(np.float64) + length * _unit(gradient.astype(np.float64)) - origin
        norms = np.linalg.norm(offset, axis=1, keepdims=True)
        inside = np.minimum(1, self.radius / np.where(norms > 0, norms, 1))
        return (origin + inside * offset).astype(x.dtype)


def _unit(rows: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
    """Rows of length 1; a row of zeros stays. The largest entry goes first, against underflow and overflow."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    rows = rows / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
