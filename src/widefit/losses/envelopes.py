"""Cross-entropies smoothed so that their curvature is the same for every sample: what a first step far away needs."""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.losses.base import LocalLeastSquares, OutputLoss

# Newton steps of the proximal point, and the slope at which it is found.
STEPS = 50
SLOPE = 1e-9
# Longest such step, in units of the logits.
REACH = 3.0


class CrossEntropy(OutputLoss):
    """A loss of logits, whose curvature vanishes where they are large."""

    @abstractmethod
    def proximal(
        self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"], curvature: float
    ) -> Float[Tensor, "n k"]:
        """Return arg min over t of ℓ(t) + (c / 2) ‖t − f‖² for outputs f in float64 and c = `curvature`."""

    def smoothed(self) -> OutputLoss:
        return Envelope(self)


@dataclass(frozen=True)
class Envelope(OutputLoss):
    """The Moreau envelope M(f) = min over t of ℓ(t) + (c / 2) ‖t − f‖², averaged over samples as ℓ is.

    A trained network that is asked for something else is sure of itself and wrong: the curvature of the cross-entropy
    is all but zero there, and a Gauss-Newton step by it is all but unbounded. The envelope has the same minimizers, its
    slope is c (f − t), and its curvature is at most c everywhere, so the step aims at the proximal point t: a finite
    change of the logits for samples that are wrong, next to none for samples that are right. All samples and outputs
    weigh the same, so that H does not mix them. (Moreau 1965; its use in the step is this project's.)

    Parameters
    ----------
    loss
        ℓ.
    curvature
        c: a wrong sample is moved until its probability errs by c times the shift of its logits.
    """

    loss: CrossEntropy
    curvature: float = 1e-3  # pyright: ignore[reportIncompatibleVariableOverride]
    _last: list = field(default_factory=list, init=False, repr=False, compare=False)

    def values(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        near = self._near(outputs, targets)
        return (self.loss.values(near, targets.to(near)) + 0.5 * self.curvature * (near - outputs).square().sum(1)).to(
            outputs.dtype
        )

    def gradients(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return (self.curvature * (outputs - self._near(outputs, targets))).to(outputs.dtype)

    def local(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        root = outputs.new_tensor(self.curvature**0.5)
        return LocalLeastSquares(root * (outputs - self._near(outputs, targets)).to(outputs.dtype), root)

    def prepared(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, "n k"]:
        return self.loss.prepared(outputs, targets)

    def mean_weight(self, outputs: Float[Tensor, "n k"]) -> float:
        return self.loss.mean_weight(outputs)

    def _near(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """t in float64. The last one is kept: a step asks for the value and the slope at the same outputs."""
        if self._last and self._last[0] is outputs and torch.equal(self._last[1], targets):
            return self._last[2]
        self._last[:] = outputs, targets, self.loss.proximal(outputs.double(), targets.double(), self.curvature)
        return self._last[2]
