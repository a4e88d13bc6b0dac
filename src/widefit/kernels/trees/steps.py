"""Numba kernels of a step on stored pre-activations: who moves, where to, and what it does to the outputs.

**Rows.** Who fires on what is passed as three arrays: ``neurons`` (c,) ascending, ``start`` int64 (c + 1,) and
``samples`` int32: neuron neurons[q] fires on samples[start[q]:start[q + 1]], ascending.

Every kernel is serial and releases the GIL (see `widefit.kernels.fire_rows`). A pre-activation is the same to the last
bit whatever else is computed beside it.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def turn_lists(start, keys, samples, count):
    """Rows from the lists of some samples: neurons keys[start[p]:start[p + 1]] fire on samples[p].

    Parameters
    ----------
    start, keys : as `query_trees` returns them, one list a sample
    samples : (b,) int32, ascending
    count : (m,) int64, zeros; zeros again on return

    Returns
    -------
    neurons, row_start, fired : rows
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
    return neurons, row_start, fired


@njit(nogil=True, cache=True)
def pack_rows(neurons, start, samples, n, first, last):
    """Rows of the neurons first to last as fire rows (`widefit.kernels.fire_rows`): counts, start and words."""
    limit = (n + 31) // 32
    counts, word_start = np.zeros(last - first, np.int32), np.zeros(last - first + 1, np.int64)
    low, high = np.searchsorted(neurons, first), np.searchsorted(neurons, last)
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
def sum_rows(keys, neurons, start, samples, threshold, coefficients, output_of, outputs):
    """outputs[i, c_r] += coefficient_r (z_ri − threshold) for every neuron r and sample i of the rows.

    Parameters
    ----------
    keys : (m, n) pre-activations, in any layout
    coefficients : (m,) float64
    output_of : (m,) the output that a neuron feeds
    outputs : (n, k) float64
    """
    for q in range(neurons.size):
        r = neurons[q]
        a, c = coefficients[r], output_of[r]
        for i in samples[start[q] : start[q + 1]]:
            outputs[i, c] += a * (keys[r, i] - threshold)


@njit(nogil=True, cache=True)
def step_rows(weights, anchor, shrink, coefficients, output_of, g, inputs, neurons, start, samples, out):
    """out_q = w_r − shrink (w_r − anchor_r) − coefficient_r Σ_i g_i x_i over row q, r = neurons[q].

    Parameters
    ----------
    weights : (m, d)
    anchor : (m, d), or (0, d) where shrink is 0
    shrink : (k,) of the dtype of weights
    g : (n, k) float64
    inputs : (n, d)
    out : (c, d)
    """
    d = weights.shape[1]
    for q in range(neurons.size):
        r = neurons[q]
        c = output_of[r]
        target = out[q]
        target[:] = weights[r]
        if shrink[c] != 0:
            for p in range(d):
                target[p] -= shrink[c] * (target[p] - anchor[r, p])
        for i in samples[start[q] : start[q + 1]]:
            factor = inputs.dtype.type(coefficients[r] * g[i, c])
            x = inputs[i]
            for p in range(d):
                target[p] -= factor * x[p]


@njit(nogil=True, cache=True, fastmath={"contract"})
def products(rows, columns, out, first):
    """out[:, first:first + b] = rows · columns, each number summed in the order of the features.

    Half as fast as a matrix product of a library, whose last bits depend on what stands beside a number.

    Parameters
    ----------
    rows : (a, d), contiguous
    columns : (d, b), contiguous; few enough to stay in the second-level cache
    out : (a, first + b or more), contiguous
    """
    d, last = columns.shape[0], first + columns.shape[1]
    whole = d - d % 4
    for q in range(rows.shape[0]):
        target, w = out[q, first:last], rows[q]
        target[:] = 0
        for p in range(0, whole, 4):
            x0, x1, x2, x3 = columns[p], columns[p + 1], columns[p + 2], columns[p + 3]
            w0, w1, w2, w3 = w[p], w[p + 1], w[p + 2], w[p + 3]
            for i in range(target.size):
                target[i] = (((target[i] + w0 * x0[i]) + w1 * x1[i]) + w2 * x2[i]) + w3 * x3[i]
        for p in range(whole, d):
            x0, w0 = columns[p], w[p]
            for i in range(target.size):
                target[i] += w0 * x0[i]


@njit(nogil=True, cache=True)
def _exchange(now, then, threshold, coefficient, anew, outputs, c):
    """Exchange a pair's term in outputs[c]; returns 1 where it begins to fire, -1 where it ceases to, 0 otherwise."""
    fires = 0
    if then > threshold:
        outputs[c] += coefficient * (then - threshold)
        fires += 1
    if now > threshold:
        if not anew:
            outputs[c] -= coefficient * (now - threshold)
        fires -= 1
    return fires


@njit(nogil=True, cache=True)
def compare_by_sample(keys, neurons, moved, threshold, coefficients, output_of, anew, first, last, outputs, flips):
    """What new pre-activations of some neurons do to the outputs, and which pairs flip, for samples first to last.

    Parameters
    ----------
    keys : (n, m) pre-activations now
    neurons : (c,), ascending
    moved : (n, c) their pre-activations to be
    anew : (k,) bool; True: the terms now are not in `outputs` and need not be taken back
    outputs : (n, k) float64, changed
    flips : (c (last - first),) int64, written: 2 (neuron n + sample), and 1 more where the pair fires afterwards

    Returns
    -------
    count : number of flips
    """
    n = keys.shape[0]
    listed = np.empty(neurons.size + 1, np.int32)
    count = 0
    for i in range(first, last):
        k = 0
        for q in range(neurons.size):
            # Branchless: always listed, and kept only when the pair fires now or then.
            listed[k] = q
            k += (keys[i, neurons[q]] > threshold) | (moved[i, q] > threshold)
        for q in listed[:k]:
            r = neurons[q]
            fires = _exchange(
                keys[i, r], moved[i, q], threshold, coefficients[r], anew[output_of[r]], outputs[i], output_of[r]
            )
            flips[count] = 2 * (r * n + i) + (fires > 0)
            count += fires != 0
    return count


@njit(nogil=True, cache=True)
def compare_by_neuron(keys, neurons, moved, threshold, coefficients, output_of, anew, first, last, outputs, flips):
    """As `compare_by_sample`, for neurons[first:last], with keys (m, n) and moved (c, n)."""
    n = keys.shape[1]
    listed = np.empty(n + 1, np.int32)
    count = 0
    for q in range(first, last):
        r = neurons[q]
        k = 0
        for i in range(n):
            listed[k] = i
            k += (keys[r, i] > threshold) | (moved[q, i] > threshold)
        for i in listed[:k]:
            fires = _exchange(
                keys[r, i], moved[q, i], threshold, coefficients[r], anew[output_of[r]], outputs[i], output_of[r]
            )
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
def respond(
    keys, rows, neurons, threshold, coefficients, output_of, anew, offsets, inputs, sign, first, last, response
):
    """response[i, c_r] += sign · coefficient_r ⟨offset_r, x_i⟩ where r fires on i: part of J (W − W₀).

    Parameters
    ----------
    keys : pre-activations, in any layout; those of neurons[q] stand in row rows[q]
    neurons : (c,)
    anew : (k,) bool; outputs that are left out
    offsets : (c, d), w_r − anchor_r
    first, last : the samples to work on
    response : (n, k) float64
    """
    for q in range(neurons.size):
        c = output_of[neurons[q]]
        if anew[c]:
            continue
        a = sign * coefficients[neurons[q]]
        for i in range(first, last):
            if keys[rows[q], i] > threshold:
                response[i, c] += a * _dot(offsets[q], inputs[i])


@njit(nogil=True, cache=True)
def squared_norms(offsets, neurons, output_of, sign, anew, out):
    """out[c_r] += sign ‖offset_r‖² for the neurons of outputs that are not `anew`."""
    for q in range(neurons.size):
        c = output_of[neurons[q]]
        if not anew[c]:
            out[c] += sign * _dot(offsets[q], offsets[q])
