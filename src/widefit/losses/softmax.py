"""The softmax loss, also called cross-entropy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from widefit.losses.base import FLOOR, Array, LocalLeastSquares, OutputLoss, given, namespace
from widefit.losses.custom import Custom
from widefit.losses.envelopes import REACH, SLOPE, STEPS, CrossEntropy

# What torch takes for the number of a class that is to be passed over.
_NO_CLASS = -100


@dataclass(frozen=True)
class Softmax(CrossEntropy):
    """log Σ_c exp f_c − ⟨y, f⟩ for class probabilities y; its mean over samples is `torch.nn.CrossEntropyLoss()`.

    The optimizer takes class numbers of shape (n,) as well.
    """

    name: ClassVar[str] = "softmax"
    torch_name: ClassVar[str] = "cross_entropy"
    title: ClassVar[str] = "mean cross-entropy"
    curvature: ClassVar[float] = 0.5

    def values(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
        module, shifted = namespace(outputs), _shifted(outputs)
        return module.log(module.exp(shifted).sum(1)) - (targets * shifted).sum(1)

    def gradients(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return _probability(outputs) - targets

    def local(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        probability = torch.softmax(outputs, dim=1)
        # diag p − p pᵀ = B Bᵀ with B = diag √p − p √pᵀ when p sums to one; and B (p − y)/√p = p − y, as p − y sums
        # to zero.
        floored = probability.clamp_min(FLOOR / outputs.shape[1])
        floored = floored / floored.sum(dim=1, keepdim=True)
        half = floored.sqrt()
        root = torch.diag_embed(half) - floored[:, :, None] * half[:, None, :]
        return LocalLeastSquares((probability - targets) / half, root)

    def separable(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        # diag p − p pᵀ ≤ 2 diag p (1 − p): rows of the difference are diagonally dominant.
        probability = torch.softmax(outputs, dim=1)
        root = (2 * probability * (1 - probability)).clamp_min(FLOOR).sqrt()
        return LocalLeastSquares((probability - targets) / root, root)

    def wrong(self, targets: Float[Array, "n k"]) -> tuple[Bool[Array, " n"], str]:
        # A row of numbers that were rounded misses 1 by so much.
        rounding = max(1e-6, 4 * targets.shape[1] * float(namespace(targets).finfo(targets.dtype).eps))
        sums = abs(targets.sum(1) - 1) <= rounding
        return ~((targets >= 0).all(1) & sums), "rows of class probabilities, ≥ 0 with sum 1"

    def prepared(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, "n k"]:
        wanted, (samples, classes) = given(targets), outputs.shape
        if not wanted.is_floating_point():
            return functional.one_hot(_class_numbers(wanted, samples, classes), classes).to(outputs)
        if wanted.shape != outputs.shape:
            raise ValueError(
                f"cross_entropy takes class numbers of shape ({samples},) or probabilities of shape "
                f"{tuple(outputs.shape)}, got {tuple(wanted.shape)}"
            )
        self.check(wanted, "targets")
        return wanted.to(outputs)

    def on(self, shape: Sequence[int], targets: Tensor | None) -> OutputLoss:
        # Of several places with a class each there is no closed form here.
        return self if len(shape) <= 1 else Custom(functional.cross_entropy).on(shape, targets)

    def proximal(
        self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"], curvature: float
    ) -> Float[Tensor, "n k"]:
        near = outputs.clone()
        for _ in range(STEPS):
            probability = torch.softmax(near, dim=1)
            slope = probability - targets + curvature * (near - outputs)
            if not bool(slope.abs().max() > SLOPE):
                break
            # (diag(p + c) − p pᵀ)⁻¹ slope by Sherman and Morrison.
            straight = slope / (probability + curvature)
            across = probability / (probability + curvature)
            share = (probability * straight).sum(1, keepdim=True) / (1 - (probability * across).sum(1, keepdim=True))
            near = near - _bounded(straight + across * share)
        return near

    def mean_weight(self, outputs: Float[Tensor, "n k"]) -> float:
        return self.scale / max(len(outputs), 1)

    @classmethod
    def of_module(cls, module: nn.Module) -> "Softmax | None":
        if type(module) is not nn.CrossEntropyLoss:
            return None
        if module.weight is not None or module.ignore_index != _NO_CLASS:
            option = "weight" if module.weight is not None else "ignore_index"
            raise ValueError(
                f"loss must be the mean over samples: CrossEntropyLoss with {option} averages over weights that differ "
                "from batch to batch; leave it out"
            )
        return None if module.label_smoothing else cls()


def _class_numbers(targets: Tensor, samples: int, classes: int) -> Int[Tensor, " n"]:
    if targets.numel() != samples or len(targets) != samples:
        raise ValueError(
            f"cross_entropy takes one class number a sample, got shape {tuple(targets.shape)} for {samples}"
        )
    numbers = targets.reshape(-1).long()
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= classes:
        row = int((numbers < 0).logical_or(numbers >= classes).int().argmax())
        raise ValueError(
            f"class numbers must lie in 0 … {classes - 1}, the network's outputs; got {low} … {high}, the first of "
            f"those outside in row {row}"
        )
    return numbers


def _shifted(outputs: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Outputs less the largest of their row."""
    if isinstance(outputs, Tensor):
        return outputs - outputs.amax(dim=1, keepdim=True)
    return outputs - outputs.max(axis=1, keepdims=True)


def _probability(outputs: Float[Array, "n k"]) -> Float[Array, "n k"]:
    if isinstance(outputs, Tensor):
        return torch.softmax(outputs, dim=1)
    shares = np.exp(_shifted(outputs))
    return shares / shares.sum(axis=1, keepdims=True)


def _bounded(step: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    length = torch.linalg.vector_norm(step, dim=1, keepdim=True)
    return step * (REACH / length.clamp_min(REACH))
