"""The subsampled randomized Hadamard transform."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.sketches.base import Sketch, check_operand, check_sizes


class SRHT(Sketch):
    """S = √(q/s) · R H D: random signs, Walsh-Hadamard transform, s of its q = 2^⌈log₂ P⌉ rows without repetition.

    P log P operations a column (Ailon and Chazelle, STOC 2006; Tropp, arXiv 1011.1595).

    Parameters
    ----------
    rows
        s ≤ 2^⌈log₂ P⌉.
    size
        P.
    seed
        Draws the matrix.

    Raises
    ------
    ValueError
        More rows than the transform has.
    """

    def __init__(self, rows: int, size: int, seed: int = 0):
        check_sizes(rows, size)
        self.padded = next_power_of_two(size)
        if rows > self.padded:
            raise ValueError(f"SRHT of {size} numbers has {self.padded} rows to draw from, got rows={rows}")
        self.rows, self.size = rows, size
        generator = torch.Generator().manual_seed(seed)
        self.signs = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
        self.chosen = torch.randperm(self.padded, generator=generator)[:rows]

    def apply(self, matrix: Float[Tensor, "P *c"]) -> Float[Tensor, "s *c"]:
        check_operand(matrix, self.size)
        signed = self.signs.to(matrix).reshape(-1, *(1,) * (matrix.ndim - 1)) * matrix
        padded = matrix.new_zeros((self.padded, *matrix.shape[1:]))
        padded[: self.size] = signed
        # (H/√q) is orthogonal; keeping s of q rows needs √(q/s): together 1/√s on the plain transform.
        return walsh_hadamard(padded)[self.chosen.to(matrix.device)] / math.sqrt(self.rows)


def walsh_hadamard(values: Float[Tensor, "q *c"]) -> Float[Tensor, "q *c"]:
    """H v, unnormalized, for q a power of two: log₂ q passes of sums and differences along the first dimension."""
    shape = values.shape
    half = 1
    while half < shape[0]:
        pairs = values.reshape(shape[0] // (2 * half), 2, half, *shape[1:])
        values = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], dim=1)
        half *= 2
    return values.reshape(shape)


def next_power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()
