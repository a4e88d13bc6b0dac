"""Helpers of kernels that run for every row: they borrow the arrays they are given."""

from numba import njit

# Numba counts a reference to every array of an argument, in an atomic operation each: for a few dozen features that
# takes as long as the work on a row. These functions count none: they must allocate nothing and return numbers alone.
# Kernels call them, Python does not: the wrappers that it would need take a tenth of the time of compilation.
borrowing = njit(  # pyright: ignore[reportCallIssue]
    nogil=True, cache=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
