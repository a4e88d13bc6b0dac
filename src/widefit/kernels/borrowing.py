"""Helpers of kernels that run for every row: they borrow the arrays they are given."""

from numba import njit

# Numba counts a reference to every array of an argument, in an atomic operation each: for a few dozen features that
# takes as long as the work on a row. These functions count none: they must allocate nothing and return numbers alone.
borrowing = njit(nogil=True, cache=True, _nrt=False)  # pyright: ignore[reportCallIssue]
