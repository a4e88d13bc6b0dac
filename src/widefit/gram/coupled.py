"""H of a deep network with several outputs, as products with sparse factors: n² numbers a layer, not (n k)²."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import GramOperator
from widefit.gram.sparse_layers import sparse_khatri_rao
from widefit.linalg.layer_factors import LayerFactors, along_step, block_products, combined, output_gram


class CoupledGram(GramOperator):
    """H = Σ_l (Δ_l Δ_lᵀ) ∘ (A_l A_lᵀ ⊗ 11ᵀ), exactly, as an operator in float64 (section 5 of arXiv 2112.07628).

    A product takes about p² m n² + 4 n k p m additions a layer of m neurons that fire with probability p.

    Parameters
    ----------
    layers
        At least one, of the same n and k.
    threads
        Cores to use; no result depends on it.
    """

    def __init__(self, layers: Sequence[LayerFactors], threads: int = 1):
        self._layers, self._threads = tuple(layers), threads
        self.samples, self.outputs = layers[0].pattern.rows, layers[0].signals.shape[1]
        self.size = self.samples * self.outputs
        self.dtype, self.device = torch.float64, torch.device("cpu")

    def matmul(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        columns = vectors.numpy().reshape(self.samples, self.outputs, -1)
        products = np.zeros_like(columns)
        for column in range(columns.shape[2]):
            weights, out = np.ascontiguousarray(columns[:, :, column]), np.zeros((self.samples, self.outputs))
            for layer in self._layers:
                value = combined(layer.pattern, layer.signals, weights, self._threads)
                along_step(layer.pattern, layer.signals, layer.similarity, layer.pattern, value, out, self._threads)
            products[:, :, column] = out
        return torch.from_numpy(products.reshape(vectors.shape))

    def diagonal(self) -> Float[Tensor, " n"]:
        return self.block_diagonal(self.outputs).diagonal(dim1=1, dim2=2).reshape(-1)

    def block_diagonal(self, size: int) -> Float[Tensor, "blocks size size"]:
        if size != self.outputs:
            return super().block_diagonal(size)
        blocks = np.zeros((self.samples, size, size))
        for layer in self._layers:
            blocks += block_products(layer, self._threads)
        return torch.from_numpy(blocks)

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        units = torch.zeros(self.size, len(indices), dtype=self.dtype)
        units[indices, torch.arange(len(indices))] = 1
        return self.matmul(units)

    def dense(self) -> Float[Tensor, "n n"]:
        layers = self._layers
        return sparse_khatri_rao(
            [layer.signal_rows() for layer in layers], [layer.similarity for layer in layers], self._threads
        ).matrix

    def mean_block(self) -> Float[Tensor, "samples samples"]:
        """Mean over the outputs of the blocks of H of one output: what all of them tend to as the layers get wider."""
        total = sum(output_gram(layer, self._threads) for layer in self._layers)
        return torch.from_numpy(np.asarray(total) / self.outputs)
