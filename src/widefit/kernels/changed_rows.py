"""Numba kernels on fire rows (see `widefit.kernels.fire_rows`) of which some change: step, look again, compare, sum."""

import numpy as np
from numba import njit

from widefit.kernels.balls.half_space import cover, leaves_below, products
from widefit.kernels.fire_rows import _popcount64, fired_samples


@njit(nogil=True, cache=True)
def rows_on(counts, start, words, wanted):
    """Rows that fire on at least one sample with wanted[i] (n,): int32, ascending."""
    limit = (wanted.size + 31) // 32
    mask = np.zeros(limit, np.uint32)
    for i in range(wanted.size):
        if wanted[i]:
            mask[i >> 5] |= np.uint32(1) << np.uint32(i & 31)
    out, size = np.empty(counts.size, np.int32), 0
    for r in range(counts.size):
        row = words[start[r] : start[r + 1]]
        for p in range(row.size):
            if (counts[r] <= limit and wanted[row[p]]) or (counts[r] > limit and row[p] & mask[p]):
                out[size] = r
                size += 1
                break
    return out[:size].copy()


@njit(nogil=True, cache=True)
def step_rows(weights, anchor, shrink, coefficients, g, inputs, counts, start, words, rows, out):
    """out[t] = w_r − shrink (w_r − anchor_r) − coefficient_r Σ_{i: r fires on i} g_i x_i for r = rows[t].

    The arguments are those of `widefit.kernels.fire_rows.step_block`, and `rows` (q,) int32; out is (q, d).
    """
    d, n = weights.shape[1], inputs.shape[0]
    fired = np.empty(n + 1, np.int32)
    for t in range(rows.size):
        r, target = rows[t], out[t]
        target[:] = weights[r]
        if shrink != 0:
            for c in range(d):
                target[c] -= shrink * (target[c] - anchor[r, c])
        k = fired_samples(counts, start, words, r, n, fired)
        for p in range(k):
            factor, x = inputs.dtype.type(coefficients[r] * g[fired[p]]), inputs[fired[p]]
            for c in range(d):
                target[c] -= factor * x[c]


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def dot(a, b):
    total = a.dtype.type(0)
    for c in range(a.size):
        total += a[c] * b[c]
    return total


@njit(nogil=True, cache=True)
def row_outputs(weights, moved, rows, anchor, threshold, coefficients, inputs, counts, start, words, outputs, response):
    """What rows add to the outputs, and to J (W − W₀), from the pairs that fire alone.

    Parameters
    ----------
    weights : (rows, d), of which rows `moved` (q,) int32 ascending stand in `rows` (q, d) instead
    anchor : (rows, d), or (0, d) for no response
    threshold, coefficients, inputs, counts, start, words : as in `widefit.kernels.fire_rows`
    outputs, response : (n,) float64, added to

    Returns
    -------
    squared_norm : ‖W − W₀‖² of these rows; 0 with no anchor
    """
    n, d = inputs.shape
    fired, offset = np.empty(n + 1, np.int32), np.empty(d, weights.dtype)
    t, squared_norm = 0, 0.0
    for r in range(counts.size):
        w = weights[r]
        if t < moved.size and moved[t] == r:
            w = rows[t]
            t += 1
        if anchor.shape[0] > 0:
            for c in range(d):
                offset[c] = w[c] - anchor[r, c]
                squared_norm += np.float64(offset[c]) ** 2
        k = fired_samples(counts, start, words, r, n, fired)
        a = coefficients[r]
        for p in range(k):
            i = fired[p]
            outputs[i] += a * (dot(w, inputs[i]) - threshold)
            if anchor.shape[0] > 0:
                response[i] += a * dot(offset, inputs[i])
    return squared_norm


@njit(nogil=True, cache=True)
def count_members(slots, members, counts):
    """counts[neuron] += 1 for the neuron in each slot."""
    names = members.reshape(-1)
    for p in range(slots.size):
        counts[names[slots[p]]] += 1


@njit(nogil=True, cache=True)
def row_starts(counts, samples, start):
    """start (rows + 1,) int64 of fire rows with these counts."""
    limit = (samples + 31) // 32
    start[0] = 0
    for r in range(counts.size):
        start[r + 1] = start[r] + min(counts[r], limit)


@njit(nogil=True, cache=True)
def fill_members(slots, sample_start, first_sample, members, counts, samples, start, filled, words):
    """Enter the answers of consecutive samples, slots[sample_start[i]:sample_start[i + 1]], into the fire rows.

    `filled` (rows,) int32 counts what stands in each row; `words` is 0 to begin with.
    """
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
def changed_pairs(old_counts, old_start, old_words, counts, start, words, samples, first):
    """Pairs in which two sets of fire rows differ, by row and sample.

    Parameters
    ----------
    old_counts, old_start, old_words, counts, start, words : the rows
    first : the neuron of row 0

    Returns
    -------
    neurons, where : (q,) int32; fires : (q,) bool, true where the pair is in the new rows
    """
    limit = (samples + 31) // 32
    neurons, where, fires = np.empty(samples, np.int32), np.empty(samples, np.int32), np.empty(samples, np.bool_)
    bits, size = np.zeros((2, limit), np.uint32), 0
    for r in range(counts.size):
        before, after = old_words[old_start[r] : old_start[r + 1]], words[start[r] : start[r + 1]]
        if counts[r] == old_counts[r]:
            same = True
            for p in range(after.size):
                same &= before[p] == after[p]
            if same:
                continue
        if size + samples > neurons.size:
            neurons, where, fires = _longer(neurons, size), _longer(where, size), _longer(fires, size)
        _as_bits(before, old_counts[r], limit, bits[0])
        _as_bits(after, counts[r], limit, bits[1])
        for p in range(limit):
            changed = np.uint64(bits[0, p] ^ bits[1, p])
            while changed != 0:
                low = changed & (~changed + np.uint64(1))
                neurons[size] = first + r
                where[size] = 32 * p + _popcount64(low - np.uint64(1))
                fires[size] = (bits[1, p] & low) != 0
                size += 1
                changed ^= low
    return neurons[:size].copy(), where[:size].copy(), fires[:size].copy()


@njit(nogil=True, cache=True)
def _longer(array, size):
    """`size` entries, with room for more than twice as many."""
    out = np.empty(3 * array.size, array.dtype)
    out[:size] = array[:size]
    return out


@njit(nogil=True, cache=True)
def _as_bits(row, k, limit, bits):
    if k > limit:
        bits[:] = row
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
    k, visited, scanned : samples reported, nodes looked at, products computed
    """
    leaves = tree.sizes.size
    size, visited = cover(weight, np.float64(threshold), tree, codes)
    k = scanned = 0
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
def look_again(rows, threshold, tree, samples, counts, start, words):
    """Fire rows of weights `rows` (q, d) from a tree over the samples.

    Parameters
    ----------
    counts : (q,) int32, start : (q + 1,) int64, words : (q · ⌈n/32⌉,) uint32; written

    Returns
    -------
    visited, scanned : nodes looked at, products computed
    """
    limit = (samples + 31) // 32
    leaves, _, cap = tree.blocks.shape
    codes, z, bits = np.empty(leaves, np.int64), np.empty(cap, tree.blocks.dtype), np.zeros(limit, np.uint32)
    visited = scanned = 0
    start[0] = 0
    for t in range(rows.shape[0]):
        k, nodes, computed = report_row(rows[t], threshold, tree, codes, z, bits)
        visited += nodes
        scanned += computed
        counts[t] = k
        start[t + 1] = start[t] + min(k, limit)
        if k > 0:
            store_bits(bits, k, limit, words[start[t] : start[t + 1]])
            bits[:] = 0
    return visited, scanned


@njit(nogil=True, cache=True)
def store_bits(bits, k, limit, target):
    """Write k samples, given as bits, the cheaper way."""
    if k > limit:
        target[:] = bits
        return
    p = 0
    for w in range(limit):
        word = np.uint64(bits[w])
        while word != 0:
            low = word & (~word + np.uint64(1))
            target[p] = 32 * w + _popcount64(low - np.uint64(1))
            p += 1
            word ^= low


@njit(nogil=True, cache=True)
def replace_rows(old_start, old_words, rows, new_start, new_words, start, words):
    """Fill words (start[-1],) with old rows, except for `rows` (q,) int32 ascending, which are new.

    `start` (rows + 1,) is that of the result, by `row_starts`.
    """
    t = 0
    for r in range(start.size - 1):
        source, base = old_words, old_start[r]
        if t < rows.size and rows[t] == r:
            source, base = new_words, new_start[t]
            t += 1
        for p in range(start[r + 1] - start[r]):
            words[start[r] + p] = source[base + p]
