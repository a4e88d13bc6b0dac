"""Stochastic gradient steps in sample space."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

LOSSES = ("squared", "logistic", "softmax")


@dataclass(frozen=True)
class Minibatches:
    """Steps W ← W − η_t J_Bᵀ (ω_B ∘ ∂ℓ/∂f_B), one a batch B of samples.

    Attributes
    ----------
    samples
        The samples of all batches, one batch after the other; none twice in a batch.
    edges
        Batch t is samples[edges[t]:edges[t + 1]].
    rates
        η_t, shape (batches,).
    targets
        y, shape (n, k): numbers for the squared loss, ±1 for the logistic, one-hot rows for softmax.
    sample_weight
        ω, shape (n,).
    loss
        "squared": ½ ‖f − y‖². "logistic": Σ_c log(1 + exp(−y_c f_c)). "softmax": log Σ_c exp f_c − ⟨y, f⟩.
    """

    samples: Int[np.ndarray, " visits"]
    edges: Int[np.ndarray, " batches_plus_one"]
    rates: Float[np.ndarray, " batches"]
    targets: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]
    loss: str = "squared"

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
        )

    def g(self, step: int, outputs: Float[np.ndarray, "b k"]) -> Float[np.ndarray, "b k"]:
        """η_t ω_B ∘ ∂ℓ/∂f_B from the outputs of the batch."""
        batch = self.batch(step)
        slope = gradient(self.loss, outputs, self.targets[batch])
        return self.rates[step] * self.sample_weight[batch][:, None] * slope


def gradient(
    loss: str, outputs: Float[np.ndarray, "b k"], targets: Float[np.ndarray, "b k"]
) -> Float[np.ndarray, "b k"]:
    """∂ℓ/∂f, sample by sample."""
    if loss == "squared":
        return outputs - targets
    if loss == "logistic":
        return -targets * np.exp(-np.logaddexp(0, targets * outputs))
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True) - targets
