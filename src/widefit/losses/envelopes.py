"""Cross-entropies smoothed so that their curvature is the same for every sample: what a first step far away needs."""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from widefit.losses.base import BinaryCrossEntropy, CrossEntropy, LocalLeastSquares, OutputLoss

# Newton steps of the proximal point, and the slope at which it is found.
_STEPS = 50
_SLOPE = 1e-9
# Longest such step, in units of the logits.
_REACH = 3.0


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
    curvature
        c: a wrong sample is moved until its probability errs by c times the shift of its logits.
    """

    curvature: float = 1e-3
    _last: list = field(default_factory=list, init=False, repr=False, compare=False)

    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        near = self._near(outputs, targets)
        distance = (near - outputs).square().sum() / self._count(outputs)
        return (self._loss(near, targets) + 0.5 * self.curvature * distance).to(outputs.dtype)

    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        near = self._near(outputs, targets)
        root = outputs.new_tensor((self.curvature / self._count(outputs)) ** 0.5)
        return LocalLeastSquares(root * (outputs - near).to(outputs.dtype), root)

    def _near(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, "n k"]:
        """t in float64. The last one is kept: a step asks for the value and the slope at the same outputs."""
        if not self._last or self._last[0] is not outputs or self._last[1] is not targets:
            self._last[:] = outputs, targets, self._proximal(outputs.double(), targets)
        return self._last[2]

    @abstractmethod
    def _loss(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        """ℓ."""

    @abstractmethod
    def _proximal(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, "n k"]:
        """t for given f."""

    @abstractmethod
    def _count(self, outputs: Float[Tensor, "n k"]) -> int:
        """Over how many terms ℓ averages."""


class CrossEntropyEnvelope(Envelope):
    """Of `torch.nn.CrossEntropyLoss()`."""

    def _loss(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        return CrossEntropy().value(outputs, targets)

    def _count(self, outputs: Float[Tensor, "n k"]) -> int:
        return len(outputs)

    def _proximal(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, "n k"]:
        classes = CrossEntropy.checked(outputs, targets)
        wanted = classes if classes.is_floating_point() else functional.one_hot(classes, outputs.shape[1]).to(outputs)
        near = outputs.clone()
        for _ in range(_STEPS):
            probability = torch.softmax(near, dim=1)
            slope = probability - wanted + self.curvature * (near - outputs)
            if not bool(slope.abs().max() > _SLOPE):
                break
            # (diag(p + c) − p pᵀ)⁻¹ slope by Sherman and Morrison.
            diagonal = probability + self.curvature
            straight, across = slope / diagonal, probability / diagonal
            share = (probability * straight).sum(1, keepdim=True) / (1 - (probability * across).sum(1, keepdim=True))
            near = near - _bounded(straight + across * share)
        return near


class BinaryCrossEntropyEnvelope(Envelope):
    """Of `torch.nn.BCEWithLogitsLoss()`."""

    def _loss(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        return BinaryCrossEntropy().value(outputs, targets)

    def _count(self, outputs: Float[Tensor, "n k"]) -> int:
        return outputs.numel()

    def _proximal(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, "n k"]:
        wanted = BinaryCrossEntropy.checked(outputs, targets)
        near = outputs.clone()
        for _ in range(_STEPS):
            probability = torch.sigmoid(near)
            slope = probability - wanted + self.curvature * (near - outputs)
            if not bool(slope.abs().max() > _SLOPE):
                break
            step = slope / (probability * (1 - probability) + self.curvature)
            near = near - step.clamp(-_REACH, _REACH)
        return near


def _bounded(step: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    length = torch.linalg.vector_norm(step, dim=1, keepdim=True)
    return step * (_REACH / length.clamp_min(_REACH))
