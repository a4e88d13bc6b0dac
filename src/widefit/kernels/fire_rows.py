"""Numba kernels on fire rows: the samples that each neuron of a block fires on.

Every kernel is serial and releases the GIL: the callers run fixed chunks of neurons or samples in threads of their own
and combine them in order, so a result never depends on the number of threads, and no second thread pool competes with
that of torch.

**Fire rows.** A row says on which of n samples a neuron fires, in words of w bits and in the cheaper of two forms: the
ascending sample indices when there are at most ⌈n/w⌉ of them, a bitset of ⌈n/w⌉ words otherwise. A pattern therefore
takes at most rows · n / 8 bytes, and w / 8 bytes a firing pair when few pairs fire.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.bits import count_bits, lowest_bit, without_lowest_bit
from widefit.kernels.borrowing import borrowing


class FireRows(NamedTuple):
    """Fire rows of a block of neurons; they may stand in any order and with gaps between them.

    Attributes
    ----------
    counts : (rows,) integers, number of samples that each row fires on
    start : (rows,) or longer, integers, first word of each row
    words : uint32 or, where noted, uint16
    """

    counts: np.ndarray
    start: np.ndarray
    words: np.ndarray


@borrowing
def fired_samples(rows, row, samples, out):
    """Write the ascending indices of the samples that `row` fires on into out[:k]; return k."""
    words = rows.words
    limit = row_limit(words, samples)
    k = np.int64(rows.counts[row])
    base = np.int64(rows.start[row])
    if k <= limit:
        for p in range(k):
            out[p] = words[base + p]
        return k
    k = 0
    for w in range(limit):
        bits = np.uint64(words[base + w])
        while bits != 0:
            out[k] = 8 * words.itemsize * w + lowest_bit(bits)
            k += 1
            bits = without_lowest_bit(bits)
    return k


@njit(nogil=True, cache=True)
def list_fired(rows, row, samples, out):
    """Do as `fired_samples`, for callers in Python."""
    return fired_samples(rows, row, samples, out)


@njit(nogil=True, cache=True)
def row_limit(words, samples):
    """Return the largest number of samples that a row holds as indices: the words of a bitset."""
    return (samples + 8 * words.itemsize - 1) // (8 * words.itemsize)


@borrowing
def store_row(fired, k, n, base, words):
    """Store a fire row at `base`; return the words it takes."""
    limit = row_limit(words, n)
    width = 8 * words.itemsize
    if k <= limit:
        for p in range(k):
            words[base + p] = fired[p]
        return k
    for w in range(limit):
        words[base + w] = 0
    for p in range(k):
        w = base + fired[p] // width
        words[w] = np.uint64(words[w]) | (np.uint64(1) << np.uint64(fired[p] % width))
    return limit


@njit(nogil=True, cache=True)
def fire_block(z, threshold, coefficients, before, after, scratch, outputs):
    """Find who fires in a block of pre-activations, add it to the outputs, and count the pairs that flip.

    Parameters
    ----------
    z : (rows, n) pre-activations ⟨w_r, x_i⟩
    threshold : scalar of the dtype of z; a neuron fires when z > threshold
    coefficients : (rows,) float64, a_r / √m
    before : fire rows to compare with, of uint32; without rows there is nothing to compare with
    after : fire rows, written one behind the other; words, uint32, holds rows · ⌈n/32⌉
    scratch : (2, n + 1) int32
    outputs : (n,) float64, added to

    Returns
    -------
    flips : number of pairs that changed
    """
    rows, n = z.shape
    counts, start, words = after
    limit = (n + 31) // 32
    fired = scratch[0]
    flips = 0
    start[0] = 0
    for r in range(rows):
        k = 0
        for i in range(n):
            # Branchless: the index is always written and kept only when the pair fires.
            fired[k] = i
            # NaN fires: weights that have overflowed must show in the outputs.
            k += not (z[r, i] <= threshold)
        a = coefficients[r]
        for p in range(k):
            i = fired[p]
            outputs[i] += a * (z[r, i] - threshold)

        base = start[r]
        counts[r] = k
        if k <= limit:
            for p in range(k):
                words[base + p] = fired[p]
            start[r + 1] = base + k
        else:
            for w in range(limit):
                words[base + w] = 0
            for p in range(k):
                i = fired[p]
                words[base + (i >> 5)] |= np.uint32(1) << np.uint32(i & 31)
            start[r + 1] = base + limit

        if before.counts.size > 0:
            flips += _differences(before, r, words[base : start[r + 1]], fired, k, scratch[1])
    return flips


@borrowing
def _differences(rows, row, words, fired, k, scratch):
    """Count the samples on which one of `row` and another row, given as words and as a list, fires alone."""
    n = scratch.size - 1
    limit = (n + 31) // 32
    if k > limit and rows.counts[row] > limit:
        differ = 0
        base = rows.start[row]
        for w in range(limit):
            differ += count_bits(np.uint64(words[w] ^ rows.words[base + w]))
        return differ
    q = fired_samples(rows, row, n, scratch)
    return k + q - 2 * common(fired, k, scratch, q)


@borrowing
def common(a, size_a, b, size_b):
    """Return the size of the intersection of two ascending lists."""
    p = q = hits = 0
    while p < size_a and q < size_b:
        if a[p] < b[q]:
            p += 1
        elif a[p] > b[q]:
            q += 1
        else:
            hits += 1
            p += 1
            q += 1
    return hits


@njit(nogil=True, cache=True)
def step_block(weights, anchor, shrink, coefficients, g, inputs, rows, scratch, out):
    """Write out_r = w_r − shrink (w_r − anchor_r) − coefficient_r Σ_{i: r fires on i} g_i x_i.

    Parameters
    ----------
    weights, out : (rows, d)
    anchor : (rows, d), or (0, d) when shrink is 0
    shrink : float64
    coefficients : (rows,) float64, a_r / √m
    g : (n,) float64
    inputs : (n, d)
    rows : fire rows of the block
    scratch : (2, n + 1) int32
    """
    sums = np.empty(inputs.shape[1])
    for r in range(weights.shape[0]):
        step_row(weights, anchor, shrink, coefficients, g, inputs, rows, r, scratch[0], sums, out[r])


@borrowing
def step_row(weights, anchor, shrink, coefficients, g, inputs, rows, r, fired, sums, target):
    """Write one row of `step_block` into target (d,); fired (n + 1,) int32 and sums (d,) float64 are overwritten."""
    k = fired_samples(rows, r, inputs.shape[0], fired)
    sums[:] = 0
    for p in range(k):
        add_scaled(g[fired[p]], inputs[fired[p]], sums)
    move_row(weights, anchor, shrink, r, coefficients[r], sums, target)


@borrowing
def add_scaled(factor, x, sums):
    """Add factor · x to sums, all (d,): in float64, as terms that nearly cancel are lost one by one beside a weight."""
    for c in range(sums.size):
        sums[c] += factor * np.float64(x[c])


@borrowing
def move_row(weights, anchor, shrink, r, coefficient, sums, target):
    """Write w_r − shrink (w_r − anchor_r) − coefficient · sums into target, added up in float64."""
    for c in range(target.size):
        moved = np.float64(weights[r, c])
        if shrink != 0:
            moved -= shrink * (moved - np.float64(anchor[r, c]))
        target[c] = moved - coefficient * sums[c]


@njit(nogil=True, cache=True)
def response_block(values, coefficients, rows, scratch, outputs):
    """Add Σ_{r fires on i} coefficient_r values_ri to outputs_i: J δ for a displacement δ with `values` = δ Xᵀ."""
    n = values.shape[1]
    fired = scratch[0]
    for r in range(values.shape[0]):
        k = fired_samples(rows, r, n, fired)
        for p in range(k):
            i = fired[p]
            outputs[i] += coefficients[r] * values[r, i]


@njit(nogil=True, cache=True)
def unpack_rows(rows, first, last, values, out):
    """Write out[r − first, i] = values[r] where row r fires on i, 0 elsewhere; out is (last − first, n)."""
    n = out.shape[1]
    fired = np.empty(n + 1, np.int32)
    for r in range(first, last):
        target = out[r - first]
        target[:] = 0
        k = fired_samples(rows, r, n, fired)
        for p in range(k):
            target[fired[p]] = values[r]
