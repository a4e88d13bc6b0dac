"""H = Σ over layers of (Δ Δᵀ) ∘ (A Aᵀ) where A stays as it is: n × n products in place of m × m."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import GramOperator


@dataclass(frozen=True)
class OuterLayer:
    """What one layer adds to H: row (i, c) of its part of J is δ_ic ⊗ a_i.

    Attributes
    ----------
    signals
        δ, shape (n, k, o).
    overlap
        ⟨a_i, a_j⟩, plus one where the layer has a bias, shape (n, n).
    """

    signals: Float[Tensor, "n k o"]
    overlap: Float[Tensor, "n n"]

    def mixed(self, weights: Float[Tensor, "n k"]) -> Float[Tensor, "n o"]:
        """Σ_c g_ic δ_ic: the step −Jᵀ g changes the layer by −(Σ_c g_ic δ_ic) ⊗ a_i, summed over i."""
        return torch.einsum("nk,nko->no", weights, self.signals)


class OuterGram(GramOperator):
    """H of n samples and k outputs, row (i, c) in place i k + c; layers of o outputs cost 2 n² o + 4 n k o a product.

    No product with J or with a weight matrix is formed, so a layer of m × m weights costs a factor of m less
    (algorithm of arXiv 2112.07628).

    Parameters
    ----------
    layers
        Their shares, all with the same n and k.
    """

    def __init__(self, layers: Sequence[OuterLayer]):
        self.layers = tuple(layers)
        first = self.layers[0].signals
        self.samples, self.outputs = first.shape[:2]
        self.size = self.samples * self.outputs
        self.dtype, self.device = first.dtype, first.device

    def matmul(self, vectors: Float[Tensor, "nk *c"]) -> Float[Tensor, "nk *c"]:
        if vectors.ndim == 2:
            return torch.stack([self.matmul(column) for column in vectors.T], dim=1)
        weights = vectors.reshape(self.samples, self.outputs)
        total = torch.zeros_like(weights)
        for layer in self.layers:
            total += torch.einsum("nko,no->nk", layer.signals, layer.overlap @ layer.mixed(weights))
        return total.reshape(-1)

    def diagonal(self) -> Float[Tensor, " nk"]:
        total = torch.zeros(self.samples, self.outputs, dtype=self.dtype, device=self.device)
        for layer in self.layers:
            total += layer.signals.square().sum(dim=2) * layer.overlap.diagonal()[:, None]
        return total.reshape(-1)

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "nk r"]:
        total = torch.zeros(self.size, len(indices), dtype=self.dtype, device=self.device)
        for layer in self.layers:
            flat = layer.signals.flatten(0, 1)
            reach = layer.overlap[:, indices // self.outputs].repeat_interleave(self.outputs, dim=0)
            total += (flat @ flat[indices].T).mul_(reach)
        return total
