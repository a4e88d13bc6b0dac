"""Stochastic gradient steps in sample space, and the losses that they descend."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

LOSSES = ("squared", "logistic", "softmax")


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
        y, shape (n, k): numbers for the squared loss, ±1 for the logistic, one-hot rows for softmax.
    sample_weight
        ω, shape (n,).
    loss
        "squared": ½ ‖f − y‖². "logistic": Σ_c log(1 + exp(−y_c f_c)). "softmax": log Σ_c exp f_c − ⟨y, f⟩.
    shrink
        s_t, shape (batches,): pull of all neurons towards their initial weights; None: 0.
    trains_readout
        The same steps for the second layer: a_r ← a_r − η_t Σ_{i ∈ B} ω_i ∂ℓ/∂f_i φ(⟨w_r, x_i⟩) / √m, with both layers
        as they were before the step.
    """

    samples: Int[np.ndarray, " visits"]
    edges: Int[np.ndarray, " batches_plus_one"]
    rates: Float[np.ndarray, " batches"]
    targets: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]
    loss: str = "squared"
    shrink: Float[np.ndarray, " batches"] | None = None
    trains_readout: bool = False

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
        )

    def g(self, step: int, outputs: Float[np.ndarray, "b k"]) -> Float[np.ndarray, "b k"]:
        """η_t ω_B ∘ ∂ℓ/∂f_B from the outputs of the batch."""
        batch = self.batch(step)
        slope = gradient(self.loss, outputs, self.targets[batch])
        return self.rates[step] * self.sample_weight[batch][:, None] * slope

    @property
    def shrinks(self) -> bool:
        """True when some batch moves every neuron."""
        return self.shrink is not None and bool(np.any(self.shrink))

    def pull(self, step: int) -> float:
        """s_t."""
        return 0.0 if self.shrink is None else float(self.shrink[step])


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


def values(loss: str, outputs: Float[np.ndarray, "n k"], targets: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """ℓ, sample by sample; `gradient` is its derivative."""
    if loss == "squared":
        return 0.5 * ((outputs - targets) ** 2).sum(1)
    if loss == "logistic":
        return np.logaddexp(0, -targets * outputs).sum(1)
    largest = outputs.max(axis=1)
    return largest + np.log(np.exp(outputs - largest[:, None]).sum(1)) - (targets * outputs).sum(1)


def check_targets(loss: str, targets: Float[np.ndarray, "n k"]) -> None:
    """Raise a ValueError that names the first row of y that is no target of the loss."""
    if loss == "logistic":
        wrong, wanted = (np.abs(targets) != 1).any(axis=1), "±1"
    elif loss == "softmax":
        wrong = (targets < 0).any(axis=1) | (np.abs(targets.sum(axis=1) - 1) > 1e-6)
        wanted = "rows of class probabilities, ≥ 0 with sum 1"
    else:
        return
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f'y must be {wanted} for loss="{loss}", got {targets[row].tolist()} in row {row}')
