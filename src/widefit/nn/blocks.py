"""Σ_r a_r φ(⟨w_r, x⟩) in cache-sized blocks of neurons."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.nn.initial import NEURONS_PER_STREAM
from widefit.nn.shifted_relu import ShiftedReLU

# Pre-activations, or weights, of one block of neurons in numbers: what a second-level cache holds (four times faster
# than blocks sixteen times larger).
_BLOCK = 1 << 18
_LEAST_ROWS = 64


def rows_of_block(samples: int, features: int) -> int:
    """Neurons a block: a power of two, so that blocks and streams of weights begin together."""
    return 1 << (max(_LEAST_ROWS, _BLOCK // max(1, samples, features)).bit_length() - 1)


def rows_of_span(samples: int, features: int) -> int:
    """Neurons whose weights are drawn at once: whole blocks, and whole streams of paired and of single neurons."""
    return max(rows_of_block(samples, features), 2 * NEURONS_PER_STREAM)


def spans(width: int, samples: int, features: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of `rows_of_span` neurons."""
    size = rows_of_span(samples, features)
    for first in range(0, width, size):
        yield first, min(first + size, width)


def span_sum(
    x: Float[Tensor, "n d"], weight: Float[Tensor, "rows d"], readout: Float[Tensor, "rows k"], activation: ShiftedReLU
) -> Float[Tensor, "n k"]:
    """φ(X Wᵀ) A over the neurons of a span, in the dtype of x."""
    size = rows_of_block(*x.shape)
    outputs = x.new_zeros(x.shape[0], readout.shape[1])
    for first in range(0, weight.shape[0], size):
        block = slice(first, first + size)
        z = torch.mm(x, weight[block].to(x.dtype).T)
        outputs = outputs + activation(z) @ readout[block].to(x.dtype)
    return outputs
