"""Numba kernel of the certificate tracker: the pass over pre-activations that issues certificates."""

import numpy as np
from numba import njit

from widefit.kernels.certificate.rows import store_row
from widefit.kernels.certificate.slots import dot
from widefit.kernels.products import BLOCK, find_at_least, multiply, places, whole_tiles

# Outward rounding, relative, of what is stored in float32.
_DOWN32 = 1 - 2e-7
# Length of a row of int16, the largest of them: products of two such rows stay below 2³¹ by Cauchy-Schwarz, with room
# for what rounding adds. Below LEAST no unit falls, so that no product of two is 0; _BEYOND is beyond all products.
LENGTH, LEAST, _BEYOND = 32767.0, 1e-150, 2147483000.0


@njit(nogil=True, cache=True)
def pass_block(
    weights, panels, z, held, rounding, inputs, threshold, tolerance, floor, coefficients, bucket_of, radius, level,
    counts, start, words, scratch, issued, soonest, pair_sample, due, outputs,
):  # fmt: skip
    """Pre-activations of neurons, who fires, and certificates for the pairs near the threshold.

    Parameters
    ----------
    weights : (rows, d) float64 or the dtype of the network; decides where z is too near to the threshold
    panels, z : X in the dtype of the network or as int16, and room for products, see `widefit.kernels.products`
    held : (BLOCK, d) scratch of the same dtype, of int16 with an even number of columns
    rounding : (3,) float64, where X is int16: its unit, the largest length of a rounded sample, and the largest of what
        one lacks
    inputs : (n, d) in the dtype of the network
    threshold : float64
    tolerance, floor : the rounding of z_ri is at most tolerance · ‖w_r‖ + floor
    coefficients : (rows,) float64
    bucket_of : (n + 1,) uint8, bucket of a neuron that fires on k samples
    radius : (q,) float32, pairs get a certificate when it ends below that of their bucket; of size 0 for none
    level : (q, n) float32, the bounds so far, to which the margin is added
    counts, start, words : fire rows, written
    scratch : (2, n + 1) int32
    issued, soonest : (rows,) int32 and float32, written: certificates of each row, and when the first of them is due
    pair_sample, due : written: the samples of the certificates, row after row, and the levels at which they are due
    outputs : (n,) float64, to which f of these neurons is added in that precision: what it is off by at the start of a
        run it stays off by; neurons that fire on nothing get no certificates then. Of size 0 where f is known

    Returns
    -------
    pairs : number of certificates
    """
    rows, n = weights.shape[0], inputs.shape[0]
    fired, near = scratch[0], scratch[1]
    bits, about = np.empty((n + 63) // 64, np.uint64), np.empty((BLOCK, 2))
    adds, narrow = outputs.size > 0, z.itemsize < 8
    beyond = _BEYOND if held.itemsize == 2 else np.inf
    pairs = 0
    start[0] = 0
    for r in range(rows):
        if r % BLOCK == 0:
            block = weights[r : r + BLOCK]
            _hold(block, held, rounding, tolerance, floor, about)
            multiply(held[: whole_tiles(block.shape[0])], panels, z)
        w, row = weights[r], z[r % BLOCK]
        unit, slack = about[r % BLOCK, 0], about[r % BLOCK, 1]
        high = threshold + slack
        low = z.dtype.type(max(-beyond, min(beyond, (threshold - slack) / unit)))
        k = find_at_least(row, low, n, bits)
        candidates = places(bits, bits.size, near)
        k, a = 0, coefficients[r]
        for p in range(candidates):
            i = near[p]
            value = unit * np.float64(row[i])
            if (adds and narrow) or not value > high:
                value = dot(w, inputs[i])
            if value > threshold:
                fired[k] = i
                k += 1
                if adds:
                    outputs[i] += a * (value - threshold)

        counts[r] = k
        start[r + 1] = start[r] + store_row(fired, k, n, start[r], words)
        issued[r] = 0
        soonest[r] = np.inf
        if (k > 0 or not adds) and radius.size > 0:
            q = bucket_of[k]
            # Twice the slack: the rounding of the threshold and of the cut itself are part of it.
            farthest = (threshold - 2 * slack - np.float64(radius[q])) / unit
            find_at_least(row, z.dtype.type(max(-beyond, min(beyond, farthest))), n, bits)
            found = places(bits, bits.size, near)
            issued[r], soonest[r] = _issue(
                row, unit, threshold, slack, radius[q], level[q], near[:found], pair_sample[pairs:], due[pairs:]
            )
            pairs += issued[r]
    return pairs


@njit(nogil=True, cache=True)
def _hold(block, held, rounding, tolerance, floor, about):
    """Weights as the panels are multiplied by, into held, and what that tells, into about: z = unit · product ± slack.

    Rounded rows w̃ and x̃ miss ⟨w, x⟩ by ‖w − w̃‖ ‖x̃‖ + ‖w‖ ‖x − x̃‖ at most; two units are for cuts in such products.
    """
    step, longest, lost = rounding
    for r in range(block.shape[0]):
        w = block[r]
        length = np.sqrt(dot(w, w))
        about[r, 0], about[r, 1] = 1.0, tolerance * length + floor
        if held.itemsize > 2:
            for c in range(w.size):
                held[r, c] = w[c]
            continue
        size = max(length / LENGTH, LEAST)
        inverse = 1 / size
        for c in range(w.size):
            held[r, c] = np.int16(np.rint(w[c] * inverse))
        about[r, 0] = size * step
        about[r, 1] += 0.5001 * size * np.sqrt(w.size) * longest + length * lost + 2 * size * step


@njit(nogil=True, cache=True)
def _issue(z, unit, threshold, slack, reach, spent, near, pair_sample, due):
    """Certificates of a neuron for the samples near the threshold; returns how many, and when the first is due.

    unit, z : (n,) unit · z are the pre-activations, up to slack
    reach : float32, the radius; spent : (n,) float32, the bounds so far
    near : samples among which those near the threshold are
    """
    found = 0
    first = np.float32(np.inf)
    for p in range(near.size):
        i = near[p]
        margin = abs(unit * np.float64(z[i]) - threshold) - slack
        if margin + spent[i] < reach:
            at = np.float32((spent[i] + max(margin, 0.0)) * _DOWN32)
            pair_sample[found] = i
            due[found] = at
            first = min(first, at)
            found += 1
    return found, first
