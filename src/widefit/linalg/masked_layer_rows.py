"""Rows of J over a layer whose signals are held as they are, zeros included: products of whole blocks of neurons."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# The fewest neurons of a block: narrower products are slow.
_NARROWEST = 64


@dataclass(frozen=True)
class MaskedLayerRows:
    """The rows of J over a layer, δ ⊗ a, on any device; output c of sample i has row i k + c.

    The counterpart of `widefit.linalg.sparse_layer_rows.SparseLayerRows` where zeros cost less than finding them (this
    project). Signals have the dtype of the network, sums are float64: rounded factors of J make an H without negative
    eigenvalues, which products in float32 do not.

    Attributes
    ----------
    signals
        δ of every output, 0 where a neuron does not fire.
    similarity
        A Aᵀ, the inner products of what the layer sees, float64.
    numbers
        Numbers of a block in float64, about.
    """

    signals: Float[Tensor, "n k m"]
    similarity: Float[Tensor, "n n"]
    numbers: int

    @property
    def samples(self) -> int:
        """Number of samples, n."""
        return self.signals.shape[0]

    @property
    def outputs(self) -> int:
        """Outputs a sample, k."""
        return self.signals.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    @property
    def device(self) -> torch.device:
        return self.signals.device

    def product(self, vectors: Float[Tensor, "n k c"]) -> Float[Tensor, "n k c"]:
        """J Jᵀ v: 2 n² m + 4 n k m flops a vector."""
        total = torch.zeros_like(vectors)
        for signals in self._blocks():
            mixed = torch.einsum("nkc,nkb->nbc", vectors, signals)
            reached = (self.similarity @ mixed.flatten(1)).view(mixed.shape)
            total += torch.einsum("nkb,nbc->nkc", signals, reached)
        return total

    def columns(self, indices: Int[Tensor, " c"]) -> Float[Tensor, "r c"]:
        """(J Jᵀ)[:, indices]."""
        total = self._zeros(self.samples * self.outputs, len(indices))
        for signals in self._blocks():
            rows = signals.flatten(0, 1)
            total.addmm_(rows, rows[indices].T)
        seen = self.similarity[:, None, indices // self.outputs]
        return total.view(self.samples, self.outputs, -1).mul_(seen).flatten(0, 1)

    def gram(self) -> Float[Tensor, "r r"]:
        """J Jᵀ: 2 (n k)² m flops."""
        rows = self.samples * self.outputs
        total = self._zeros(rows, rows)
        for signals in self._blocks():
            own = signals.flatten(0, 1)
            total.addmm_(own, own.T)
        by_output = total.view(self.samples, self.outputs, self.samples, self.outputs)
        by_output *= self.similarity[:, None, :, None]
        return total

    def output_gram(self) -> Float[Tensor, "n n"]:
        """Σ_c J_c J_cᵀ, J_c the rows of output c: 2 n² k m flops."""
        total = self._zeros(self.samples, self.samples)
        for signals in self._blocks():
            own = signals.flatten(1)
            total.addmm_(own, own.T)
        return total.mul_(self.similarity)

    def block_products(self) -> Float[Tensor, "n k k"]:
        """J Jᵀ between the outputs of every sample."""
        total = self._zeros(self.samples, self.outputs, self.outputs)
        for signals in self._blocks():
            total += signals @ signals.mT
        return total.mul_(self.similarity.diagonal()[:, None, None])

    def _blocks(self) -> Iterator[Float[Tensor, "n k b"]]:
        """Yield the signals of some neurons after the other, in float64."""
        size = max(_NARROWEST, self.numbers // (self.samples * self.outputs))
        for some in self.signals.split(size, dim=2):
            yield some.to(self.dtype)

    def _zeros(self, *shape: int) -> Float[Tensor, "..."]:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)
