"""The quantile loss, of which the absolute loss is one."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from widefit.losses.base import Array, LocalLeastSquares, OutputLoss, namespace


@dataclass(frozen=True)
class Quantile(OutputLoss):
    """½ |r| + (q − ½) r for r = y − f, the |r| smoothed to (r² + δ²) / 2δ up to δ (Koenker and Bassett 1978).

    Its minimizer is the quantile q of y, up to δ; ½ is the median, and the loss half the absolute one. The curvature is
    that of the majorizing parabola, 1 / 2 max(|r|, δ) (Hunter and Lange 2000).

    Parameters
    ----------
    level
        q, 0 < q < 1.
    smoothing
        δ > 0.

    Raises
    ------
    ValueError
        A level or a smoothing that is out of range.
    """

    level: float = 0.5
    smoothing: float = 0.01
    name: ClassVar[str] = "quantile"
    torch_name: ClassVar[str] = "quantile"
    title: ClassVar[str] = "mean quantile loss"

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level must be a number between 0 and 1, got {self.level!r}")
        if not 0 < self.smoothing < math.inf:
            raise ValueError(f"smoothing must be a positive, finite number, got {self.smoothing!r}")

    @property
    def curvature(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.5 / self.smoothing

    def values(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
        error = targets - outputs
        far = namespace(error).clip(abs(error), self.smoothing, None)
        # Beyond δ this is ½ |r|; within, the parabola that meets it there with the same slope.
        size = 0.5 * far + (error**2 - far**2) / (4 * self.smoothing) * (far == self.smoothing)
        return (size + (self.level - 0.5) * error).sum(1)

    def gradients(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, "n k"]:
        slope = namespace(outputs).clip((outputs - targets) / self.smoothing, -1.0, 1.0)
        return 0.5 * slope + (0.5 - self.level)

    def local(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        root = (0.5 / (outputs - targets).abs().clamp_min(self.smoothing)).sqrt()
        return LocalLeastSquares(self.gradients(outputs, targets) / root, root)
