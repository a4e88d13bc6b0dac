"""Bits of 64-bit words, in one machine instruction each where Numba's own code needs a dozen."""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def _count_bits_code(typing, word):
    """Number of bits set in a uint64."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


def _lowest_bit_code(typing, word):
    """Position of the lowest bit set in a uint64 other than 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


count_bits: Callable = intrinsic(_count_bits_code)
lowest_bit: Callable = intrinsic(_lowest_bit_code)


@njit(nogil=True, cache=True, inline="always")
def without_lowest_bit(word):
    """Return a uint64 other than 0 with its lowest bit cleared."""
    return word & (word - np.uint64(1))


@njit(nogil=True, cache=True)
def positions(bits, words, out):
    """Write the ascending positions of the bits set in some words; return how many."""
    found = 0
    for w in range(words):
        word = bits[w]
        while word != 0:
            out[found] = 64 * w + lowest_bit(word)
            found += 1
            word = without_lowest_bit(word)
    return found
