"""H = J Jᵀ as an operator on sample space."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.sketches.base import Sketch


class GramOperator(ABC):
    """A symmetric positive semi-definite n × n matrix that may or may not be stored.

    Attributes
    ----------
    size
        n.
    dtype, device
        Of everything that goes in and comes out.
    outputs
        k where n counts pairs of a sample and an output, output c of sample i in row i k + c.
    """

    size: int
    outputs: int = 1
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def matmul(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        """H v."""

    @abstractmethod
    def diagonal(self) -> Float[Tensor, " n"]:
        """diag H."""

    @abstractmethod
    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        """H[:, indices]."""

    def dense(self) -> Float[Tensor, "n n"]:
        """H itself: n² numbers, a fresh tensor that the caller may overwrite."""
        return self.columns(torch.arange(self.size, device=self.device))

    def block_diagonal(self, size: int) -> Float[Tensor, "blocks size size"]:
        """The blocks of so many consecutive rows on the diagonal of H."""
        if size == 1:
            return self.diagonal()[:, None, None]
        blocks = self.dense().reshape(self.size // size, size, self.size // size, size)
        return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def mean_block(self) -> Float[Tensor, "samples samples"]:
        """Mean over the outputs of their blocks of H; H itself for one output. A fresh tensor."""
        if self.outputs == 1:
            return self.dense()
        samples = self.size // self.outputs
        blocks = self.dense().reshape(samples, self.outputs, samples, self.outputs)
        return blocks.diagonal(dim1=1, dim2=3).mean(dim=2)

    @property
    def factor_size(self) -> int | None:
        """P where H = J Jᵀ is known through a factor J (n × P) that can be sketched; None where H is all there is."""
        return None

    def sketched_factor(self, sketch: Sketch) -> Float[Tensor, "s n"]:
        """S Jᵀ for a sketch of `factor_size` numbers.

        Raises
        ------
        ValueError
            The operator knows no factor.
        """
        raise ValueError(f"{type(self).__name__} holds H without a factor to sketch; use Cholesky, CG or NystromCG")


class DenseGram(GramOperator):
    """H given as a matrix."""

    def __init__(self, matrix: Float[Tensor, "n n"], outputs: int = 1):
        self.matrix = matrix
        self.outputs = outputs
        self.size = matrix.shape[0]
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matmul(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        return self.matrix @ vectors

    def diagonal(self) -> Float[Tensor, " n"]:
        return self.matrix.diagonal()

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        return self.matrix[:, indices]

    def dense(self) -> Float[Tensor, "n n"]:
        return self.matrix.clone()
