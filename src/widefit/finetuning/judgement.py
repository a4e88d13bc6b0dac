"""Answers on held-out rows, and whether those at one point are better than those at another."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

# Standard errors beyond which a difference is no matter of chance: the quantile of 95 %.
_SURE = 1.645


@dataclass(frozen=True)
class Judgement:
    """Answers at a point, row by row of what is held out.

    Attributes
    ----------
    losses
        Of the outputs.
    marks
        What answers are compared by: see `Aim.marks`.
    """

    losses: Float[Tensor, " r"]
    marks: Float[Tensor, " r"]

    @property
    def loss(self) -> float:
        """Mean of the losses."""
        return float(self.losses.mean()) if len(self.losses) else 0.0

    def is_surely_better(self, other: "Judgement") -> bool:
        """Whether losses or marks are lower, row for row, by more than chance would have them."""
        return _standard_errors(other.losses - self.losses) > _SURE or (
            _standard_errors(other.marks - self.marks) > _SURE
        )

    def is_close(self, other: "Judgement") -> bool:
        """Whether marks are higher by no more than the standard error of that."""
        return len(self.marks) > 1 and _standard_errors(self.marks - other.marks) <= 1


def _standard_errors(differences: Float[Tensor, " r"]) -> float:
    """The mean of differences in units of its standard error."""
    if len(differences) < 2:
        return 0.0
    mean, error = float(differences.mean()), float(differences.std()) / math.sqrt(len(differences))
    return mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0
