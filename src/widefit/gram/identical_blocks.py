"""K ⊗ I: H of outputs that share everything, as those of a readout do."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import Operator


class IdenticalBlocks(Operator):
    """H of k outputs with the same block K and nothing between them, as an operator with K's own products.

    A readout with inputs A and a bias has K = w² (A Aᵀ + 1), w the weight of every row: `readout_gram`.

    Parameters
    ----------
    block
        K, n × n.
    outputs
        k.
    """

    def __init__(self, block: Operator, outputs: int):
        self.kernel = block
        self.outputs = outputs
        self.size = block.size * outputs
        self.dtype, self.device = block.dtype, block.device

    def matvec(self, vectors: Float[Tensor, "nk *c"]) -> Float[Tensor, "nk *c"]:
        return self.kernel.matvec(vectors.reshape(self.kernel.size, -1)).reshape(vectors.shape)

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "nk r"]:
        found = self.kernel.columns(indices // self.outputs)
        result = found.new_zeros(self.kernel.size, self.outputs, len(indices))
        result[:, indices % self.outputs, torch.arange(len(indices), device=self.device)] = found
        return result.flatten(0, 1)

    def block(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r r"]:
        output = indices % self.outputs
        return self.kernel.block(indices // self.outputs) * (output[:, None] == output)

    def diagonal(self) -> Float[Tensor, " nk"]:
        return self.kernel.diagonal().repeat_interleave(self.outputs)

    def trace(self) -> float:
        return self.outputs * self.kernel.trace()

    def mean_block(self) -> Float[Tensor, "n n"]:
        """K."""
        return self.kernel.dense()

    def dense(self) -> Float[Tensor, "nk nk"]:
        return torch.kron(self.kernel.dense(), torch.eye(self.outputs, dtype=self.dtype, device=self.device))
