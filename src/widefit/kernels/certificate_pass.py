"""Numba kernel of the certificate tracker: the pass over pre-activations that issues certificates."""

import numpy as np
from numba import njit

from widefit.kernels.certificate_rows import store_row
from widefit.kernels.certificate_slots import dot

# Outward rounding, relative, of what is stored in float32.
_UP32 = 1 + 2e-7
_DOWN32 = 1 - 2e-7


@njit(nogil=True, cache=True)
def pass_block(
    z, weights, inputs, threshold, tolerance, floor, coefficients, bucket_of, radius, level, idle, counts, start, words,
    scratch, issued, soonest, pair_sample, due, outputs,
):  # fmt: skip
    """Who fires in a block of pre-activations, and certificates for the pairs near the threshold.

    Parameters
    ----------
    z : (rows, n) pre-activations in the dtype of the network
    weights : (rows, d) float64 or the dtype of the network; decides where z is too near to the threshold
    inputs : (n, d) float64
    threshold : float64
    tolerance, floor : the rounding of z_ri is at most tolerance · ‖w_r‖ + floor
    coefficients : (rows,) float64
    bucket_of : (n + 1,) uint8, bucket of a neuron that fires on k samples
    radius : (q,) float32, pairs get a certificate when it ends below that of their bucket; of size 0 for none
    level : (q, n) float32, the bounds so far, to which the margin is added
    idle : True when neurons that fire on nothing get certificates, too
    counts, start, words : fire rows, written
    scratch : (2, n + 1) int32
    issued, soonest : (rows,) int32 and float32, written: certificates of each row, and when the first of them is due
    pair_sample, due : written: the samples of the certificates, row after row, and the levels at which they are due
    outputs : (n,) float64, added to

    Returns
    -------
    pairs : number of certificates
    """
    rows, n = z.shape
    fired, near = scratch[0], scratch[1]
    pairs = 0
    start[0] = 0
    for r in range(rows):
        w = weights[r]
        slack = tolerance * np.sqrt(dot(w, w)) + floor
        low = z.dtype.type(threshold - slack)
        high = threshold + slack
        maybe = 0
        for i in range(n):
            fired[maybe] = i
            maybe += z[r, i] >= low
        k = 0
        for p in range(maybe):
            i = fired[p]
            if z[r, i] > high or dot(w, inputs[i]) > threshold:
                fired[k] = i
                k += 1
        a = coefficients[r]
        for p in range(k):
            i = fired[p]
            outputs[i] += a * (np.float64(z[r, i]) - threshold)

        counts[r] = k
        start[r + 1] = start[r] + store_row(fired, k, n, start[r], words)
        issued[r] = 0
        soonest[r] = np.inf
        if (k > 0 or idle) and radius.size > 0:
            q = bucket_of[k]
            issued[r], soonest[r] = _issue(
                z[r], threshold, slack, radius[q], level[q], near, pair_sample[pairs:], due[pairs:]
            )
            pairs += issued[r]
    return pairs


@njit(nogil=True, cache=True)
def _issue(z, threshold, slack, reach, spent, near, pair_sample, due):
    """Certificates of a neuron for the samples near the threshold; returns how many, and when the first is due.

    z : (n,) pre-activations, known up to slack
    reach : float32, the radius; spent : (n,) float32, the bounds so far
    near : (n + 1,) int32, scratch
    """
    middle = z.dtype.type(threshold)
    # The rounding of the threshold to the dtype of z is part of the slack.
    wider = np.float32(slack * _UP32)
    found = 0
    for i in range(z.size):
        near[found] = i
        found += np.float32(abs(z[i] - middle)) + spent[i] < reach + wider
    first = np.float32(np.inf)
    for p in range(found):
        i = near[p]
        margin = max(abs(np.float64(z[i]) - threshold) - slack, 0.0)
        at = np.float32((spent[i] + margin) * _DOWN32)
        pair_sample[p] = i
        due[p] = at
        first = min(first, at)
    return found, first
