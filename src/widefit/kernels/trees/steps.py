"""Numba kernels of a step on stored pre-activations: weights after the step, flips, and their effect on the outputs.

Every kernel is serial and releases the GIL (see `widefit.kernels.fire_rows`). A pre-activation is the same to the last
bit whatever else is computed beside it.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.fire_rows import add_scaled, move_row


class Rows(NamedTuple):
    """Neurons that fire on some samples, and these samples.

    Attributes
    ----------
    neurons : (c,) int64, ascending
    start : (c + 1,) int64
    samples : int32; neurons[q] fires on samples[start[q]:start[q + 1]], ascending
    """

    neurons: np.ndarray
    start: np.ndarray
    samples: np.ndarray


class FedOutputs(NamedTuple):
    """Second layer of a network, and the threshold of the first.

    Attributes
    ----------
    coefficients : (m,) float64, a_r / √m
    output_of : (m,) int32, the output that a neuron feeds
    threshold : b, scalar of the dtype of the pre-activations
    """

    coefficients: np.ndarray
    output_of: np.ndarray
    threshold: np.floating


class MovedKeys(NamedTuple):
    """Pre-activations of neurons that move.

    Attributes
    ----------
    now : pre-activations of all neurons, as the trees hold them
    neurons : (c,), those that move
    then : their pre-activations afterwards, laid out as `now`
    fresh : (k,) bool; True: the terms of the output now are not in its sum and need not be taken back
    """

    now: np.ndarray
    neurons: np.ndarray
    then: np.ndarray
    fresh: np.ndarray


@njit(nogil=True, cache=True)
def turn_lists(start, keys, samples, count):
    """Turn the lists of some samples, neurons keys[start[p]:start[p + 1]] fire on samples[p], into rows.

    Parameters
    ----------
    start, keys : as `query_trees` returns them, one list a sample
    samples : (b,) int32, ascending
    count : (m,) int64, zeros; zeros again on return

    Returns
    -------
    rows : Rows
    """
    found = np.empty(min(keys.size, count.size), np.int64)
    c = 0
    for r in keys:
        if count[r] == 0:
            found[c] = r
            c += 1
        count[r] += 1
    neurons = np.sort(found[:c])
    row_start = np.zeros(c + 1, np.int64)
    for q in range(c):
        row_start[q + 1] = row_start[q] + count[neurons[q]]
        count[neurons[q]] = row_start[q]
    fired = np.empty(keys.size, np.int32)
    for p in range(samples.size):
        for r in keys[start[p] : start[p + 1]]:
            fired[count[r]] = samples[p]
            count[r] += 1
    for r in neurons:
        count[r] = 0
    return Rows(neurons, row_start, fired)


@njit(nogil=True, cache=True)
def pack_rows(neurons, start, samples, n, first, last):
    """Return rows of the neurons first to last as fire rows (`widefit.kernels.fire_rows`): counts, start and words."""
    limit = (n + 31) // 32
    counts = np.zeros(last - first, np.int32)
    word_start = np.zeros(last - first + 1, np.int64)
    low = np.searchsorted(neurons, first)
    high = np.searchsorted(neurons, last)
    for q in range(low, high):
        counts[neurons[q] - first] = start[q + 1] - start[q]
    for r in range(counts.size):
        word_start[r + 1] = word_start[r] + min(counts[r], limit)
    words = np.zeros(word_start[-1], np.uint32)
    for q in range(low, high):
        base = word_start[neurons[q] - first]
        row = samples[start[q] : start[q + 1]]
        if row.size <= limit:
            for p in range(row.size):
                words[base + p] = row[p]
        else:
            for i in row:
                words[base + (i >> 5)] |= np.uint32(1) << np.uint32(i & 31)
    return counts, word_start, words


@njit(nogil=True, cache=True)
def sum_rows(keys, rows, fed, outputs):
    """Add coefficient_r (z_ri − threshold) to outputs[i, c_r] for every neuron r and sample i of the rows.

    Parameters
    ----------
    keys : (m, n) pre-activations, in any layout
    outputs : (n, k) float64
    """
    neurons, start, samples = rows
    coefficients, output_of, threshold = fed
    for q in range(neurons.size):
        r = neurons[q]
        a = coefficients[r]
        c = output_of[r]
        for i in samples[start[q] : start[q + 1]]:
            outputs[i, c] += a * (keys[r, i] - threshold)


@njit(nogil=True, cache=True)
def step_rows(weights, anchor, shrink, fed, g, inputs, rows, first, last, out):
    """Write out_q = w_r − shrink (w_r − anchor_r) − coefficient_r Σ_i g_i x_i, r = neurons[q], for first ≤ q < last.

    Parameters
    ----------
    weights : (m, d)
    anchor : (m, d), or (0, d) where shrink is 0
    shrink : (k,) float64
    g : (n, k) float64
    inputs : (n, d)
    out : (c, d)
    """
    neurons, start, samples = rows
    coefficients, output_of, _ = fed
    sums = np.empty(weights.shape[1])
    for q in range(first, last):
        r = neurons[q]
        c = output_of[r]
        sums[:] = 0
        for i in samples[start[q] : start[q + 1]]:
            add_scaled(g[i, c], inputs[i], sums)
        move_row(weights, anchor, shrink[c], r, coefficients[r], sums, out[q])


@njit(nogil=True, cache=True, fastmath={"contract"})
def products(rows, columns, out, first):
    """Write out[:, first:first + b] = rows · columns, each number summed in the order of the features.

    Half as fast as a matrix product of a library, whose last bits depend on what stands beside a number.

    Parameters
    ----------
    rows : (a, d), contiguous
    columns : (d, b), contiguous; few enough to stay in the second-level cache
    out : (a, first + b or more), contiguous
    """
    d = columns.shape[0]
    last = first + columns.shape[1]
    whole = d - d % 4
    for q in range(rows.shape[0]):
        target = out[q, first:last]
        w = rows[q]
        target[:] = 0
        for p in range(0, whole, 4):
            x0, x1, x2, x3 = columns[p], columns[p + 1], columns[p + 2], columns[p + 3]
            w0, w1, w2, w3 = w[p], w[p + 1], w[p + 2], w[p + 3]
            for i in range(target.size):
                target[i] = (((target[i] + w0 * x0[i]) + w1 * x1[i]) + w2 * x2[i]) + w3 * x3[i]
        for p in range(whole, d):
            x0 = columns[p]
            w0 = w[p]
            for i in range(target.size):
                target[i] += w0 * x0[i]


@njit(nogil=True, cache=True)
def _exchange(now, then, threshold, coefficient, fresh, outputs, c):
    """Exchange a pair's term in outputs[c]; return 1 where it begins to fire, -1 where it ceases to, 0 otherwise."""
    fires = 0
    if then > threshold:
        outputs[c] += coefficient * (then - threshold)
        fires += 1
    if now > threshold:
        if not fresh:
            outputs[c] -= coefficient * (now - threshold)
        fires -= 1
    return fires


@njit(nogil=True, cache=True)
def compare_by_sample(moved, fed, first, last, outputs, flips):
    """Exchange the terms of neurons that move in the outputs, and list the pairs that flip, for samples first to last.

    Parameters
    ----------
    moved : with `now` (n, m) and `then` (n, c), neurons ascending
    outputs : (n, k) float64, changed
    flips : (c (last - first),) int64, written: 2 (neuron n + sample), and 1 more where the pair fires afterwards

    Returns
    -------
    count : number of flips
    """
    keys, neurons, then, fresh = moved
    coefficients, output_of, threshold = fed
    n = keys.shape[0]
    listed = np.empty(neurons.size + 1, np.int32)
    count = 0
    for i in range(first, last):
        k = 0
        for q in range(neurons.size):
            # Branchless: always listed, and kept only when the pair fires now or then.
            listed[k] = q
            k += (keys[i, neurons[q]] > threshold) | (then[i, q] > threshold)
        for q in listed[:k]:
            r = neurons[q]
            c = output_of[r]
            fires = _exchange(keys[i, r], then[i, q], threshold, coefficients[r], fresh[c], outputs[i], c)
            flips[count] = 2 * (r * n + i) + (fires > 0)
            count += fires != 0
    return count


@njit(nogil=True, cache=True)
def compare_by_neuron(moved, fed, first, last, outputs, flips):
    """Do as `compare_by_sample` for neurons[first:last], with `now` (m, n) and `then` (c, n)."""
    keys, neurons, then, fresh = moved
    coefficients, output_of, threshold = fed
    n = keys.shape[1]
    listed = np.empty(n + 1, np.int32)
    count = 0
    for q in range(first, last):
        r = neurons[q]
        c = output_of[r]
        k = 0
        for i in range(n):
            listed[k] = i
            k += (keys[r, i] > threshold) | (then[q, i] > threshold)
        for i in listed[:k]:
            fires = _exchange(keys[r, i], then[q, i], threshold, coefficients[r], fresh[c], outputs[i], c)
            flips[count] = 2 * (r * n + i) + (fires > 0)
            count += fires != 0
    return count


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def _dot(a, b):
    total = 0.0
    for p in range(a.size):
        total += np.float64(a[p]) * np.float64(b[p])
    return total


@njit(nogil=True, cache=True)
def respond(keys, rows, neurons, left_out, fed, offsets, inputs, sign, first, last, response):
    """Add sign · coefficient_r ⟨offset_r, x_i⟩ to response[i, c_r] where r fires on i: part of J (W − W₀).

    Parameters
    ----------
    keys : pre-activations, in any layout; those of neurons[q] stand in row rows[q]
    neurons : (c,)
    left_out : (k,) bool, outputs to pass over
    offsets : (c, d), w_r − anchor_r
    first, last : the samples to work on
    response : (n, k) float64
    """
    coefficients, output_of, threshold = fed
    for q in range(neurons.size):
        c = output_of[neurons[q]]
        if left_out[c]:
            continue
        a = sign * coefficients[neurons[q]]
        for i in range(first, last):
            if keys[rows[q], i] > threshold:
                response[i, c] += a * _dot(offsets[q], inputs[i])


@njit(nogil=True, cache=True)
def squared_norms(offsets, neurons, output_of, sign, left_out, out):
    """Add sign ‖offset_r‖² to out[c_r] for the neurons of outputs that are not left out."""
    for q in range(neurons.size):
        c = output_of[neurons[q]]
        if not left_out[c]:
            out[c] += sign * _dot(offsets[q], offsets[q])
