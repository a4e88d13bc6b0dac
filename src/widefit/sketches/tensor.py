"""Sketches of u ⊗ v from u and v alone: the tensor product is never formed."""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.sketches.base import Sketch, check_operand, check_sizes
from widefit.sketches.srht import next_power_of_two, walsh_hadamard


class TensorPairSketch(Sketch):
    """A sketch of R^(p·q) that is fast on products: `apply_pair(U, V)[:, c]` is S (U[:, c] ⊗ V[:, c])."""

    left: int
    right: int

    @abstractmethod
    def apply_pair(self, left: Float[Tensor, "p c"], right: Float[Tensor, "q c"]) -> Float[Tensor, "s c"]:
        """S (uᵢ ⊗ vᵢ) for every pair of columns."""

    def apply(self, matrix: Float[Tensor, "P *c"]) -> Float[Tensor, "s *c"]:
        check_operand(matrix, self.size)
        # Σ_a S (e_a ⊗ row a): the plain matrix is a sum of products with unit vectors.
        columns = matrix.reshape(self.left, self.right, -1)
        result = matrix.new_zeros(self.rows, columns.shape[2])
        for index in range(self.left):
            unit = matrix.new_zeros(self.left, columns.shape[2])
            unit[index] = 1
            result += self.apply_pair(unit, columns[index])
        return result.reshape(self.rows, *matrix.shape[1:])

    def _check_pair(self, left: Tensor, right: Tensor) -> None:
        if left.shape[0] != self.left or right.shape[0] != self.right or left.shape[1] != right.shape[1]:
            raise ValueError(
                f"this sketch takes columns of {self.left} and {self.right} numbers, as many of each; "
                f"got {tuple(left.shape)} and {tuple(right.shape)}"
            )


class TensorSRHT(TensorPairSketch):
    """S (u ⊗ v) = (1/√s) · P (H D₁ u ∘ H D₂ v), P picking s pairs of rows, one from each transform.

    The rows are drawn from the p̂ and q̂ rows of the two transforms independently (Ahle et al., arXiv 1909.01410,
    Definition 15); p log p + q log q + s operations a product.

    Parameters
    ----------
    rows
        s.
    left, right
        p and q.
    seed
        Draws the matrix.
    """

    def __init__(self, rows: int, left: int, right: int, seed: int = 0):
        check_sizes(rows, left * right)
        self.rows, self.left, self.right, self.size = rows, left, right, left * right
        generator = torch.Generator().manual_seed(seed)
        self.signs = [torch.randint(0, 2, (size,), generator=generator) * 2 - 1 for size in (left, right)]
        self.padded = (next_power_of_two(left), next_power_of_two(right))
        self.chosen = [torch.randint(0, size, (rows,), generator=generator) for size in self.padded]

    def apply_pair(self, left: Float[Tensor, "p c"], right: Float[Tensor, "q c"]) -> Float[Tensor, "s c"]:
        self._check_pair(left, right)
        mixed = [self._mix(side, operand) for side, operand in enumerate((left, right))]
        return mixed[0] * mixed[1] / math.sqrt(self.rows)

    def _mix(self, side: int, operand: Float[Tensor, "p c"]) -> Float[Tensor, "s c"]:
        padded = operand.new_zeros(self.padded[side], operand.shape[1])
        padded[: operand.shape[0]] = self.signs[side].to(operand)[:, None] * operand
        return walsh_hadamard(padded)[self.chosen[side].to(operand.device)]


class TensorSketch(TensorPairSketch):
    """CountSketch of u ⊗ v: the circular convolution of two CountSketches, by FFT.

    (Pham and Pagh, KDD 2013); p + q + s log s operations a product.

    Parameters
    ----------
    rows
        s.
    left, right
        p and q.
    seed
        Draws the matrix.
    """

    def __init__(self, rows: int, left: int, right: int, seed: int = 0):
        check_sizes(rows, left * right)
        self.rows, self.left, self.right, self.size = rows, left, right, left * right
        generator = torch.Generator().manual_seed(seed)
        self.targets = [torch.randint(0, rows, (size,), generator=generator) for size in (left, right)]
        self.signs = [torch.randint(0, 2, (size,), generator=generator) * 2 - 1 for size in (left, right)]

    def apply_pair(self, left: Float[Tensor, "p c"], right: Float[Tensor, "q c"]) -> Float[Tensor, "s c"]:
        self._check_pair(left, right)
        spectra = []
        for target, sign, operand in zip(self.targets, self.signs, (left, right), strict=True):
            counts = operand.new_zeros(self.rows, operand.shape[1])
            counts.index_add_(0, target.to(operand.device), sign.to(operand)[:, None] * operand)
            spectra.append(torch.fft.rfft(counts, dim=0))
        return torch.fft.irfft(spectra[0] * spectra[1], n=self.rows, dim=0)
