"""The problem of one step: residual, curvature and Gram operator at the current weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Operator
from widefit.gram.weighted import WeightedGram, block_times
from widefit.losses.base import LocalLeastSquares
from widefit.rules.objective import Objective
from widefit.trackers import Displacement

Result = TypeVar("Result")


@dataclass(frozen=True)
class Block:
    """Least squares in sample space over parameters that no other block shares: min ‖r̃ − H̃ g̃‖² + λ ‖J̃ᵀ g̃‖².

    J̃ = B̃ᵀ J with B̃ B̃ᵀ the curvature of the weighted loss in the outputs; H̃ = J̃ J̃ᵀ.

    Attributes
    ----------
    operator
        H̃.
    residual
        r̃, shape (M,).
    root
        B̃ as diagonal blocks, shape (blocks, s, s); None for the identity.
    weight
        Sum of the sample weights: tr H̃ over it is the scale of a relative λ.
    response
        J (W − W₀), shape (M,); None without a ridge.
    squared_norm
        ‖W − W₀‖² of the parameters of the block.
    guess
        g̃ of a step back to W₀ and from there to W, about; None where nobody knows.
    """

    operator: Operator
    residual: Float[Tensor, " M"]
    root: Float[Tensor, "blocks s s"] | None
    weight: float
    response: Float[Tensor, " M"] | None = None
    squared_norm: float = 0.0
    guess: Float[Tensor, " M"] | None = None

    @cached_property
    def scale(self) -> float:
        """Mean of diag H̃ over the samples."""
        return self.operator.trace() / self.weight

    def weighted(self, values: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """B̃ᵀ v."""
        return values if self.root is None else block_times(self.root.mT, values)

    def unweighted(self, step: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """g = B̃ g̃."""
        return step if self.root is None else block_times(self.root, step)

    def unweighted_image(self, image: Float[Tensor, " M"]) -> Float[Tensor, " M"] | None:
        """H g of H̃ g̃ = B̃ᵀ H g; None where B̃ is not a diagonal without zeros."""
        if self.root is None:
            return image
        if self.root.shape[1] > 1 or not bool((self.root > 0).all()):
            return None
        return image / self.root[:, 0, 0]


class LocalProblem(ABC):
    """The objective Q near the current weights.

    Attributes
    ----------
    alpha
        Ridge α of Q.
    """

    alpha: float

    @property
    @abstractmethod
    def value(self) -> float:
        """Q at the current weights."""

    @abstractmethod
    def value_of(self, trial: Any) -> float:
        """Q at a trial."""

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The independent least-squares problems of a Gauss-Newton step, one for each column of g, one at a time."""

    def each_block(self, work: Callable[[Block], Result]) -> list[Result]:
        """Do work on each of `blocks`; the results in their order."""
        return [work(block) for block in self.blocks()]

    def bends(self, trial: Any) -> bool:
        """Whether the linear model may be wrong at a trial by more than rounding."""
        return True


@dataclass(frozen=True)
class NetworkProblem(LocalProblem):
    """The local problem of a network whose fire pattern a tracker knows.

    Attributes
    ----------
    objective
        Q.
    outputs
        f, shape (n, k).
    displacement
        Of W from W₀; None when α = 0.
    gram
        Returns H of one output; the caller must not change it.
    piecewise_linear
        True where f is linear in W as long as no neuron flips, as with one layer.
    features_squared
        Returns the largest over the outputs of Σ_r φ(⟨w_r, x_i⟩)² / m, r the neurons of the output, shape (n,): the
        curvature of the second layer, for rules that train it.
    few
        Returns the problem of some of the samples, for estimates that need no more; None where there are only a few.
    collected
        Sum of g over the steps so far, as far as it has not been taken back, shape (n, k): where a solve begins. None:
        each begins from 0.
    """

    objective: Objective
    outputs: Float[np.ndarray, "n k"]
    displacement: Displacement | None
    gram: Callable[[int], Operator]
    piecewise_linear: bool = True
    features_squared: Callable[[], Float[np.ndarray, " n"]] = field(default=lambda: np.zeros(1))
    few: "Callable[[], NetworkProblem] | None" = None
    collected: Float[np.ndarray, "n k"] | None = None

    @property
    def alpha(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.objective.alpha

    @cached_property
    def value(self) -> float:
        return self.objective.value(self.outputs, self.displacement)

    def value_of(self, trial: Any) -> float:
        return self.objective.value(trial.outputs, trial.displacement)

    def bends(self, trial: Any) -> bool:
        straight = self.piecewise_linear and self.objective.kind == "squared"
        return trial.flips > 0 or not straight

    @property
    def slope(self) -> Float[np.ndarray, "n k"]:
        """∂ℓ/∂f; the residual for the squared loss."""
        return self.objective.slope(self.outputs)

    def blocks(self) -> Iterator[Block]:
        local = self.objective.expand(self.outputs)
        for output in range(self.outputs.shape[1]):
            yield self.block(local, output, self.gram(output))

    @cached_property
    def squared_gradient(self) -> float:
        """‖∇_W ½Q‖² = ‖Jᵀ ω ∂ℓ + α (W − W₀)‖², expanded in sample space."""
        total = 0.0
        error = self.objective.sample_weight[:, None] * self.slope
        for output in range(error.shape[1]):
            gram = self.gram(output)
            column = torch.from_numpy(np.ascontiguousarray(error[:, output])).to(gram.device)
            image = gram.matvec(column).cpu().numpy()
            total += float(error[:, output] @ image)
            if self.displacement is not None:
                total += 2 * self.alpha * float(error[:, output] @ self.displacement.response[:, output])
                total += self.alpha**2 * float(self.displacement.squared_norm[output])
        return max(total, 0.0)

    def block(self, local: LocalLeastSquares, output: int, gram: Operator) -> Block:
        """The problem of one output, given Q near f and H of that output."""
        weight = self.objective.sample_weight
        root = _root(local, weight, output)
        root = None if root is None else root.to(gram.device)
        operator = gram if root is None else WeightedGram(gram, root)
        residual = (torch.from_numpy(np.sqrt(weight)) * local.residual[:, output]).to(gram.device)
        if self.displacement is None:
            return Block(operator, residual, root, float(weight.sum()))
        response = torch.from_numpy(np.ascontiguousarray(self.displacement.response[:, output])).to(gram.device)
        squared_norm = float(self.displacement.squared_norm[output])
        guess = None if self.collected is None else _weighted_guess(self.collected[:, output], root, gram.device)
        return Block(operator, residual, root, float(weight.sum()), response, squared_norm, guess)


def _weighted_guess(collected: Float[np.ndarray, " n"], root: Tensor | None, device: torch.device) -> Tensor | None:
    """g̃ of g on a device; None where a sample's rows depend on one another."""
    guess = torch.from_numpy(np.ascontiguousarray(collected)).to(device)
    if root is None:
        return guess
    if root.shape[1] > 1:
        return None
    scale = root[:, 0, 0]
    return torch.where(scale > 0, guess / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0)


def _root(local: LocalLeastSquares, weight: Float[np.ndarray, " n"], output: int) -> Tensor | None:
    """√ω B of the rows of one output as blocks, (blocks, s, s); None for the identity."""
    root = local.root
    scale = torch.from_numpy(np.sqrt(weight))
    if root.ndim < 3:
        if root.ndim == 2:
            # Stacked outputs: all numbers of B, in the order of the rows.
            column = root.reshape(-1) if root.numel() == len(scale) else root[:, output]
            scale = scale * column
        return None if bool((scale == 1).all()) else scale[:, None, None]
    return scale[:: root.shape[1], None, None] * root
