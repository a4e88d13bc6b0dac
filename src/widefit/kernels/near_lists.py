"""Numba kernels of a step on lists of near pairs: who moves, whose list still holds there, and who fires.

**Lists.** For each neuron of a block the samples that it can fire on while it is within its skin, ascending: row r
stands in samples[start[r]:start[r + 1]], and ``fires`` says of every entry whether the pair fires.

**Skins.** For each neuron ``path``, how far it can be from where its list was made, ``skin``, how far its list is good
for, and ``made``, the step at which it was made: three arrays (rows,) float64.

Every kernel is serial and releases the GIL (see `widefit.kernels.cpu`). A pre-activation is the same to the last bit
whatever else stands in a list.
"""

import numpy as np
from numba import njit

from widefit.kernels.cpu import _common


@njit(nogil=True, cache=True)
def move(weights, anchor, shrink, coefficients, g, inputs, lists, out):
    """out_r = w_r − shrink (w_r − anchor_r) − coefficient_r Σ_{i: r fires on i} g_i x_i.

    Parameters
    ----------
    weights, out : (rows, d)
    anchor : (rows, d), or (0, d) when shrink is 0
    shrink : scalar of the dtype of weights
    coefficients : (rows,) float64, a_r / √m
    g : (n,) float64
    inputs : (n, d)
    lists : start, samples, fires
    """
    fired = np.empty(inputs.shape[0] + 1, np.int64)
    for r in range(weights.shape[0]):
        k = _fired(lists, r, fired)
        _move_row(weights, anchor, shrink, coefficients[r], g, inputs, r, fired[:k], out)


@njit(nogil=True, cache=True)
def _fired(lists, r, fired):
    """The samples of row r that fire, into fired[:k]; returns k."""
    start, samples, fires = lists
    k = 0
    for p in range(start[r], start[r + 1]):
        # Branchless: always listed, and kept only when the pair fires.
        fired[k] = samples[p]
        k += fires[p]
    return k


@njit(nogil=True, cache=True, fastmath={"contract"})
def _move_row(weights, anchor, shrink, a, g, inputs, r, fired, out):
    """Row r of `move`; out may be the weights."""
    d, real = weights.shape[1], inputs.dtype.type
    if shrink != 0:
        for c in range(d):
            out[r, c] = weights[r, c] - shrink * (weights[r, c] - anchor[r, c])
    else:
        out[r] = weights[r]
    whole = fired.size - fired.size % 4
    for p in range(0, whole, 4):
        i, j, s, t = fired[p], fired[p + 1], fired[p + 2], fired[p + 3]
        f0, f1, f2, f3 = real(a * g[i]), real(a * g[j]), real(a * g[s]), real(a * g[t])
        for c in range(d):
            value = (out[r, c] - f0 * inputs[i, c]) - f1 * inputs[j, c]
            out[r, c] = (value - f2 * inputs[s, c]) - f3 * inputs[t, c]
    for p in range(whole, fired.size):
        i = fired[p]
        f0 = real(a * g[i])
        for c in range(d):
            out[r, c] -= f0 * inputs[i, c]


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def _distance(a, b, q, r):
    """‖a_q − b_r‖, rounded up."""
    total = a.dtype.type(0)
    for c in range(a.shape[1]):
        total += (a[q, c] - b[r, c]) * (a[q, c] - b[r, c])
    return np.sqrt(np.float64(total)) * (1 + 1e-6 * a.shape[1])


@njit(nogil=True, cache=True)
def _lasts(moved, reference, r, path, skin, since, scale, wide):
    """How far row r is from where its list was made, and whether the list is to last; path is a bound on that."""
    length = path
    if not (length <= skin):
        length = _distance(moved, reference, r, r)
    return length, length <= skin and skin * skin <= wide * scale * length / since


@njit(nogil=True, cache=True)
def leave(weights, moved, reference, skins, step, scale, wide, path, leaving):
    """Neurons whose lists are to be made anew after a step, into leaving[:k]; returns k.

    Parameters
    ----------
    weights, moved : (rows, d), before and after the step
    reference : (rows, d), where the lists were made
    skins : path, skin, made
    step : number of the step
    scale, wide : a skin of √(scale · speed) is best, and one of √(wide · scale · speed) too wide
    path : (rows,), written: the path after the step
    """
    before, skin, made = skins
    k = 0
    for r in range(path.size):
        length = before[r] + _distance(weights, moved, r, r)
        path[r], lasts = _lasts(moved, reference, r, length, skin[r], step - made[r], scale, wide)
        leaving[k] = r
        k += not lasts
    return k


@njit(nogil=True, cache=True)
def count_near(z, lowest, norms, counts):
    """counts[q] = number of samples i with z_qi > lowest[q, 0] − lowest[q, 1] norms_i; NaN counts.

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
    """Lists in which those of some neurons are made anew.

    Parameters
    ----------
    old_start, old_samples : lists
    leaving : (q,) the neurons, ascending
    z, lowest, norms : as in `count_near`
    start, samples : written; samples has room for one more
    """
    rows, k, done = start.size - 1, 0, 0
    start[0] = 0
    for q in range(leaving.size + 1):
        r = leaving[q] if q < leaving.size else rows
        low, high = old_start[done], old_start[r]
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
        start[r + 1], done = k, r + 1


@njit(nogil=True, cache=True)
def count_flips(before, after, n):
    """Pairs that fire in one of two lists of the same neurons, and not in the other."""
    one, other = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    flips = 0
    for r in range(before[0].size - 1):
        k, q = _fired(before, r, one), _fired(after, r, other)
        flips += k + q - 2 * _common(one, k, other, q)
    return flips


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def _product(a, b, r, i):
    """⟨a_r, b_i⟩."""
    total = a.dtype.type(0)
    for c in range(a.shape[1]):
        total += a[r, c] * b[i, c]
    return total


@njit(nogil=True, cache=True)
def evaluate(weights, inputs, threshold, coefficients, lists, outputs):
    """Who fires, and outputs_i += coefficient_r (⟨w_r, x_i⟩ − b) where r fires on i.

    Parameters
    ----------
    weights : (rows, d)
    lists : start, samples, fires; fires is written
    outputs : (n,) float64, added to
    """
    start, samples, fires = lists
    for r in range(weights.shape[0]):
        a = coefficients[r]
        for p in range(start[r], start[r + 1]):
            i = np.int64(samples[p])
            z = _product(weights, inputs, r, i)
            silent = z <= threshold
            # Branchless: a silent pair adds a zero.
            outputs[i] += a * np.float64(weights.dtype.type(0) if silent else z - threshold)
            fires[p] = not silent


@njit(nogil=True, cache=True)
def respond(offset, inputs, coefficients, lists, response):
    """response_i += Σ_{r fires on i} coefficient_r ⟨offset_r, x_i⟩: part of J times a displacement."""
    start, samples, fires = lists
    for r in range(offset.shape[0]):
        for p in range(start[r], start[r + 1]):
            if fires[p]:
                i = np.int64(samples[p])
                response[i] += coefficients[r] * _product(offset, inputs, r, i)


@njit(nogil=True, cache=True)
def move_fired(weights, anchor, shrink, coefficients, g, inputs, lists, reference, skins, step, scale, wide, leaving):
    """`move` in place and `leave` in one, for steps that most neurons do not move in; returns the number that leave."""
    path, skin, made = skins
    fired, before = np.empty(inputs.shape[0] + 1, np.int64), np.empty((1, weights.shape[1]), weights.dtype)
    k = 0
    for r in range(weights.shape[0]):
        fires = _fired(lists, r, fired)
        if fires == 0 and shrink == 0:
            continue
        before[0] = weights[r]
        _move_row(weights, anchor, shrink, coefficients[r], g, inputs, r, fired[:fires], weights)
        length = path[r] + _distance(before, weights, 0, r)
        path[r], lasts = _lasts(weights, reference, r, length, skin[r], step - made[r], scale, wide)
        leaving[k] = r
        k += not lasts
    return k


@njit(nogil=True, cache=True)
def evaluate_batch(weights, inputs, threshold, coefficients, place, lists, outputs):
    """Who fires on the samples of a batch, as if no neuron fired on any other, and what that adds to their outputs.

    Parameters
    ----------
    place : (n,) int32, where a sample stands in the batch; -1: not in it
    lists : start, samples, fires; fires is written
    outputs : (b,) float64, added to
    """
    start, samples, fires = lists
    for r in range(weights.shape[0]):
        for p in range(start[r], start[r + 1]):
            fires[p] = False
            i = np.int64(samples[p])
            if place[i] >= 0:
                z = _product(weights, inputs, r, i)
                if not (z <= threshold):
                    fires[p] = True
                    outputs[place[i]] += coefficients[r] * np.float64(z - threshold)
