"""The Poisson loss."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from widefit.losses.base import FLOOR, Array, LocalLeastSquares, OutputLoss, namespace

# Logarithms of rates beyond this are cut off: a step that goes there is taken back, and must not overflow.
_LARGEST = 100.0


@dataclass(frozen=True)
class Poisson(OutputLoss):
    """exp f − y f, less what it is at best: half the Poisson deviance of the rate exp f."""

    name: ClassVar[str] = "poisson"
    torch_name: ClassVar[str] = "poisson"
    title: ClassVar[str] = "mean half Poisson deviance"

    def values(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
        return (_rate(outputs) - targets * outputs + _at_best(targets)).sum(1)

    def gradients(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return _rate(outputs) - targets

    def local(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        root = _rate(outputs).clamp_min(FLOOR).sqrt()
        return LocalLeastSquares(self.gradients(outputs, targets) / root, root)

    def wrong(self, targets: Float[Array, "n k"]) -> tuple[Bool[Array, " n"], str]:
        return (targets < 0).any(1), "numbers ≥ 0"


def _rate(outputs: Float[Array, "n k"]) -> Float[Array, "n k"]:
    module = namespace(outputs)
    return module.exp(module.clip(outputs, -_LARGEST, _LARGEST))


def _at_best(targets: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Return y log y − y, 0 at 0."""
    module = namespace(targets)
    return targets * module.log(module.clip(targets, 1e-300, None)) - targets
