"""Losses as the Gauss-Newton step sees them: a value, and a local least-squares problem in the outputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, hessian, vmap
from torch.nn import functional

# Curvature below this part of its largest value is raised to it: where a loss is all but flat, a step would be all
# but unbounded.
_FLOOR = 1e-4


@dataclass(frozen=True)
class LocalLeastSquares:
    """The loss near the present outputs f: ℓ(f + δ) ≈ ℓ(f) + Σᵢ r̃ᵢ·Bᵢᵀδᵢ + ½ ‖Bᵢᵀδᵢ‖².

    Attributes
    ----------
    residual
        r̃ with Bᵢ r̃ᵢ = ∂ℓ/∂fᵢ, shape (n, k).
    root
        B: () or (n, k) for a multiple of the identity or a diagonal, (n, k, k) in general; B Bᵀ is the Hessian of the
        loss in the outputs, or a positive definite majorant where that is flat.
    """

    residual: Float[Tensor, "n k"]
    root: Float[Tensor, "..."]


class OutputLoss(ABC):
    """A loss that averages over samples."""

    @abstractmethod
    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        """ℓ."""

    @abstractmethod
    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        """The local least-squares problem."""


@dataclass(frozen=True)
class HalfSquare(OutputLoss):
    """weight · ½ mean(residual²): what a block of residuals contributes."""

    weight: float = 1.0

    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        return 0.5 * self.weight * outputs.square().mean()

    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        root = outputs.new_tensor((self.weight / outputs.numel()) ** 0.5)
        return LocalLeastSquares(root * outputs, root)


class MeanSquare(OutputLoss):
    """`torch.nn.MSELoss()`."""

    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        return (outputs - _columns(outputs, targets)).square().mean()

    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        root = outputs.new_tensor((2 / outputs.numel()) ** 0.5)
        return LocalLeastSquares(root * (outputs - _columns(outputs, targets)), root)


@dataclass(frozen=True)
class Huber(OutputLoss):
    """`torch.nn.HuberLoss(delta=delta)`; beyond delta the curvature is that of the majorizing parabola, delta/|r|."""

    delta: float = 1.0

    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        return functional.huber_loss(outputs, _columns(outputs, targets), delta=self.delta)

    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        error = outputs - _columns(outputs, targets)
        curvature = (self.delta / error.abs().clamp_min(self.delta)) / outputs.numel()
        root = curvature.sqrt()
        return LocalLeastSquares(error.clamp(-self.delta, self.delta) / (outputs.numel() * root), root)


class BinaryCrossEntropy(OutputLoss):
    """`torch.nn.BCEWithLogitsLoss()`."""

    @staticmethod
    def checked(outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, "n k"]:
        """Targets in the shape of the outputs, or a ValueError that says what is wrong with them."""
        return _columns(outputs, targets)

    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        return functional.binary_cross_entropy_with_logits(outputs, _columns(outputs, targets))

    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        probability = torch.sigmoid(outputs)
        curvature = (probability * (1 - probability)).clamp_min(_FLOOR / 4) / outputs.numel()
        root = curvature.sqrt()
        return LocalLeastSquares((probability - _columns(outputs, targets)) / (outputs.numel() * root), root)


class CrossEntropy(OutputLoss):
    """`torch.nn.CrossEntropyLoss()`; targets are class numbers (n,) or probabilities (n, k)."""

    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        return functional.cross_entropy(outputs, self.checked(outputs, targets))

    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        classes = self.checked(outputs, targets)
        n, k = outputs.shape
        probability = torch.softmax(outputs, dim=1)
        wanted = classes if classes.is_floating_point() else functional.one_hot(classes, k).to(outputs)
        # diag p − p pᵀ = B Bᵀ with B = diag √p − p √pᵀ when p sums to one; and B (p − y)/√p = p − y, as p − y sums
        # to zero.
        floored = probability.clamp_min(_FLOOR / k)
        floored = floored / floored.sum(dim=1, keepdim=True)
        half = floored.sqrt()
        root = (torch.diag_embed(half) - floored[:, :, None] * half[:, None, :]) / n**0.5
        return LocalLeastSquares((probability - wanted) / (half * n**0.5), root)

    @staticmethod
    def checked(outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Class numbers (n,) or probabilities (n, k), or a ValueError that says what is wrong with them."""
        classes = _given(targets)
        if classes.is_floating_point():
            if classes.shape != outputs.shape:
                raise ValueError(
                    f"cross_entropy takes class numbers of shape ({len(outputs)},) or probabilities of shape "
                    f"{tuple(outputs.shape)}, got {tuple(classes.shape)}"
                )
            return classes.to(outputs)
        classes = classes.reshape(-1).long()
        if len(classes) != len(outputs):
            raise ValueError(f"cross_entropy takes one class number a sample, got {len(classes)} for {len(outputs)}")
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= outputs.shape[1]:
            raise ValueError(
                f"class numbers must lie in 0 … {outputs.shape[1] - 1}, the network's outputs; got {low} … {high}"
            )
        return classes


@dataclass(frozen=True)
class AnyLoss(OutputLoss):
    """A twice-differentiable mean-reduced loss(outputs, targets), through its generalized Gauss-Newton matrix.

    Directions in which the loss is concave or flat get the curvature `1e-4` of the largest one.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        return self.function(outputs, _given(targets))

    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        def single(output: Tensor, target: Tensor) -> Tensor:
            return self.function(output[None], target[None]).reshape(())

        wanted = _given(targets)
        n = len(outputs)
        whole, parts = self.value(outputs, wanted), vmap(single)(outputs, wanted)
        if not torch.allclose(whole, parts.mean(), rtol=1e-3, atol=1e-8):
            raise ValueError(
                f"loss must be the mean over samples (reduction='mean'): it gives {float(whole):.6g} for the batch, "
                f"its samples average {float(parts.mean()):.6g}"
            )
        slope = vmap(grad(single))(outputs, wanted) / n
        values, vectors = torch.linalg.eigh(vmap(hessian(single))(outputs, wanted) / n)
        values = values.clamp_min(_FLOOR * values.max().clamp_min(torch.finfo(values.dtype).tiny))
        root = vectors * values.sqrt()[:, None, :]
        return LocalLeastSquares(torch.einsum("nab,na->nb", vectors, slope) / values.sqrt(), root)


LOSSES: dict[str, Callable[[], OutputLoss]] = {
    "mse": MeanSquare,
    "cross_entropy": CrossEntropy,
    "bce": BinaryCrossEntropy,
    "huber": Huber,
}


def output_loss(loss: str | Callable[[Tensor, Tensor], Tensor]) -> OutputLoss:
    """The loss of that name, or any mean-reduced callable."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))} or a callable, got {loss!r}")
        return LOSSES[loss]()
    if not callable(loss):
        raise ValueError(f"loss must be a name or a callable(outputs, targets), got {type(loss).__name__}")
    return AnyLoss(loss)


def _given(targets: Tensor | None) -> Tensor:
    if targets is None:
        raise ValueError("this loss needs targets: call step(x, y)")
    return targets


def _columns(outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, "n k"]:
    """Targets in the shape and type of the outputs; a dimension of one may be missing, a broadcast is refused."""
    wanted = _given(targets)
    if wanted.numel() != outputs.numel() or wanted.shape[0] != outputs.shape[0]:
        raise ValueError(f"targets of shape {tuple(wanted.shape)} do not match outputs of shape {tuple(outputs.shape)}")
    return wanted.reshape(outputs.shape).to(outputs)
