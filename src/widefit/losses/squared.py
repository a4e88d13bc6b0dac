"""The squared loss, and that of residuals without targets."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from widefit.losses.base import Array, LocalLeastSquares, OutputLoss


@dataclass(frozen=True)
class Squared(OutputLoss):
    """½ ‖f − y‖²; its mean is `torch.nn.MSELoss()`."""

    name: ClassVar[str] = "squared"
    torch_name: ClassVar[str] = "mse"
    title: ClassVar[str] = "mean squared residual"
    curvature: ClassVar[float] = 1.0
    scale: ClassVar[float] = 2.0

    def values(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
        return 0.5 * ((outputs - targets) ** 2).sum(1)

    def gradients(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return outputs - targets

    def local(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        return LocalLeastSquares(outputs - targets, outputs.new_ones(()))

    @classmethod
    def of_module(cls, module: nn.Module) -> "Squared | None":
        return cls() if type(module) is nn.MSELoss else None


@dataclass(frozen=True)
class HalfSquare(Squared):
    """weight · ½ mean(residual²): what a block of residuals contributes; there are no targets."""

    weight: float = 1.0

    def prepared(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, "n k"]:
        return outputs.new_zeros(()).expand_as(outputs)

    def mean_weight(self, outputs: Float[Tensor, "n k"]) -> float:
        return self.weight / max(outputs.numel(), 1)
