"""The logistic loss, also called binary cross-entropy."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from widefit.losses.base import FLOOR, Array, LocalLeastSquares, namespace
from widefit.losses.envelopes import REACH, SLOPE, STEPS, CrossEntropy


@dataclass(frozen=True)
class Logistic(CrossEntropy):
    """Σ_c log(1 + exp f_c) − p_c f_c, with p_c the probability that output c is on.

    For a rule a target is ±1 and the loss Σ_c log(1 + exp(−y_c f_c)). For the optimizer, with `negative=0`, a target is
    p_c itself and the mean that of `torch.nn.BCEWithLogitsLoss()`.

    Parameters
    ----------
    negative
        The target that says off: −1 or 0; 1 says on.
    """

    negative: float = -1.0
    name: ClassVar[str] = "logistic"
    torch_name: ClassVar[str] = "bce"
    title: ClassVar[str] = "mean logistic loss"
    curvature: ClassVar[float] = 0.25

    def values(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
        module = namespace(outputs)
        size = abs(outputs)
        positive = 0.5 * (outputs + size)
        return (positive - self._probability(targets) * outputs + module.log1p(module.exp(-size))).sum(1)

    def gradients(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, "n k"]:
        wanted = self._probability(targets)
        # Of σ(f) − p, without cancellation where both are all but 1.
        return (1 - wanted) * _sigmoid(outputs) - wanted * _sigmoid(-outputs)

    def local(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        root = (_sigmoid(outputs) * _sigmoid(-outputs)).clamp_min(FLOOR / 4).sqrt()
        return LocalLeastSquares(self.gradients(outputs, targets) / root, root)

    def wrong(self, targets: Float[Array, "n k"]) -> tuple[Bool[Array, " n"], str]:
        if self.negative:
            return (abs(targets) != 1).any(1), "±1"
        return ~((targets >= 0) & (targets <= 1)).all(1), "numbers between 0 and 1"

    def proximal(
        self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"], curvature: float
    ) -> Float[Tensor, "n k"]:
        near = outputs.clone()
        for _ in range(STEPS):
            slope = self.gradients(near, targets) + curvature * (near - outputs)
            if not bool(slope.abs().max() > SLOPE):
                break
            step = slope / (_sigmoid(near) * _sigmoid(-near) + curvature)
            near = near - step.clamp(-REACH, REACH)
        return near

    @classmethod
    def of_module(cls, module: nn.Module) -> "Logistic | None":
        # With weights for outputs or for what is on the loss is another, and `Custom` takes it.
        if type(module) is not nn.BCEWithLogitsLoss or module.weight is not None or module.pos_weight is not None:
            return None
        return cls(negative=0.0)

    def _probability(self, targets: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return (targets - self.negative) / (1 - self.negative) if self.negative else targets


def _sigmoid(outputs: Float[Array, "n k"]) -> Float[Array, "n k"]:
    return torch.sigmoid(outputs) if isinstance(outputs, Tensor) else np.exp(-np.logaddexp(0, -outputs))
