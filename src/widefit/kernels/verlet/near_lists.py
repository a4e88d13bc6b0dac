"""Numba kernels of a step on lists of near pairs: move the neurons, test which lists still hold, find who fires.

Every kernel is serial and releases the GIL (see `widefit.kernels.fire_rows`). A pre-activation is the same to the last
bit whatever else stands in a list.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.borrowing import borrowing
from widefit.kernels.fire_rows import common


class ListedPairs(NamedTuple):
    """Samples that each neuron of a block can fire on while it is within its skin.

    Attributes
    ----------
    start : (rows + 1,) int64; the samples of row r are samples[start[r]:start[r + 1]], ascending
    samples : (listed,) integers
    fires : (listed,) bool, whether the pair fires
    """

    start: np.ndarray
    samples: np.ndarray
    fires: np.ndarray


class RowSkins(NamedTuple):
    """Validity of the list of each neuron of a block; arrays (rows,) float64.

    Attributes
    ----------
    path : distance from where the list was made, at most
    skin : distance that the list is good for
    made : step at which it was made
    """

    path: np.ndarray
    skin: np.ndarray
    made: np.ndarray


@borrowing
def _fired(lists, r, fired):
    """List the samples that row r fires on; return how many."""
    start, samples, fires = lists
    k = 0
    for p in range(start[r], start[r + 1]):
        # Branchless: always listed, and kept only when the pair fires.
        fired[k] = samples[p]
        k += fires[p]
    return k


@njit(nogil=True, cache=True, fastmath={"contract"})
def move(weights, anchor, shrink, coefficients, g, inputs, lists, out):
    """Write out_r = w_r − shrink (w_r − anchor_r) − coefficient_r Σ_{i: r fires on i} g_i x_i.

    Parameters
    ----------
    weights, out : (rows, d)
    anchor : (rows, d), or (0, d) when shrink is 0
    shrink : scalar of the dtype of weights
    coefficients : (rows,) float64, a_r / √m
    g : (n,) float64
    inputs : (n, d)
    lists : listed pairs
    """
    rows, d = weights.shape
    fired = np.empty(inputs.shape[0] + 1, np.int64)
    for r in range(rows):
        k = _fired(lists, r, fired)
        target = out[r]
        a = coefficients[r]
        target[:] = weights[r]
        if shrink != 0:
            for c in range(d):
                target[c] -= shrink * (target[c] - anchor[r, c])
        whole = k - k % 4
        for p in range(0, whole, 4):
            # Four at a time: the weights stay in registers for them.
            i, j, s, t = fired[p], fired[p + 1], fired[p + 2], fired[p + 3]
            f0 = inputs.dtype.type(a * g[i])
            f1 = inputs.dtype.type(a * g[j])
            f2 = inputs.dtype.type(a * g[s])
            f3 = inputs.dtype.type(a * g[t])
            for c in range(d):
                value = (target[c] - f0 * inputs[i, c]) - f1 * inputs[j, c]
                target[c] = (value - f2 * inputs[s, c]) - f3 * inputs[t, c]
        for p in range(whole, k):
            i = fired[p]
            f0 = inputs.dtype.type(a * g[i])
            for c in range(d):
                target[c] -= f0 * inputs[i, c]


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def distance(a, b, r):
    """Return ‖a_r − b_r‖, rounded up."""
    total = a.dtype.type(0)
    for c in range(a.shape[1]):
        total += (a[r, c] - b[r, c]) * (a[r, c] - b[r, c])
    return np.sqrt(np.float64(total)) * (1 + 1e-6 * a.shape[1])


@njit(nogil=True, cache=True)
def leave(weights, moved, reference, skins, step, scale, wide, reach, path, leaving):
    """List the neurons whose lists are to be made anew after a step; return how many.

    They are those that have left their skin and, once there are some or many, those whose skin is too wide.

    Parameters
    ----------
    weights, moved : (rows, d), before and after the step
    reference : (rows, d), where the lists were made
    skins : before the step
    step : number of the step
    scale, wide : a skin of √(scale · speed) is best, and one of √(wide · scale · speed) too wide
    reach : (rows,), distance that each may go before it is looked at again
    path : (rows,), written: the path after the step
    leaving : (rows,) int64, written
    """
    before, skin, made = skins
    k = 0
    left = 0
    for r in range(path.size):
        length = before[r] + distance(weights, moved, r)
        if not (length + reach[r] <= skin[r]):
            length = distance(moved, reference, r)
        stays = length + reach[r] <= skin[r]
        path[r] = length
        leaving[k] = r
        least = max(scale * length / (step - made[r]), reach[r] * reach[r])
        k += not (stays and skin[r] * skin[r] <= wide * least)
        left += not stays
    return k if left > 0 or 8 * k > path.size else 0


@njit(nogil=True, cache=True)
def count_near(z, lowest, norms, counts):
    """Write counts[q], the number of samples i with z_qi > lowest[q, 0] − lowest[q, 1] norms_i; NaN counts.

    Parameters
    ----------
    z : (q, n) pre-activations
    lowest : (q, 2) threshold and reach
    norms : (n,)
    """
    for q in range(z.shape[0]):
        k = 0
        for i in range(z.shape[1]):
            k += not (z[q, i] <= lowest[q, 0] - lowest[q, 1] * norms[i])
        counts[q] = k


@njit(nogil=True, cache=True)
def relist(old_start, old_samples, leaving, z, lowest, norms, start, samples):
    """Write lists in which those of some neurons are made anew.

    Parameters
    ----------
    old_start, old_samples : lists
    leaving : (q,) the neurons, ascending
    z, lowest, norms : as in `count_near`
    start, samples : written; samples has room for one more
    """
    rows = start.size - 1
    k = 0
    done = 0
    start[0] = 0
    for q in range(leaving.size + 1):
        r = leaving[q] if q < leaving.size else rows
        low = old_start[done]
        high = old_start[r]
        samples[k : k + high - low] = old_samples[low:high]
        for kept in range(done, r):
            start[kept + 1] = k + old_start[kept + 1] - low
        k += high - low
        if r == rows:
            break
        for i in range(norms.size):
            # Branchless; NaN is listed.
            samples[k] = i
            k += not (z[q, i] <= lowest[q, 0] - lowest[q, 1] * norms[i])
        start[r + 1] = k
        done = r + 1


@njit(nogil=True, cache=True)
def count_flips(before, after, leaving, n):
    """Count the pairs that fire in lists before or after, not in both; those of `leaving` have been made anew."""
    one = np.empty(n + 1, np.int64)
    other = np.empty(n + 1, np.int64)
    flips = 0
    q = 0
    for r in range(before.start.size - 1):
        if q < leaving.size and leaving[q] == r:
            k = _fired(before, r, one)
            p = _fired(after, r, other)
            flips += k + p - 2 * common(one, k, other, p)
            q += 1
            continue
        first = before.start[r]
        later = after.start[r]
        for p in range(before.start[r + 1] - first):
            flips += before.fires[first + p] != after.fires[later + p]
    return flips


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def product(a, b, r, i):
    """Return ⟨a_r, b_i⟩."""
    total = a.dtype.type(0)
    for c in range(a.shape[1]):
        total += a[r, c] * b[i, c]
    return total


@njit(nogil=True, cache=True)
def evaluate(weights, inputs, threshold, coefficients, lists, outputs, margins):
    """Find who fires, and add coefficient_r (⟨w_r, x_i⟩ − b) to outputs_i where r fires on i.

    Parameters
    ----------
    weights : (rows, d)
    lists : listed pairs; `fires` is written
    outputs : (n,) float64, added to
    margins : (listed,), written: ⟨w_r, x_i⟩ − b; or (0,)
    """
    start, samples, fires = lists
    for r in range(weights.shape[0]):
        a = coefficients[r]
        for p in range(start[r], start[r + 1]):
            i = np.int64(samples[p])
            z = product(weights, inputs, r, i)
            silent = z <= threshold
            # Branchless: a silent pair adds a zero.
            outputs[i] += a * np.float64(weights.dtype.type(0) if silent else z - threshold)
            fires[p] = not silent
            if margins.size > 0:
                margins[p] = z - threshold


@njit(nogil=True, cache=True)
def respond(offset, inputs, coefficients, lists, response):
    """Add Σ_{r fires on i} coefficient_r ⟨offset_r, x_i⟩ to response_i: part of J times a displacement."""
    start, samples, fires = lists
    for r in range(offset.shape[0]):
        for p in range(start[r], start[r + 1]):
            if fires[p]:
                i = np.int64(samples[p])
                response[i] += coefficients[r] * product(offset, inputs, r, i)
