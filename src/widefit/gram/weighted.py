"""Bᵀ H B: H as a loss sees it whose curvature in the outputs of a sample is B Bᵀ."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import Operator


class WeightedGram(Operator):
    """Bᵀ H B with B block-diagonal, a block for every few consecutive rows of H (the generalized Gauss-Newton matrix).

    Parameters
    ----------
    operator
        H.
    root
        B, shape (blocks, s, s) with blocks · s the size of H; (n, 1, 1) for a diagonal.

    Raises
    ------
    ValueError
        Blocks that do not fit H.
    """

    def __init__(self, operator: Operator, root: Float[Tensor, "blocks s s"]):
        if root.shape[0] * root.shape[1] != operator.size:
            raise ValueError(f"root must have blocks of {operator.size} rows in all, got {tuple(root.shape)}")
        self.operator, self.root = operator, root
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self.outputs, self.processes = operator.outputs, operator.processes

    def matvec(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        return block_times(self.root.mT, self.operator.matvec(block_times(self.root, vectors)))

    def diagonal(self) -> Float[Tensor, " n"]:
        blocks = self.operator.block_diagonal(self.root.shape[1])
        return torch.einsum("bij,bik,bkj->bj", self.root, blocks, self.root).reshape(-1)

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        wide = self.root.shape[1]
        rows = (indices // wide)[:, None] * wide + torch.arange(wide, device=self.device)
        needed = self.operator.columns(rows.reshape(-1)).reshape(self.size, len(indices), wide)
        right = torch.einsum("nrs,rs->nr", needed, self.root[indices // wide, :, indices % wide])
        return block_times(self.root.mT, right)

    def dense(self) -> Float[Tensor, "n n"]:
        right = block_times(self.root.mT, self.operator.dense())
        return block_times(self.root.mT, right.T)

    def mean_block(self) -> Float[Tensor, "samples samples"]:
        """The block of H between the mean curvatures of the samples."""
        block = self.operator.mean_block()
        level = (self.root.square().sum(dim=(1, 2)).reshape(len(block), -1).sum(dim=1) / self.outputs).sqrt()
        return level[:, None] * block * level


def block_times(blocks: Float[Tensor, "blocks s s"], vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
    """A block-diagonal matrix times vectors."""
    return (blocks @ vectors.reshape(*blocks.shape[:2], -1)).reshape(vectors.shape)
