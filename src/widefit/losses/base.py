"""The loss of a network's outputs: values, gradients, and a local least-squares problem in the outputs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

# A NumPy array or a tensor, and what follows is of the same kind.
Array = Any

# Curvature below this part of its largest value is raised to it: where a loss is all but flat, a step would be all
# but unbounded.
FLOOR = 1e-4


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

    def times(self, weight: float) -> "LocalLeastSquares":
        """The problem of `weight` times the loss."""
        return LocalLeastSquares(weight**0.5 * self.residual, weight**0.5 * self.root)


class OutputLoss(ABC):
    """ℓ(f_i, y_i) of one sample, summed over its outputs.

    There are two ways to put samples together. A rule of `widefit.rules` weighs ℓ and sums it: `values`, `gradients`
    and `local` are for it. torch's losses, which the optimizer and fine-tuning promise, are means: `value` and `expand`
    are of `scale` · ℓ averaged over all numbers, or over samples.

    `values`, `gradients` and `local` take targets in the shape of the outputs, as `prepared` makes them; the first two
    take NumPy arrays as well as tensors. `value` and `expand` take targets as torch's losses do.

    Attributes
    ----------
    name
        What a rule calls it.
    torch_name
        What the optimizer calls it.
    title
        The number that is reported, `scale` · ℓ averaged over samples, in words.
    curvature
        The largest second derivative of ℓ in the outputs.
    scale
        See above.
    """

    name: ClassVar[str] = ""
    torch_name: ClassVar[str] = ""
    title: ClassVar[str] = "mean loss"
    curvature: ClassVar[float] = math.inf
    scale: ClassVar[float] = 1.0

    @abstractmethod
    def values(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
        """Return ℓ sample by sample."""

    @abstractmethod
    def gradients(self, outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Return ∂ℓ/∂f sample by sample."""

    @abstractmethod
    def local(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        """Return the local least-squares problem of Σ_i ℓ."""

    def separable(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> LocalLeastSquares:
        """Return such a problem in which outputs do not meet, which majorizes the loss where they do."""
        return self.local(outputs, targets)

    def wrong(self, targets: Float[Array, "n k"]) -> tuple[Bool[Array, " n"], str] | None:
        """Return which of n rows are no targets of this loss, and what a target is; None where all numbers are."""
        return None

    def check(self, targets: Float[Array, "n k"], argument: str = "y") -> None:
        """Raise a ValueError that names the first row that is no target of this loss."""
        found = self.wrong(targets)
        if found is None or not bool(found[0].any()):
            return
        rows, wanted = found
        row = int(namespace(targets).argmax(1 * rows))
        name = self.name if isinstance(targets, np.ndarray) else self.torch_name
        raise ValueError(f'{argument} must be {wanted} for loss="{name}", got {targets[row].tolist()} in row {row}')

    def prepared(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Tensor:
        """Return targets in the shape and type of the outputs.

        Raises
        ------
        ValueError
            No targets, another shape (a dimension of one may be missing or extra), numbers that are no targets.
        """
        wanted = given(targets)
        # The order of the dimensions is compared by `on`, which knows them.
        if wanted.numel() != outputs.numel() or wanted.shape[:1] != outputs.shape[:1]:
            raise ValueError(
                f"targets of shape {tuple(wanted.shape)} do not match outputs of shape {tuple(outputs.shape)}"
            )
        wanted = wanted.reshape(outputs.shape).to(outputs)
        self.check(wanted, "targets")
        return wanted

    def on(self, shape: Sequence[int], targets: Tensor | None) -> "OutputLoss":
        """Return the loss for outputs whose samples had this shape before each was laid out as a row of k numbers.

        Raises
        ------
        ValueError
            Targets that do not belong to such outputs, entry by entry.
        """
        wanted = given(targets)
        if without_ones(wanted.shape[1:]) not in (without_ones(shape), without_ones((math.prod(shape),))):
            raise ValueError(
                f"targets of shape {tuple(wanted.shape)} do not match outputs of shape {(len(wanted), *shape)}: they "
                "must have the same dimensions in the same order, but for those of size 1, or be laid out as rows"
            )
        return self

    def smoothed(self) -> "OutputLoss":
        """Return what a step lowers that starts from outputs far off: the loss itself where its curvature is honest."""
        return self

    def mean_weight(self, outputs: Float[Tensor, "n k"]) -> float:
        """Return the factor between Σ_i ℓ and torch's mean; here that over all numbers."""
        return self.scale / max(outputs.numel(), 1)

    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        """Return the mean-reduced loss."""
        return self.mean_weight(outputs) * self.values(outputs, self.prepared(outputs, targets)).sum()

    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        """Return the local least-squares problem of the mean-reduced loss."""
        return self.local(outputs, self.prepared(outputs, targets)).times(self.mean_weight(outputs))

    @classmethod
    def of_module(cls, module: Any) -> "OutputLoss | None":
        """Return the loss that a loss module of torch computes; None where that is none of this kind."""
        return None


def given(targets: Tensor | None) -> Tensor:
    """Return targets that are there.

    Raises
    ------
    ValueError
        They are not.
    """
    if targets is None:
        raise ValueError("this loss needs targets: call step(x, y)")
    return targets


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its dimensions of size one."""
    return tuple(size for size in shape if size != 1)


def namespace(array: Array) -> Any:
    """Return the module whose functions take such an array."""
    return torch if isinstance(array, Tensor) else np
