"""Numba kernels on fire rows (see `widefit.kernels.fire_rows`) of which some change: step, query, compare, sum."""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.balls.half_space import cover, leaves_below, products
from widefit.kernels.bits import lowest_bit, without_lowest_bit
from widefit.kernels.borrowing import borrowing
from widefit.kernels.fire_rows import fired_samples, step_row
from widefit.kernels.growth import longer


class Neurons(NamedTuple):
    """Neurons of one output, and the samples that they see.

    Attributes
    ----------
    weights : (rows, d)
    anchor : (rows, d), or (0, d) for none
    coefficients : (rows,) float64, a_r / √m
    threshold : b, scalar of the dtype of the weights
    inputs : (n, d)
    """

    weights: np.ndarray
    anchor: np.ndarray
    coefficients: np.ndarray
    threshold: np.floating
    inputs: np.ndarray


@njit(nogil=True, cache=True)
def rows_on(rows, wanted):
    """Return the rows that fire on at least one sample with wanted[i] (n,): int32, ascending."""
    counts, start, words = rows
    limit = (wanted.size + 31) // 32
    mask = np.zeros(limit, np.uint32)
    for i in range(wanted.size):
        if wanted[i]:
            mask[i >> 5] |= np.uint32(1) << np.uint32(i & 31)
    out = np.empty(counts.size, np.int32)
    size = 0
    for r in range(counts.size):
        row = words[start[r] : start[r + 1]]
        for p in range(row.size):
            if (counts[r] <= limit and wanted[row[p]]) or (counts[r] > limit and row[p] & mask[p]):
                out[size] = r
                size += 1
                break
    return out[:size].copy()


@njit(nogil=True, cache=True)
def step_rows(neurons, shrink, g, rows, moved, out):
    """Write out[t] = w_r − shrink (w_r − anchor_r) − coefficient_r Σ_{i: r fires on i} g_i x_i for r = moved[t].

    Parameters
    ----------
    shrink : float64
    g : (n,) float64
    rows : fire rows
    moved : (q,) int32
    out : (q, d)
    """
    weights, anchor, coefficients, _, inputs = neurons
    fired = np.empty(inputs.shape[0] + 1, np.int32)
    sums = np.empty(inputs.shape[1])
    for t in range(moved.size):
        step_row(weights, anchor, shrink, coefficients, g, inputs, rows, moved[t], fired, sums, out[t])


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def dot(a, b):
    total = a.dtype.type(0)
    for c in range(a.size):
        total += a[c] * b[c]
    return total


@njit(nogil=True, cache=True)
def row_outputs(neurons, moved, moved_weights, rows, outputs, response):
    """Add the terms of some neurons to the outputs, and to J (W − W₀), from the pairs that fire alone.

    Parameters
    ----------
    neurons : without an anchor there is no response
    moved, moved_weights : (q,) int32 ascending and (q, d), rows whose weights stand here instead
    rows : fire rows
    outputs, response : (n,) float64, added to

    Returns
    -------
    squared_norm : ‖W − W₀‖² of these rows; 0 with no anchor
    """
    weights, anchor, coefficients, threshold, inputs = neurons
    n, d = inputs.shape
    fired = np.empty(n + 1, np.int32)
    offset = np.empty(d, weights.dtype)
    t = 0
    squared_norm = 0.0
    for r in range(rows.counts.size):
        w = weights[r]
        if t < moved.size and moved[t] == r:
            w = moved_weights[t]
            t += 1
        if anchor.shape[0] > 0:
            for c in range(d):
                offset[c] = w[c] - anchor[r, c]
                squared_norm += np.float64(offset[c]) ** 2
        k = fired_samples(rows, r, n, fired)
        a = coefficients[r]
        for p in range(k):
            i = fired[p]
            outputs[i] += a * (dot(w, inputs[i]) - threshold)
            if anchor.shape[0] > 0:
                response[i] += a * dot(offset, inputs[i])
    return squared_norm


@njit(nogil=True, cache=True)
def count_members(slots, members, counts):
    """Add 1 to counts[neuron] for the neuron in each slot."""
    names = members.reshape(-1)
    for p in range(slots.size):
        counts[names[slots[p]]] += 1


@njit(nogil=True, cache=True)
def row_starts(counts, samples, start):
    """Write start (rows + 1,) int64 of contiguous fire rows with these counts."""
    limit = (samples + 31) // 32
    start[0] = 0
    for r in range(counts.size):
        start[r + 1] = start[r] + min(counts[r], limit)


@njit(nogil=True, cache=True)
def fill_members(slots, sample_start, first_sample, members, samples, filled, rows):
    """Enter the answers of consecutive samples, slots[sample_start[i]:sample_start[i + 1]], into the fire rows.

    filled : (rows,) int32, entries so far in each row
    rows : fire rows, their words 0 to begin with
    """
    counts, start, words = rows
    limit = (samples + 31) // 32
    names = members.reshape(-1)
    for q in range(sample_start.size - 1):
        i = first_sample + q
        for p in range(sample_start[q], sample_start[q + 1]):
            r = names[slots[p]]
            if counts[r] <= limit:
                words[start[r] + filled[r]] = i
                filled[r] += 1
            else:
                words[start[r] + (i >> 5)] |= np.uint32(1) << np.uint32(i & 31)


@njit(nogil=True, cache=True)
def changed_pairs(before, after, samples, first):
    """List the pairs in which two sets of contiguous fire rows differ, by row and sample.

    Parameters
    ----------
    first : the neuron of row 0

    Returns
    -------
    neurons, where : (q,) int32; fires : (q,) bool, True where the pair is in the new rows
    """
    limit = (samples + 31) // 32
    neurons = np.empty(samples, np.int32)
    where = np.empty(samples, np.int32)
    fires = np.empty(samples, np.bool_)
    old_bits = np.zeros(limit, np.uint32)
    new_bits = np.zeros(limit, np.uint32)
    size = 0
    for r in range(after.counts.size):
        old = before.words[before.start[r] : before.start[r + 1]]
        new = after.words[after.start[r] : after.start[r + 1]]
        if after.counts[r] == before.counts[r] and _equal(old, new):
            continue
        if size + samples > neurons.size:
            room = 3 * neurons.size
            neurons = longer(neurons, size, room)
            where = longer(where, size, room)
            fires = longer(fires, size, room)
        _as_bits(old, before.counts[r], limit, old_bits)
        _as_bits(new, after.counts[r], limit, new_bits)
        for p in range(limit):
            changed = np.uint64(old_bits[p] ^ new_bits[p])
            while changed != 0:
                bit = lowest_bit(changed)
                neurons[size] = first + r
                where[size] = 32 * p + bit
                fires[size] = (np.uint64(new_bits[p]) >> np.uint64(bit)) & np.uint64(1) != 0
                size += 1
                changed = without_lowest_bit(changed)
    return neurons[:size].copy(), where[:size].copy(), fires[:size].copy()


@borrowing
def _equal(a, b):
    same = True
    for p in range(b.size):
        same &= a[p] == b[p]
    return same


@borrowing
def _as_bits(row, k, limit, bits):
    if k > limit:
        for w in range(limit):
            bits[w] = row[w]
        return
    bits[:] = 0
    for i in row:
        bits[i >> 5] |= np.uint32(1) << np.uint32(i & 31)


@njit(nogil=True, cache=True)
def report_row(weight, threshold, tree, codes, z, bits):
    """Set the bits of the samples that a weight (d,) fires on, in a tree over the samples.

    Parameters
    ----------
    codes, z : scratch, (leaves,) int64 and (cap,) of the dtype of the points
    bits : (⌈n/32⌉,) uint32, 0 to begin with

    Returns
    -------
    k, visited, scanned : samples reported, nodes visited, products computed
    """
    leaves = tree.sizes.size
    size, visited = cover(weight, np.float64(threshold), tree, codes)
    k = 0
    scanned = 0
    for code in codes[:size]:
        first, last = leaves_below(code >> 1, leaves)
        whole = code & 1
        for leaf in range(first, last):
            if not whole:
                products(tree.blocks[leaf], weight, z)
                scanned += tree.sizes[leaf]
            for j in range(tree.sizes[leaf]):
                if whole or not z[j] <= threshold:
                    i = tree.members[leaf, j]
                    bits[i >> 5] |= np.uint32(1) << np.uint32(i & 31)
                    k += 1
    return k, visited, scanned


@njit(nogil=True, cache=True)
def query_rows(weights, threshold, tree, samples, rows):
    """Find the fire rows of some weights (q, d) in a tree over the samples.

    Parameters
    ----------
    rows : counts (q,) int32, start (q + 1,) int64, words (q · ⌈n/32⌉,) uint32; written

    Returns
    -------
    visited, scanned : nodes visited, products computed
    """
    counts, start, words = rows
    limit = (samples + 31) // 32
    leaves, _, cap = tree.blocks.shape
    codes = np.empty(leaves, np.int64)
    z = np.empty(cap, tree.blocks.dtype)
    bits = np.zeros(limit, np.uint32)
    visited = 0
    scanned = 0
    start[0] = 0
    for t in range(weights.shape[0]):
        k, nodes, computed = report_row(weights[t], threshold, tree, codes, z, bits)
        visited += nodes
        scanned += computed
        counts[t] = k
        start[t + 1] = start[t] + min(k, limit)
        if k > 0:
            store_bits(bits, k, limit, words[start[t] : start[t + 1]])
            bits[:] = 0
    return visited, scanned


@borrowing
def store_bits(bits, k, limit, target):
    """Store k samples, given as bits, the cheaper way."""
    if k > limit:
        for w in range(limit):
            target[w] = bits[w]
        return
    p = 0
    for w in range(limit):
        word = np.uint64(bits[w])
        while word != 0:
            target[p] = 32 * w + lowest_bit(word)
            p += 1
            word = without_lowest_bit(word)


@njit(nogil=True, cache=True)
def replace_rows(before, replaced, by, start, words):
    """Fill words (start[-1],) with old rows, except for rows `replaced` (q,) int32 ascending, which are new.

    start : (rows + 1,) of the result, from `row_starts`
    """
    t = 0
    for r in range(start.size - 1):
        source = before.words
        base = before.start[r]
        if t < replaced.size and replaced[t] == r:
            source = by.words
            base = by.start[t]
            t += 1
        for p in range(start[r + 1] - start[r]):
            words[start[r] + p] = source[base + p]
