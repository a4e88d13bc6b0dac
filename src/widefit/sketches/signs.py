"""Random signs by number: the same for a row wherever and whenever it is asked for."""

import torch
from jaxtyping import Float
from torch import Tensor

# Odd multipliers and shifts of the finalizer of MurmurHash3 (Appleby, public domain), as signed numbers of 64 bits.
_MULTIPLIERS = (-0x00AE502812AA7333, -0x3B314601E57A13AD)
_SHIFT = 33
# Distance of the sequences of two seeds: 2⁶⁴ over the golden ratio.
_SEEDS = -0x61C8864680B583EB


def random_signs(first: int, end: int, seed: int, dtype: torch.dtype) -> Float[Tensor, " n"]:
    """±1 for the numbers from `first` up to `end`, from a hash of number and seed."""
    state = torch.arange(first, end) + torch.tensor(seed + 1) * _SEEDS
    for multiplier in _MULTIPLIERS:
        state = (state ^ (state >> _SHIFT)) * multiplier
    state ^= state >> _SHIFT
    return ((state & 1) * 2 - 1).to(dtype)
