"""Numba kernels of H where several outputs read the same neurons: J Jᵀ v from sparse factors, neuron by neuron.

As in `widefit.kernels.sparse` every kernel is serial and releases the GIL. Signals of k outputs are sparse rows, that
of sample i and output c in row i k + c, all k of a sample with the entries of the sample's activations (the *pattern*).
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def combine_signals(pattern_start, start, value, weights, first, last, out):
    """out[p] = Σ_c weights[i k + c] value of output c at entry p, for the entries of samples `first` to `last`."""
    outputs = (start.size - 1) // (pattern_start.size - 1)
    for i in range(first, last):
        target = out[pattern_start[i] : pattern_start[i + 1]]
        target[:] = 0
        for c in range(outputs):
            row = i * outputs + c
            factor, source = weights[row], value[start[row] : start[row + 1]]
            for p in range(target.size):
                target[p] += factor * source[p]


@njit(nogil=True, cache=True)
def spread_signals(pattern_start, start, value, at_entries, first, last, out):
    """out[i k + c] += Σ_p value of output c at entry p · at_entries[p], for samples `first` to `last`."""
    outputs = (start.size - 1) // (pattern_start.size - 1)
    for i in range(first, last):
        source = at_entries[pattern_start[i] : pattern_start[i + 1]]
        for c in range(outputs):
            row = i * outputs + c
            signal = value[start[row] : start[row + 1]]
            total = 0.0
            for p in range(source.size):
                total += signal[p] * source[p]
            out[row] += total


@njit(nogil=True, cache=True)
def signal_products(pattern_start, start, value, similarity, first, last, out):
    """out[i, c, e] += similarity_ii ⟨signal of output c, signal of output e⟩ for samples `first` to `last`."""
    outputs = out.shape[1]
    for i in range(first, last):
        size = pattern_start[i + 1] - pattern_start[i]
        for c in range(outputs):
            for e in range(c + 1):
                left, right = start[i * outputs + c], start[i * outputs + e]
                total = 0.0
                for p in range(size):
                    total += np.float64(value[left + p]) * value[right + p]
                out[i, c, e] += similarity[i, i] * total
                if e < c:
                    out[i, e, c] += similarity[i, i] * total


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def sum_over_samples(
    similarity, column_start, row, entry, other_start, other_row, other_entry, other_value, first, last, out
):
    """out[p] = Σ_j similarity_ij u_jr for every entry p = (i, r) of a pattern, for neurons `first` to `last`.

    Parameters
    ----------
    similarity : (n, n'), float64
    column_start, row, entry : the pattern in sparse columns
    other_start, other_row, other_entry : those of u in sparse columns, n' rows
    other_value : the values of u, in the order of its rows
    """
    for r in range(first, last):
        low, high = other_start[r], other_start[r + 1]
        samples = other_row[low:high]
        u = np.empty(high - low)
        for q in range(high - low):
            u[q] = other_value[other_entry[low + q]]
        for p in range(column_start[r], column_start[r + 1]):
            source, total = similarity[row[p]], 0.0
            for q in range(u.size):
                total += source[samples[q]] * u[q]
            out[entry[p]] = total
