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
    """

    size: int
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

    def __init__(self, matrix: Float[Tensor, "n n"]):
        self.matrix = matrix
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
