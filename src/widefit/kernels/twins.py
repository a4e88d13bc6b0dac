"""Numba kernels on pairs of fire rows that are nearly equal: the two neurons of a pair start with the same weights."""

import numpy as np
from numba import njit

from widefit.kernels.fire_rows import fired_samples, row_limit


@njit(nogil=True, cache=True)
def count_differences(rows, first, second, samples, most, out):
    """Write how many samples one of the rows first_q and second_q fires on alone, −1 where there are too many.

    Parameters
    ----------
    rows : fire rows
    first, second : (pairs,) integers
    samples : n
    most : scalar, the part of the samples of both rows up to which they are worth comparing
    out : (pairs,) int64
    """
    one = np.empty(samples + 1, np.int32)
    other = np.empty(samples + 1, np.int32)
    limit = row_limit(rows.words, samples)
    for q in range(first.size):
        a, b = first[q], second[q]
        if _same(rows, a, b, limit):
            out[q] = 0
            continue
        k = fired_samples(rows, a, samples, one)
        j = fired_samples(rows, b, samples, other)
        found = _differences(one, k, other, j, other, one, 0, False)
        out[q] = found if found <= most * (k + j) else -1


@njit(nogil=True, cache=True)
def list_differences(rows, first, second, samples, start, places, gained):
    """Write the samples that one of two rows fires on alone, ascending; gained_p where that is the second.

    Parameters
    ----------
    rows, first, second, samples : as in `count_differences`
    start : (pairs + 1,) int64, where those of each pair begin
    places : (differences,) int32
    gained : (differences,) bool
    """
    one = np.empty(samples + 1, np.int32)
    other = np.empty(samples + 1, np.int32)
    for q in range(first.size):
        if start[q + 1] > start[q]:
            k = fired_samples(rows, first[q], samples, one)
            j = fired_samples(rows, second[q], samples, other)
            _differences(one, k, other, j, places, gained, start[q], True)


@njit(nogil=True, cache=True)
def _same(rows, a, b, limit):
    """Whether two rows are equal."""
    counts, start, words = rows
    if counts[a] != counts[b]:
        return False
    size = min(np.int64(counts[a]), limit)
    low = np.int64(start[a])
    high = np.int64(start[b])
    p = 0
    while p < size and words[low + p] == words[high + p]:
        p += 1
    return p == size


@njit(nogil=True, cache=True)
def _differences(one, k, other, j, places, gained, at, writes):
    """Count the samples in one of two ascending lists alone, and write them from `at` on if asked to."""
    p = q = found = 0
    while p < k or q < j:
        if p < k and q < j and one[p] == other[q]:
            p += 1
            q += 1
            continue
        second = p == k or (q < j and other[q] < one[p])
        if writes:
            places[at + found] = other[q] if second else one[p]
            gained[at + found] = second
        found += 1
        if second:
            q += 1
        else:
            p += 1
    return found


@njit(nogil=True, cache=True)
def collect_differences(twins, inputs, vector, sums):
    """Add Xᵀ E v of every row, E its differences from a second neuron.

    Parameters
    ----------
    twins : Twins
    inputs : (n, d)
    vector : (≥ n,)
    sums : (rows, ≥ d)
    """
    for r in range(twins.weights.size):
        for p in range(twins.start[r], twins.start[r + 1]):
            i = twins.samples[p]
            value = vector[i] if twins.gained[p] else -vector[i]
            for c in range(inputs.shape[1]):
                sums[r, c] += value * inputs[i, c]


@njit(nogil=True, cache=True)
def spread_differences(twins, inputs, sums, out):
    """Add E X sums_r of every row to out; see `collect_differences`."""
    for r in range(twins.weights.size):
        for p in range(twins.start[r], twins.start[r + 1]):
            i = twins.samples[p]
            found = np.float64(0)
            for c in range(inputs.shape[1]):
                found += sums[r, c] * inputs[i, c]
            out[i] += found if twins.gained[p] else -found


@njit(nogil=True, cache=True)
def add_columns_of_differences(twins, place, chosen, out):
    """Add what differences change the columns of Sᵀ diag(w) S by, for rows stored as bitsets of uint32.

    Parameters
    ----------
    twins : Twins
    place : (n,) int32, the column of out that a sample has, or −1
    chosen : (columns,) the samples
    out : (columns, n) float64
    """
    counts, start, words = twins.rows
    n = place.size
    for r in range(counts.size):
        first = twins.start[r]
        last = twins.start[r + 1]
        if first == last:
            continue
        base = np.int64(start[r])
        other = twins.others[r]
        for q in range(chosen.size):
            i = np.int64(chosen[q])
            if (words[base + (i >> 5)] >> np.uint32(i & 31)) & np.uint32(1):
                _add(twins, first, last, other, out[q])
        for p in range(first, last):
            q = place[twins.samples[p]]
            if q < 0:
                continue
            weight = other if twins.gained[p] else -other
            column = out[q]
            for i in range(n):
                if (words[base + (i >> 5)] >> np.uint32(i & 31)) & np.uint32(1):
                    column[i] += weight
            _add(twins, first, last, weight, column)


@njit(nogil=True, cache=True)
def _add(twins, first, last, weight, column):
    for p in range(first, last):
        column[twins.samples[p]] += weight if twins.gained[p] else -weight
