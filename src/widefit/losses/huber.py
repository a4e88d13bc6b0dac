"""The Huber loss."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from widefit.losses.base import Array, LocalLeastSquares, OutputLoss, namespace


@dataclass(frozen=True)
class Huber(OutputLoss):
    """r² / 2 of a residual up to δ, δ (|r| − δ/2) beyond; its mean is `torch.nn.HuberLoss(delta=delta)`.

    Beyond δ the curvature is that of the majorizing parabola, δ / |r|.

    Parameters
    ----------
    delta
        δ > 0.

    Raises
    ------
    ValueError
        δ is not positive and finite.
    """

    delta: float = 1.0
    name: ClassVar[str] = "huber"
    torch_name: ClassVar[str] = "huber"
    title: ClassVar[str] = "mean Huber loss"
    curvature: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.delta < math.inf:
            raise ValueError(f"delta must be a positive, finite number, got {self.delta!r}")

    def values(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
        size = abs(outputs - targets)
        within = namespace(size).clip(size, None, self.delta)
        return (within * (size - 0.5 * within)).sum(1)

    def gradients(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return namespace(outputs).clip(outputs - targets, -self.delta, self.delta)

    def local(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        error = outputs - targets
        root = (self.delta / error.abs().clamp_min(self.delta)).sqrt()
        return LocalLeastSquares(error.clamp(-self.delta, self.delta) / root, root)

    @classmethod
    def of_module(cls, module: nn.Module) -> "Huber | None":
        return cls(float(module.delta)) if type(module) is nn.HuberLoss else None
