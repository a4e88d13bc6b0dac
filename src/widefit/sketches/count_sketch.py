"""CountSketch: every coordinate is added to a few rows with a random sign."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.sketches.base import Sketch, check_operand, check_sizes


class CountSketch(Sketch):
    """`nonzeros` random signs a column of S: nnz(A) · nonzeros operations.

    One nonzero is the CountSketch of Clarkson and Woodruff (STOC 2013); more are OSNAP (Nelson and Nguyen, FOCS 2013),
    which embeds the same subspace with far fewer rows.

    Parameters
    ----------
    rows
        s; `nonzeros` must not exceed it.
    size
        P.
    nonzeros
        Nonzeros a column, each in its own stripe of the rows, scaled by 1/√nonzeros.
    seed
        Draws the matrix.
    """

    def __init__(self, rows: int, size: int, nonzeros: int = 4, seed: int = 0):
        check_sizes(rows, size)
        if nonzeros < 1:
            raise ValueError(f"nonzeros must be at least 1, got {nonzeros}")
        self.rows, self.size = rows, size
        self.nonzeros = min(nonzeros, rows)
        generator = torch.Generator().manual_seed(seed)
        edges = [rows * stripe // self.nonzeros for stripe in range(self.nonzeros + 1)]
        self.targets = [torch.randint(low, high, (size,), generator=generator) for low, high in pairwise(edges)]
        self.signs = [torch.randint(0, 2, (size,), generator=generator) * 2 - 1 for _ in range(self.nonzeros)]

    def apply(self, matrix: Float[Tensor, "P *c"]) -> Float[Tensor, "s *c"]:
        check_operand(matrix, self.size)
        result = matrix.new_zeros((self.rows, *matrix.shape[1:]))
        for target, sign in zip(self.targets, self.signs, strict=True):
            signed = sign.to(matrix).reshape(-1, *(1,) * (matrix.ndim - 1)) * matrix
            result.index_add_(0, target.to(matrix.device), signed)
        return result / math.sqrt(self.nonzeros)
