"""Numba kernels of stochastic steps with a tree over the samples: the fire pattern as bits, both ways round."""

import numpy as np
from numba import njit

from widefit.kernels.changed_rows import dot, report_row, store_bits
from widefit.kernels.fire_rows import _popcount64, fired_samples


@njit(nogil=True, cache=True)
def spread(counts, start, words, samples, first, by_neuron, by_sample):
    """Enter the fire rows of neurons from `first` on into bits; both arrays are 0 there to begin with.

    Parameters
    ----------
    by_neuron : (m, ⌈n/32⌉) uint32, bit i of row r is set when r fires on i
    by_sample : (n, ⌈m/64⌉) uint64, bit r of row i likewise
    """
    fired = np.empty(samples + 1, np.int32)
    for t in range(counts.size):
        r = first + t
        k = fired_samples(counts, start, words, t, samples, fired)
        for p in range(k):
            i = fired[p]
            by_neuron[r, i >> 5] |= np.uint32(1) << np.uint32(i & 31)
            by_sample[i, r >> 6] |= np.uint64(1) << np.uint64(r & 63)


@njit(nogil=True, cache=True)
def gather(by_neuron, counts, start, words):
    """Fire rows from bits (rows, ⌈n/32⌉); words holds rows · ⌈n/32⌉."""
    rows, limit = by_neuron.shape
    start[0] = 0
    for r in range(rows):
        k = 0
        for w in range(limit):
            k += _popcount64(np.uint64(by_neuron[r, w]))
        counts[r] = k
        start[r + 1] = start[r] + min(k, limit)
        if k > 0:
            store_bits(by_neuron[r], k, limit, words[start[r] : start[r + 1]])


@njit(nogil=True, cache=True)
def neurons_on(by_sample, batch, neurons):
    """Neurons that fire on at least one sample of a batch, ascending, into neurons[:k]; returns k."""
    k = 0
    for w in range(by_sample.shape[1]):
        word = np.uint64(0)
        for i in batch:
            word |= by_sample[i, w]
        while word != 0:
            low = word & (~word + np.uint64(1))
            neurons[k] = (w << 6) + _popcount64(low - np.uint64(1))
            k += 1
            word ^= low
    return k


@njit(nogil=True, cache=True)
def batch_outputs(by_sample, batch, feeds, weights, coefficients, threshold, inputs, outputs):
    """outputs[q, feeds[r]] += a_r (⟨w_r, x_i⟩ − b) over the neurons r that fire on sample i = batch[q]; returns pairs.

    Parameters
    ----------
    feeds : (m,) int32, the output that a neuron feeds
    coefficients : (m,) float64, a_r / √m
    threshold : scalar of the dtype of inputs (n, d) and weights (m, d)
    outputs : (b, k) float64
    """
    pairs = 0
    for q in range(batch.size):
        x, bits = inputs[batch[q]], by_sample[batch[q]]
        for w in range(bits.size):
            word = bits[w]
            while word != 0:
                low = word & (~word + np.uint64(1))
                r = (w << 6) + _popcount64(low - np.uint64(1))
                outputs[q, feeds[r]] += coefficients[r] * (dot(weights[r], x) - threshold)
                pairs += 1
                word ^= low
    return pairs


@njit(nogil=True, cache=True)
def step(neurons, batch, g, feeds, coefficients, threshold, inputs, tree, weights, by_neuron, by_sample):
    """Move the neurons that fire on a batch, and look each of them up again.

    Parameters
    ----------
    neurons : (q,) int32, those of `neurons_on`
    batch : (b,) samples, none twice; g : (b, k) float64
    feeds, coefficients, threshold, inputs : as in `batch_outputs`
    tree : over the samples
    weights, by_neuron, by_sample : brought up to date

    Returns
    -------
    visited, scanned : nodes looked at, products computed
    """
    leaves, _, cap = tree.blocks.shape
    codes, z = np.empty(leaves, np.int64), np.empty(cap, tree.blocks.dtype)
    bits = np.zeros(by_neuron.shape[1], np.uint32)
    visited = scanned = 0
    for r in neurons:
        w, o, mine = weights[r], feeds[r], by_neuron[r]
        moved = False
        for q in range(batch.size):
            i = batch[q]
            if g[q, o] != 0 and (mine[i >> 5] >> np.uint32(i & 31)) & np.uint32(1):
                factor, x = inputs.dtype.type(coefficients[r] * g[q, o]), inputs[i]
                for c in range(w.size):
                    w[c] -= factor * x[c]
                moved = True
        if not moved:
            continue
        _, nodes, products = report_row(w, threshold, tree, codes, z, bits)
        visited += nodes
        scanned += products
        for p in range(bits.size):
            changed = np.uint64(mine[p] ^ bits[p])
            mine[p], bits[p] = bits[p], 0
            while changed != 0:
                low = changed & (~changed + np.uint64(1))
                i = 32 * p + _popcount64(low - np.uint64(1))
                by_sample[i, r >> 6] ^= np.uint64(1) << np.uint64(r & 63)
                changed ^= low
    return visited, scanned
