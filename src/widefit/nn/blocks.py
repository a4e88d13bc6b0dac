"""Sum Σ_r a_r φ(⟨w_r, x⟩) in cache-sized blocks of neurons."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from widefit.linalg.gaussian_rows import NEURONS_PER_STREAM
from widefit.nn.shifted_relu import ShiftedReLU

# Pre-activations of one block of neurons: as many numbers as a second-level cache holds (four times faster than blocks
# sixteen times larger).
_BLOCK = 1 << 18
# Weights of one block, at most: where samples are few, drawing ahead bounds the block.
_WEIGHTS = 1 << 21
_LEAST_ROWS = 64
_CACHE_LINE = 64


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """Return the same dtype in NumPy."""
    return torch.empty(0, dtype=dtype).numpy().dtype


def aligned_empty(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Allocate memory for weights that begins at a cache line, so that products do not depend on where it lies.

    It is NumPy's: that asks for huge pages, and reading weights once takes two thirds of the time.
    """
    size = rows * columns * dtype.itemsize
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return torch.from_numpy(memory[start : start + size].view(numpy_dtype(dtype)).reshape(rows, columns))


def block_sizes(samples: int, features: int) -> tuple[int, int]:
    """Return the neurons whose weights are drawn at once, whole streams even when paired, and those of a block."""
    stream = 2 * NEURONS_PER_STREAM
    rows = max(_LEAST_ROWS, min(_BLOCK // max(1, samples), _WEIGHTS // features))
    if rows >= stream:
        span = rows // stream * stream
        return span, span
    return stream, 1 << (rows.bit_length() - 1)


def spans(width: int, samples: int, features: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges of neurons whose weights are drawn at once."""
    size, _ = block_sizes(samples, features)
    for first in range(0, width, size):
        yield first, min(first + size, width)


def span_sum(
    x: Float[Tensor, "n d"], weight: Float[Tensor, "rows d"], readout: Float[Tensor, "rows k"], activation: ShiftedReLU
) -> Float[Tensor, "n k"]:
    """Return φ(X Wᵀ) A over the neurons of a span, in the dtype of x."""
    _, size = block_sizes(*x.shape)
    outputs = x.new_zeros(x.shape[0], readout.shape[1])
    for first in range(0, weight.shape[0], size):
        block = slice(first, first + size)
        z = x @ weight[block].to(x.dtype).T
        outputs = outputs + activation(z) @ readout[block].to(x.dtype)
    return outputs
