"""Numba kernels of stochastic steps with a tree over the samples: the fire pattern as bits, by neuron and by sample."""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.bits import count_bits, lowest_bit, without_lowest_bit
from widefit.kernels.borrowing import borrowing
from widefit.kernels.changed_rows import dot, report_row, store_bits
from widefit.kernels.fire_rows import fired_samples


class PatternBits(NamedTuple):
    """Fire pattern as bits.

    Attributes
    ----------
    by_neuron : (m, ⌈n/32⌉) uint32, bit i of row r is set when r fires on i
    by_sample : (n, ⌈m/64⌉) uint64, bit r of row i likewise
    """

    by_neuron: np.ndarray
    by_sample: np.ndarray


class FedNeurons(NamedTuple):
    """Neurons of a network, and the samples that they see.

    Attributes
    ----------
    weights : (m, d)
    coefficients : (m,) float64, a_r / √m
    output_of : (m,) int32, the output that a neuron feeds
    threshold : b, scalar of the dtype of weights and inputs
    inputs : (n, d)
    """

    weights: np.ndarray
    coefficients: np.ndarray
    output_of: np.ndarray
    threshold: np.floating
    inputs: np.ndarray


@njit(nogil=True, cache=True)
def spread(rows, samples, first, bits):
    """Enter the fire rows of neurons from `first` on into bits, which are 0 there to begin with."""
    fired = np.empty(samples + 1, np.int32)
    for t in range(rows.counts.size):
        r = first + t
        k = fired_samples(rows, t, samples, fired)
        for p in range(k):
            i = fired[p]
            bits.by_neuron[r, i >> 5] |= np.uint32(1) << np.uint32(i & 31)
            bits.by_sample[i, r >> 6] |= np.uint64(1) << np.uint64(r & 63)


@njit(nogil=True, cache=True)
def gather(by_neuron, rows):
    """Store the fire rows of some neurons, given as bits (rows, ⌈n/32⌉); words holds rows · ⌈n/32⌉."""
    counts, start, words = rows
    limit = by_neuron.shape[1]
    start[0] = 0
    for r in range(by_neuron.shape[0]):
        k = 0
        for w in range(limit):
            k += count_bits(np.uint64(by_neuron[r, w]))
        counts[r] = k
        start[r + 1] = start[r] + min(k, limit)
        if k > 0:
            store_bits(by_neuron[r], k, limit, words[start[r] : start[r + 1]])


@njit(nogil=True, cache=True)
def neurons_on(by_sample, batch, out):
    """List the neurons that fire on at least one sample of a batch, ascending; return how many."""
    k = 0
    for w in range(by_sample.shape[1]):
        word = np.uint64(0)
        for i in batch:
            word |= by_sample[i, w]
        while word != 0:
            out[k] = (w << 6) + lowest_bit(word)
            k += 1
            word = without_lowest_bit(word)
    return k


@njit(nogil=True, cache=True)
def batch_outputs(by_sample, batch, neurons, outputs):
    """Add a_r (⟨w_r, x_i⟩ − b) over the neurons r that fire on sample i = batch[q] to outputs[q]; return their number.

    outputs : (b, k) float64
    """
    weights, coefficients, output_of, threshold, inputs = neurons
    pairs = 0
    for q in range(batch.size):
        x = inputs[batch[q]]
        bits = by_sample[batch[q]]
        for w in range(bits.size):
            word = bits[w]
            while word != 0:
                r = (w << 6) + lowest_bit(word)
                outputs[q, output_of[r]] += coefficients[r] * (dot(weights[r], x) - threshold)
                pairs += 1
                word = without_lowest_bit(word)
    return pairs


@njit(nogil=True, cache=True)
def step(moving, batch, g, neurons, tree, bits):
    """Move the neurons that fire on a batch, and find anew the samples that each fires on.

    Parameters
    ----------
    moving : (q,) int32, those of `neurons_on`
    batch : (b,) samples, none twice
    g : (b, k) float64
    neurons : their weights are changed in place
    tree : over the samples
    bits : brought up to date

    Returns
    -------
    visited, scanned : nodes visited, products computed
    """
    by_neuron, by_sample = bits
    leaves, _, cap = tree.blocks.shape
    codes = np.empty(leaves, np.int64)
    z = np.empty(cap, tree.blocks.dtype)
    fresh = np.zeros(by_neuron.shape[1], np.uint32)
    visited = 0
    scanned = 0
    for r in moving:
        if not _move(r, batch, g, neurons, by_neuron[r]):
            continue
        _, nodes, products = report_row(neurons.weights[r], neurons.threshold, tree, codes, z, fresh)
        visited += nodes
        scanned += products
        own = by_neuron[r]
        for p in range(fresh.size):
            changed = np.uint64(own[p] ^ fresh[p])
            own[p] = fresh[p]
            fresh[p] = 0
            while changed != 0:
                i = 32 * p + lowest_bit(changed)
                by_sample[i, r >> 6] ^= np.uint64(1) << np.uint64(r & 63)
                changed = without_lowest_bit(changed)
    return visited, scanned


@borrowing
def _move(r, batch, g, neurons, fires):
    """Move one neuron, whose bits are `fires`; return False where g is 0 on all samples that it fires on."""
    w = neurons.weights[r]
    inputs = neurons.inputs
    output = neurons.output_of[r]
    moved = False
    for q in range(batch.size):
        i = batch[q]
        if g[q, output] != 0 and (fires[i >> 5] >> np.uint32(i & 31)) & np.uint32(1):
            factor = inputs.dtype.type(neurons.coefficients[r] * g[q, output])
            x = inputs[i]
            for c in range(w.size):
                w[c] -= factor * x[c]
            moved = True
    return moved
