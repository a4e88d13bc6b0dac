"""H = J Jᵀ and J as operators: what every front end provides and every solver takes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.processes import ALONE, Alone
from widefit.sketches.base import Sketch

# Columns of H that are made at a time where it is known by its products alone.
_COLUMNS = 256


class Jacobian(ABC):
    """J (rows × parameters) as an operator.

    Attributes
    ----------
    shape
        (M, P): M sample outputs (weighted and whitened), P parameters.
    dtype, device
        Type and place of everything that goes in and comes out.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def matvec(self, direction: Float[Tensor, "P *c"]) -> Float[Tensor, "M *c"]:
        """J v, for a vector or a block of them."""

    @abstractmethod
    def rmatvec(self, weights: Float[Tensor, "M *c"]) -> Float[Tensor, "P *c"]:
        """Jᵀ u, for a vector or a block of them."""

    @abstractmethod
    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        """J Jᵀ, summed in `dtype`, a fresh tensor."""

    @abstractmethod
    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        """J[indices]."""

    @abstractmethod
    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        """(first row, rows) from the top to the bottom, each block within the memory budget."""

    def diagonal(self) -> Float[Tensor, " M"]:
        """Squared norms of the rows."""
        return torch.cat([torch.linalg.vector_norm(block, dim=1).square() for _, block in self.row_blocks()])

    def gram_columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "M r"]:
        """(J Jᵀ)[:, indices]."""
        chosen = self.rows(indices)
        return torch.cat([block @ chosen.T for _, block in self.row_blocks()])

    def gram_block(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r r"]:
        """(J Jᵀ)[indices, indices]."""
        chosen = self.rows(indices)
        return chosen @ chosen.T

    def group_sums(self, signs: Float[Tensor, " M"], group: int) -> Float[Tensor, "g P"]:
        """Sums of signed rows over every `group` consecutive ones, the last over what is left: a count sketch of J."""
        groups = -(-self.shape[0] // group)
        total = torch.zeros(groups, self.shape[1], dtype=self.dtype, device=self.device)
        for start, block in self.row_blocks():
            rows = torch.arange(start, start + len(block), device=self.device)
            total.index_add_(0, rows // group, block * signs[rows, None])
        return total

    def sketched(self, sketch: Sketch) -> Float[Tensor, "s M"]:
        """S Jᵀ for a sketch of the parameter space."""
        return torch.cat([sketch.apply(block.T) for _, block in self.row_blocks()], dim=1)


class Operator(ABC):
    """A symmetric positive semi-definite n × n matrix that may or may not be stored.

    Only `matvec` must be given; whatever an operator knows better than by its products it overrides.

    Attributes
    ----------
    size
        n.
    dtype, device
        Type and place of everything that goes in and comes out.
    outputs
        k where n counts pairs of a sample and an output, output c of sample i in row i k + c.
    processes
        Those that call every method together, and may share out what is done with the results.
    """

    size: int
    outputs: int = 1
    processes: Alone = ALONE
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def matvec(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        """H v, for a vector or a block of them."""

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        """H[:, indices]."""
        units = torch.zeros(self.size, len(indices), dtype=self.dtype, device=self.device)
        units[indices, torch.arange(len(indices), device=self.device)] = 1
        return self.matvec(units)

    def block(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r r"]:
        """H[indices, indices]."""
        return self.columns(indices)[indices]

    def diagonal(self) -> Float[Tensor, " n"]:
        """diag H."""
        return torch.cat([self.block(rows).diagonal() for rows in self._rows().split(_COLUMNS)])

    def trace(self) -> float:
        """tr H, or an estimate of it."""
        return float(self.diagonal().sum())

    def block_diagonal(self, size: int) -> Float[Tensor, "blocks size size"]:
        """The blocks of so many consecutive rows on the diagonal of H."""
        if size == 1:
            return self.diagonal()[:, None, None]
        return torch.stack([self.block(rows) for rows in self._rows().view(-1, size)])

    def mean_block(self) -> Float[Tensor, "samples samples"]:
        """Mean over the outputs of their blocks of H, or an estimate of it; a fresh tensor."""
        if self.outputs == 1:
            return self.dense()
        blocks = (self.block(self._rows()[output :: self.outputs]) for output in range(self.outputs))
        return torch.as_tensor(sum(blocks)) / self.outputs

    def dense(self) -> Float[Tensor, "n n"]:
        """H itself: n² numbers, a fresh tensor that the caller may overwrite."""
        return torch.cat([self.columns(rows) for rows in self._rows().split(_COLUMNS)], dim=1)

    @property
    def factor(self) -> Jacobian | None:
        """J where H = J Jᵀ is known through it; None where H is all there is."""
        return None

    def _rows(self) -> Int[Tensor, " n"]:
        return torch.arange(self.size, device=self.device)


class DenseGram(Operator):
    """H given as a matrix."""

    def __init__(self, matrix: Float[Tensor, "n n"], outputs: int = 1):
        self.matrix = matrix
        self.outputs = outputs
        self.size = matrix.shape[0]
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matvec(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        return self.matrix @ vectors

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        return self.matrix[:, indices]

    def block(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r r"]:
        return self.matrix[indices[:, None], indices]

    def diagonal(self) -> Float[Tensor, " n"]:
        return self.matrix.diagonal()

    def block_diagonal(self, size: int) -> Float[Tensor, "blocks size size"]:
        blocks = self.matrix.reshape(self.size // size, size, self.size // size, size)
        return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def dense(self) -> Float[Tensor, "n n"]:
        return self.matrix.clone()
