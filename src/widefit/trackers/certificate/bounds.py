"""Bounds on how far neurons can have moved since the last pass, bucket by bucket."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class OutputBounds:
    """Bounds of one output, rounded up to float32, and the highest of each bucket."""

    radius: Float[np.ndarray, " q"]
    level: Float[np.ndarray, "q n"]
    highest: Float[np.ndarray, " q"]


@dataclass(frozen=True)
class Bounds:
    """Distance that the neurons of a bucket can have moved z since the last pass, and the distance that they may.

    Attributes
    ----------
    level
        Sum of the bounds of the steps, for every output, bucket and sample.
    radius
        Pairs that were nearer to the threshold than this hold certificates; ascending for every output.
    """

    level: Float[np.ndarray, "k q n"]
    radius: Float[np.ndarray, "k q"]

    @classmethod
    def after_pass(cls, radius: Float[np.ndarray, "k q"], samples: int) -> "Bounds":
        """Return bounds of neurons that have not moved."""
        return cls(np.zeros((*radius.shape, samples)), radius)

    def raised(self, step: Float[np.ndarray, "k q n"]) -> "Bounds":
        """Return the bounds after a step."""
        return replace(self, level=self.level + step)

    def room(self) -> Float[np.ndarray, "k q"]:
        """Return the drift at which a pair without a certificate may have reached the threshold."""
        return self.radius - self.level.max(axis=2) * (1 + 1e-6)

    def of(self, output: int) -> OutputBounds:
        """Return the bounds of one output."""
        # What is too large for float32 is infinite: every pair holds a certificate, or every one has expired.
        with np.errstate(over="ignore"):
            level = (self.level[output] * (1 + 2e-7)).astype(np.float32)
            radius = self.radius[output].astype(np.float32)
        return OutputBounds(radius, level, level.max(axis=1))

    def by_output(self) -> list[OutputBounds]:
        """Return the bounds of every output."""
        return [self.of(output) for output in range(self.radius.shape[0])]
