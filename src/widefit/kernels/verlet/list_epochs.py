"""Numba kernels of stochastic steps on lists of near pairs: the weights stay, and who fires follows from who has fired.

**Visits.** Samples come at positions 0, 1, …, batch by batch; ``position`` (n,) int64 says where each does, -1 where it
does not.

**Pairs.** Listed pairs that are visited, by batch and, in a batch, by neuron: from start[t] to start[t + 1] those of
batch t, with their ``neurons``, their positions ``visits`` and their ``margins`` ⟨w_r, x⟩ − b at the weights before the
first visit.

**Rows.** For each neuron the positions at which it has fired: ``fired[first[r]:first[r] + count[r]]``. There is room
for a multiple of `ROOM`, filled up with the number of visits, a position where nothing comes. A count of -1 says that
the neuron is followed elsewhere.

Every kernel is serial and releases the GIL (see `widefit.kernels.fire_rows`). A pre-activation is the same to the last
bit whatever else stands in a list.
"""

import numpy as np
from numba import njit

from widefit.kernels.verlet.near_lists import _distance, _product

# Positions of a row that are added up at a time.
ROOM = 8


@njit(nogil=True, cache=True)
def margins_of(weights, inputs, threshold, start, samples, position, margins):
    """Margins of the pairs whose samples are visited; the others stay."""
    for r in range(weights.shape[0]):
        for p in range(start[r], start[r + 1]):
            i = np.int64(samples[p])
            if position[i] >= 0:
                margins[p] = _product(weights, inputs, r, i) - threshold


@njit(nogil=True, cache=True)
def count_pairs(samples, batch, counts):
    """counts[batch[i] + 1] += 1 for every listed pair of a sample i; a batch of -1 says that it is not visited."""
    for i in samples:
        counts[batch[i] + 1] += 1


@njit(nogil=True, cache=True)
def collect(start, samples, margins, position, batch, first, cursor, pairs):
    """Add the lists of a block, whose neurons count from `first` on, to pairs.

    Parameters
    ----------
    start, samples, margins : the lists
    position, batch : (n,) when each sample is visited
    cursor : (batches + 1,) int64, where the next pair of each batch goes; moved on
    pairs : neurons, visits, margins; written
    """
    neurons, visits, values = pairs
    for r in range(start.size - 1):
        for p in range(start[r], start[r + 1]):
            i = samples[p]
            if batch[i] >= 0:
                target = cursor[batch[i]]
                neurons[target], visits[target], values[target] = first + r, position[i], margins[p]
                cursor[batch[i]] = target + 1


@njit(nogil=True, cache=True, fastmath={"contract"})
def visit(pairs, rows, coefficients, low, moves, outputs, firing):
    """Who fires on the samples of a batch, and outputs[s] += Σ_r coefficient_r (⟨w_r, x⟩ − b) over those.

    Parameters
    ----------
    pairs : neurons, visits, margins of the batch
    rows : first, count, fired
    coefficients : (rows,) float64
    low : position of the first sample
    moves : (b, visits + 1) float64, g_v ⟨x_v, x⟩ for each sample x of the batch and each position v, 0 from `low` on
    outputs : (b,) float64, added to
    firing : written: the pairs that fire

    Returns
    -------
    k : how many those are
    """
    neurons, visits, margins = pairs
    first, count, fired = rows
    k = 0
    for p in range(neurons.size):
        r, s = neurons[p], np.int64(visits[p]) - low
        move = moves[s]
        length = np.int64(count[r])
        a = b = c = d = 0.0
        for q in range(first[r], first[r] + length, 8):
            a += move[fired[q]] + move[fired[q + 4]]
            b += move[fired[q + 1]] + move[fired[q + 5]]
            c += move[fired[q + 2]] + move[fired[q + 6]]
            d += move[fired[q + 3]] + move[fired[q + 7]]
        z = margins[p] - coefficients[r] * ((a + b) + (c + d))
        # Branchless: a silent pair adds a zero. NaN fires, so that it is seen.
        fires = (not (z <= 0)) & (length >= 0)
        outputs[s] += coefficients[r] * z if fires else 0.0
        firing[k] = p
        k += fires
    return k


@njit(nogil=True, cache=True, fastmath={"contract"})
def _moved(weights, coefficients, rows, g, inputs, r, out):
    """out[0] = w_r − coefficient_r Σ_v g_v x_v over the positions at which row r has fired."""
    first, count, fired = rows
    target, a, dtype = out[0], coefficients[r], out.dtype.type
    target[:] = weights[r]
    last = first[r] + count[r]
    whole = last - count[r] % 4
    for q in range(first[r], whole, 4):
        # Four at a time: the weights stay in registers for them.
        i, j, s, t = fired[q], fired[q + 1], fired[q + 2], fired[q + 3]
        f0, f1, f2, f3 = dtype(a * g[i]), dtype(a * g[j]), dtype(a * g[s]), dtype(a * g[t])
        for c in range(target.size):
            value = (target[c] - f0 * inputs[i, c]) - f1 * inputs[j, c]
            target[c] = (value - f2 * inputs[s, c]) - f3 * inputs[t, c]
    for q in range(whole, last):
        i = fired[q]
        f0 = dtype(a * g[i])
        for c in range(target.size):
            target[c] -= f0 * inputs[i, c]


@njit(nogil=True, cache=True)
def append(firing, pairs, g, lengths, inputs, rows, skins, coefficients, weights, reference, left):
    """Enter who has fired on a batch into the rows; a neuron that may be out of its skin is looked at.

    Parameters
    ----------
    firing, pairs : as `visit` leaves them
    g, lengths : (visits,) float64, g_v and ‖x_v‖, rounded up
    inputs : (visits, d)
    rows : first, count, fired
    skins : path, skin; a bound of how far each neuron is from where its list was made, and how far it may be
    weights, reference : (rows, d), before the first visit and where the lists were made; the weights of neurons that
        leave are written
    left : (rows,) int64, written: the neurons that have left their skins, and are followed elsewhere from now on

    Returns
    -------
    k : how many those are
    """
    neurons, visits, _ = pairs
    first, count, fired = rows
    path, skin = skins
    here = np.empty((1, weights.shape[1]), weights.dtype)
    k = 0
    for p in firing:
        r, v = np.int64(neurons[p]), np.int64(visits[p])
        if count[r] < 0:
            factor = weights.dtype.type(coefficients[r] * g[v])
            for c in range(weights.shape[1]):
                weights[r, c] -= factor * inputs[v, c]
            continue
        fired[first[r] + count[r]] = v
        count[r] += 1
        path[r] += abs(coefficients[r] * g[v]) * lengths[v] * (1 + 1e-9)
        if path[r] <= skin[r]:
            continue
        _moved(weights, coefficients, rows, g, inputs, r, here)
        path[r] = _distance(here, reference[r : r + 1], 0)
        if not (path[r] <= skin[r]):
            weights[r] = here[0]
            count[r], left[k] = -1, r
            k += 1
    return k


@njit(nogil=True, cache=True)
def fold(g, inputs, rows, skins, coefficients, weights, reference, left):
    """Move the neurons to where their rows have taken them, and begin new rows.

    The arguments are those of `append`, with `path` as it was before the first visit; written: for where they are now.
    """
    _, count, _ = rows
    path, skin = skins
    here = np.empty((1, weights.shape[1]), weights.dtype)
    k = 0
    for r in range(weights.shape[0]):
        if count[r] > 0:
            _moved(weights, coefficients, rows, g, inputs, r, here)
            path[r] += _distance(here, weights[r : r + 1], 0)
            weights[r], count[r] = here[0], 0
            if not (path[r] <= skin[r]):
                path[r] = _distance(here, reference[r : r + 1], 0)
            if not (path[r] <= skin[r]):
                # Rounding has taken it there.
                count[r], left[k] = -1, r
                k += 1
    return k
