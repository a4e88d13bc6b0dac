"""The interface of a sketch: a random S (s × P) with ‖S v‖² = ‖v‖² in expectation."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor


class Sketch(ABC):
    """One drawn sketching matrix; the same seed draws the same matrix.

    Attributes
    ----------
    rows
        s, the size of the sketch.
    size
        P, the size of what is sketched.
    """

    rows: int
    size: int

    @abstractmethod
    def apply(self, matrix: Float[Tensor, "P *c"]) -> Float[Tensor, "s *c"]:
        """S A."""

    def dense(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, "s P"]:
        """S itself, for tests and small sizes."""
        return self.apply(torch.eye(self.size, dtype=dtype))


def check_sizes(rows: int, size: int) -> None:
    """Refuse a sketch that has no rows or nothing to sketch."""
    if rows < 1 or size < 1:
        raise ValueError(f"a sketch needs rows >= 1 and size >= 1, got rows={rows}, size={size}")


def check_operand(matrix: Tensor, size: int) -> None:
    """Refuse an operand whose first dimension is not the size the sketch was drawn for."""
    if matrix.shape[0] != size:
        raise ValueError(f"this sketch was drawn for vectors of {size} numbers, got {matrix.shape[0]}")
