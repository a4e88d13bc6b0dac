"""Numba kernels of the two-layer engine.

Every kernel is serial and releases the GIL: the callers run fixed chunks of neurons or samples in threads of their own
and combine them in order, so a result never depends on the number of threads, and no second thread pool competes with
that of torch.

**Fire rows.** Which of n samples a neuron fires on is stored in words of w bits, in the cheaper of two forms: the
ascending sample indices when there are at most ⌈n/w⌉ of them, a bitset of ⌈n/w⌉ words otherwise. A block of rows is
three arrays: ``counts`` (rows,), ``start``, where each row begins, and ``words``, uint32 or, where noted, uint16; rows
may stand in any order and with gaps. So a pattern takes at most rows · n / 8 bytes, and w / 8 bytes a firing pair when
few pairs fire.
"""

import numpy as np
from numba import njit

from widefit.kernels.products import lowest_bit


@njit(nogil=True, cache=True)
def fired_samples(counts, start, words, row, samples, out):
    """Ascending indices of the samples that `row` fires on, into out[:k]; returns k."""
    limit = row_limit(words, samples)
    k, base = np.int64(counts[row]), np.int64(start[row])
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
            bits &= bits - np.uint64(1)
    return k


@njit(nogil=True, cache=True)
def row_limit(words, samples):
    """Samples that a row holds as indices at most; words that it takes otherwise."""
    return (samples + 8 * words.itemsize - 1) // (8 * words.itemsize)


@njit(nogil=True, cache=True, inline="always")
def _popcount32(x):
    x = x - ((x >> np.uint32(1)) & np.uint32(0x55555555))
    x = (x & np.uint32(0x33333333)) + ((x >> np.uint32(2)) & np.uint32(0x33333333))
    x = (x + (x >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    # Numba widens uint32 arithmetic to 64 bits: the mask drops what a 32-bit product would have lost.
    return np.int32(((x * np.uint32(0x01010101)) >> np.uint32(24)) & np.uint32(0xFF))


@njit(nogil=True, cache=True, inline="always")
def _popcount64(x):
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(nogil=True, cache=True)
def fire_block(z, threshold, coefficients, old_counts, old_start, old_words, counts, start, words, scratch, outputs):
    """Who fires in a block of pre-activations, what it adds to the outputs, and how many pairs flipped.

    Parameters
    ----------
    z : (rows, n) pre-activations ⟨w_r, x_i⟩
    threshold : scalar of the dtype of z; a neuron fires when z > threshold
    coefficients : (rows,) float64, a_r / √m
    old_counts, old_start, old_words : fire rows to compare with; old_counts of size 0 compares with nothing
    counts, start, words : fire rows, written; words holds rows · ⌈n/32⌉
    scratch : (2, n + 1) int32
    outputs : (n,) float64, added to

    Returns
    -------
    flips : number of pairs that changed
    """
    rows, n = z.shape
    limit = (n + 31) // 32
    fired, before = scratch[0], scratch[1]
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

        if old_counts.size > 0:
            if k > limit and old_counts[r] > limit:
                for w in range(limit):
                    flips += _popcount32(words[base + w] ^ old_words[old_start[r] + w])
            else:
                q = fired_samples(old_counts, old_start, old_words, r, n, before)
                flips += k + q - 2 * common(fired, k, before, q)
    return flips


@njit(nogil=True, cache=True)
def common(a, size_a, b, size_b):
    """Size of the intersection of two ascending lists."""
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
def step_block(weights, anchor, shrink, coefficients, g, inputs, counts, start, words, scratch, out):
    """out_r = w_r − shrink (w_r − anchor_r) − coefficient_r Σ_{i: r fires on i} g_i x_i.

    Parameters
    ----------
    weights, out : (rows, d)
    anchor : (rows, d), or (0, d) when shrink is 0
    shrink : scalar of the dtype of weights
    coefficients : (rows,) float64, a_r / √m
    g : (n,) float64
    inputs : (n, d)
    counts, start, words : fire rows of the block
    scratch : (2, n + 1) int32
    """
    rows, d = weights.shape
    n = inputs.shape[0]
    fired = scratch[0]
    for r in range(rows):
        target = out[r]
        target[:] = weights[r]
        if shrink != 0:
            for c in range(d):
                target[c] -= shrink * (target[c] - anchor[r, c])
        k = fired_samples(counts, start, words, r, n, fired)
        for p in range(k):
            i = fired[p]
            factor = inputs.dtype.type(coefficients[r] * g[i])
            x = inputs[i]
            for c in range(d):
                target[c] -= factor * x[c]


@njit(nogil=True, cache=True)
def response_block(values, coefficients, counts, start, words, scratch, outputs):
    """outputs_i += Σ_{r fires on i} coefficient_r values_ri: J times a displacement with products `values` with X."""
    rows, n = values.shape
    fired = scratch[0]
    for r in range(rows):
        k = fired_samples(counts, start, words, r, n, fired)
        for p in range(k):
            i = fired[p]
            outputs[i] += coefficients[r] * values[r, i]


@njit(nogil=True, cache=True)
def unpack_rows(counts, start, words, first, last, values, out):
    """out[r − first, i] = values[r] where row r fires on i, 0 elsewhere; out is (last − first, n)."""
    n = out.shape[1]
    fired = np.empty(n + 1, np.int32)
    for r in range(first, last):
        target = out[r - first]
        target[:] = 0
        k = fired_samples(counts, start, words, r, n, fired)
        for p in range(k):
            target[fired[p]] = values[r]
