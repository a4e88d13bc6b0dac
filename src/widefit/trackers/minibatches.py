"""Stochastic gradient steps in sample space."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from widefit.losses.family import rule_loss
from widefit.trackers.averaging import IterateAverage


@runtime_checkable
class Adversary(Protocol):
    """Moves samples so as to raise their loss, step by step, not far from where they were."""

    @property
    def steps(self) -> int:
        """Number of times that it moves them."""
        ...

    def move(
        self, origin: Float[np.ndarray, "b d"], x: Float[np.ndarray, "b d"], gradient: Float[np.ndarray, "b d"]
    ) -> Float[np.ndarray, "b d"]:
        """New place of x, in the dtype of x, by the gradient of the loss at x; `origin` is where the samples were."""
        ...


@dataclass(frozen=True)
class Minibatches:
    """Steps W ← W − s_t (W − W₀) − η_t J_Bᵀ (ω_B ∘ ∂ℓ/∂f_B), one a batch B of samples.

    Attributes
    ----------
    samples
        The samples of all batches, one batch after the other; none twice in a batch.
    edges
        Batch t is samples[edges[t]:edges[t + 1]].
    rates
        η_t, shape (batches,).
    targets
        y, shape (n, k), as the loss takes them.
    sample_weight
        ω, shape (n,).
    loss
        The name of ℓ, as `widefit.losses.family.rule_loss` takes it.
    shrink
        s_t, shape (batches,): pull of all neurons towards their initial weights; None: 0.
    trains_readout
        The same steps for the second layer: a_r ← a_r − η_t Σ_{i ∈ B} ω_i ∂ℓ/∂f_i φ(⟨w_r, x_i⟩) / √m, with both layers
        as they were before the step.
    adversary
        Perturbs the samples of a batch at the weights before its step, which is then taken at the perturbed points;
        None: the samples stay where they are.
    averaged
        How many iterates are averaged before each step, and after the last; None: none.
    average
        Where the steps are kept for it.
    """

    samples: Int[np.ndarray, " visits"]
    edges: Int[np.ndarray, " batches_plus_one"]
    rates: Float[np.ndarray, " batches"]
    targets: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]
    loss: str = "squared"
    shrink: Float[np.ndarray, " batches"] | None = None
    trains_readout: bool = False
    adversary: Adversary | None = None
    averaged: Int[np.ndarray, " batches_plus_one"] | None = None
    average: IterateAverage | None = None

    def __len__(self) -> int:
        return self.rates.size

    def batch(self, step: int) -> Int[np.ndarray, " b"]:
        return self.samples[self.edges[step] : self.edges[step + 1]]

    def part(self, first: int, last: int) -> "Minibatches":
        """Batches `first` to `last`."""
        low, high = self.edges[first], self.edges[last]
        return replace(
            self,
            samples=self.samples[low:high],
            edges=self.edges[first : last + 1] - low,
            rates=self.rates[first:last],
            shrink=None if self.shrink is None else self.shrink[first:last],
            averaged=None if self.averaged is None else self.averaged[first : last + 1],
        )

    def g(self, step: int, outputs: Float[np.ndarray, "b k"]) -> Float[np.ndarray, "b k"]:
        """η_t ω_B ∘ ∂ℓ/∂f_B from the outputs of the batch."""
        batch = self.batch(step)
        slope = rule_loss(self.loss).gradients(outputs, self.targets[batch])
        return self.rates[step] * self.sample_weight[batch][:, None] * slope

    def attacked(
        self,
        step: int,
        x: Float[np.ndarray, "b d"],
        outputs: Float[np.ndarray, "b k"],
        evaluate: Callable[[np.ndarray], np.ndarray],
        pull_back: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[Float[np.ndarray, "b d"], Float[np.ndarray, "b k"]]:
        """Samples of a batch as the adversary moves them, and the outputs there; see `attack`."""
        if self.adversary is None:
            return x, outputs
        return attack(self.adversary, self.loss, self.targets[self.batch(step)], x, outputs, evaluate, pull_back)

    @property
    def plain(self) -> bool:
        """True when the steps move the first layer alone, along the samples as they are, and none are kept."""
        kept = self.average is not None and self.averaged is not None
        return not (self.trains_readout or self.shrinks or kept or self.adversary is not None)

    @property
    def shrinks(self) -> bool:
        """True when some batch moves every neuron."""
        return self.shrink is not None and bool(np.any(self.shrink))

    def pull(self, step: int) -> float:
        """s_t."""
        return 0.0 if self.shrink is None else float(self.shrink[step])

    def averaged_after(self, before: int) -> int:
        """Iterates that are averaged after the last step; those before the first where no more are."""
        return before if self.averaged is None else int(self.averaged[-1])

    def kept(self, step: int) -> tuple[float, IterateAverage | None]:
        """Averaged iterates before a step, and where it is to be kept for them; None where it does not matter."""
        if self.average is None or self.averaged is None or self.averaged[step] == 0:
            return 0.0, None
        return float(self.averaged[step]), self.average


def attack(
    adversary: Adversary,
    loss: str,
    targets: Float[np.ndarray, "b k"],
    x: Float[np.ndarray, "b d"],
    outputs: Float[np.ndarray, "b k"],
    evaluate: Callable[[np.ndarray], np.ndarray],
    pull_back: Callable[[np.ndarray], np.ndarray],
) -> tuple[Float[np.ndarray, "b d"], Float[np.ndarray, "b k"]]:
    """Move samples by an adversary; return their new places and the outputs there.

    Parameters
    ----------
    adversary, loss, targets
        Whose loss it raises.
    x, outputs
        The samples, and f there.
    evaluate
        Gives f at other points.
    pull_back
        Gives ∂ Σ_ic s_ic f_c(x_i) / ∂x, shape (b, d), for weights s, shape (b, k), at the points last evaluated.
    """
    origin = x
    for _ in range(adversary.steps):
        x = adversary.move(origin, x, pull_back(rule_loss(loss).gradients(outputs, targets)))
        outputs = evaluate(x)
    return x, outputs
