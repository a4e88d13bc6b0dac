"""The Gaussian sketch: the reference that the fast ones are measured against."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.sketches.base import Sketch, check_operand, check_sizes

# Columns of S drawn at a time: S is never stored, each block is drawn again from its own seed.
_BLOCK = 4096


class Gaussian(Sketch):
    """Entries N(0, 1/s), independent: s · P flops a column, the smallest distortion for its size.

    Parameters
    ----------
    rows
        s.
    size
        P.
    seed
        Draws the matrix.
    """

    def __init__(self, rows: int, size: int, seed: int = 0):
        check_sizes(rows, size)
        self.rows, self.size, self.seed = rows, size, seed

    def apply(self, matrix: Float[Tensor, "P *c"]) -> Float[Tensor, "s *c"]:
        check_operand(matrix, self.size)
        result = matrix.new_zeros((self.rows, *matrix.shape[1:]))
        for block, start in enumerate(range(0, self.size, _BLOCK)):
            part = matrix[start : start + _BLOCK]
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + block)
            draw = torch.randn(self.rows, len(part), generator=generator, dtype=torch.float64)
            result += draw.to(matrix) @ part
        return result / math.sqrt(self.rows)
