"""Numba kernels of stochastic steps: one minibatch of b samples against a block of neurons.

The samples of the batch that a neuron fires on are a row of ⌈b/32⌉ uint32 words, one bit a sample. Like those of
`widefit.kernels.fire_rows`, the kernels are serial and release the GIL.
"""

import numpy as np
from numba import njit

from widefit.kernels.bits import count_bits, lowest_bit, without_lowest_bit


@njit(nogil=True, cache=True)
def fire_batch(z, threshold, coefficients, bits, outputs):
    """Find who fires on the samples of a batch, and add it to their outputs.

    Parameters
    ----------
    z : (rows, b) pre-activations ⟨w_r, x_i⟩
    threshold : scalar of the dtype of z; a neuron fires when z > threshold. NaN fires too, so that it is seen
    coefficients : (rows,) float64, a_r / √m
    bits : (rows, ⌈b/32⌉) uint32, written
    outputs : (b,) float64, added to

    Returns
    -------
    fired : pairs that fire
    """
    rows, b = z.shape
    fired = np.int64(0)
    for r in range(rows):
        a = coefficients[r]
        for w in range(bits.shape[1]):
            first = 32 * w
            values = z[r, first : min(first + 32, b)]
            into = outputs[first : min(first + 32, b)]
            mask = np.uint32(0)
            for i in range(values.size):
                # Branchless, for vectors: a silent pair adds a zero.
                silent = values[i] <= threshold
                mask |= np.uint32(not silent) << np.uint32(i)
                excess = np.float64(values[i] - threshold)
                into[i] += a * (0.0 if silent else excess)
            bits[r, w] = mask
            fired += count_bits(np.uint64(mask))
    return fired


@njit(nogil=True, cache=True)
def step_batch(weights, coefficients, g, inputs, bits):
    """Move w_r to w_r − coefficient_r Σ_{i: r fires on i} g_i x_i, in place.

    Parameters
    ----------
    weights : (rows, d)
    coefficients : (rows,) float64, a_r / √m
    g : (b,) float64
    inputs : (b, d), the samples of the batch
    bits : (rows, ⌈b/32⌉) uint32, from `fire_batch`
    """
    for r in range(weights.shape[0]):
        target = weights[r]
        a = coefficients[r]
        for w in range(bits.shape[1]):
            mask = np.uint64(bits[r, w])
            while mask != 0:
                i = 32 * w + lowest_bit(mask)
                mask = without_lowest_bit(mask)
                factor = inputs.dtype.type(a * g[i])
                x = inputs[i]
                for c in range(x.size):
                    target[c] -= factor * x[c]


@njit(nogil=True, cache=True)
def shrink_rows(weights, anchor, shrink):
    """Move w_r to w_r − shrink (w_r − anchor_r), in place; shrink is a scalar of the dtype of the weights."""
    for r in range(weights.shape[0]):
        target = weights[r]
        origin = anchor[r]
        for c in range(target.size):
            target[c] -= shrink * (target[c] - origin[c])


@njit(nogil=True, cache=True)
def spread_batch(coefficients, g, bits, out):
    """Write out[r, i] = coefficient_r g_i where row r fires on sample i of the batch, 0 elsewhere; out is (rows, b)."""
    rows, b = out.shape
    for r in range(rows):
        a = coefficients[r]
        for w in range(bits.shape[1]):
            first = 32 * w
            mask = bits[r, w]
            target = out[r, first : min(first + 32, b)]
            own = g[first : min(first + 32, b)]
            for i in range(target.size):
                # Branchless, for vectors.
                value = a * own[i]
                target[i] = value if (mask >> np.uint32(i)) & np.uint32(1) else 0.0


@njit(nogil=True, cache=True)
def readout_moves(weights, threshold, g, inputs, bits, out):
    """Write out[r] = Σ_{i: r fires on i} g_i (⟨w_r, x_i⟩ − b), float64; the arguments are those of `step_batch`."""
    b = np.float64(threshold)
    for r in range(weights.shape[0]):
        row = weights[r]
        total = 0.0
        for w in range(bits.shape[1]):
            mask = np.uint64(bits[r, w])
            while mask != 0:
                i = 32 * w + lowest_bit(mask)
                mask = without_lowest_bit(mask)
                x = inputs[i]
                z = 0.0
                for c in range(x.size):
                    z += row[c] * x[c]
                total += g[i] * (z - b)
        out[r] = total
