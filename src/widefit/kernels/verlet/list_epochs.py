"""Numba kernels of stochastic steps on lists of near pairs: the weights stay, and who fires follows from who has fired.

Samples are visited at positions 0, 1, …, batch by batch; ``position`` (n,) int64 is that of each, -1 for samples that
are not visited.

Every kernel is serial and releases the GIL (see `widefit.kernels.fire_rows`). A pre-activation is the same to the last
bit whatever else stands in a list.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.verlet.near_lists import distance, product

# Positions of a row that are added up at a time.
ROOM = 8


class VisitedPairs(NamedTuple):
    """Listed pairs that are visited, by batch and, in a batch, by neuron.

    Attributes
    ----------
    neurons : integers
    visits : integers, position of each pair's sample
    margins : ⟨w_r, x⟩ − b at the weights before the first visit
    """

    neurons: np.ndarray
    visits: np.ndarray
    margins: np.ndarray


class FiredVisits(NamedTuple):
    """Positions at which each neuron has fired, fired[first[r]:first[r] + count[r]].

    Attributes
    ----------
    first : (rows,) int64
    count : (rows,) int32; −1 for a neuron that is followed elsewhere
    fired : integers; there is room for a multiple of `ROOM` of each row, filled up with the number of visits, a
        position where nothing comes
    """

    first: np.ndarray
    count: np.ndarray
    fired: np.ndarray


class MovingRows(NamedTuple):
    """Neurons whose weights stay behind, and the distance that each may have moved.

    Attributes
    ----------
    coefficients : (rows,) float64
    weights : (rows, d), before the first visit
    reference : (rows, d), where the lists were made
    path : (rows,) float64, bound of the distance from there
    skin : (rows,) float64, distance that the lists are good for
    """

    coefficients: np.ndarray
    weights: np.ndarray
    reference: np.ndarray
    path: np.ndarray
    skin: np.ndarray


@njit(nogil=True, cache=True)
def margins_of(weights, inputs, threshold, start, samples, position, margins):
    """Write the margins of the pairs whose samples are visited; the others stay."""
    for r in range(weights.shape[0]):
        for p in range(start[r], start[r + 1]):
            i = np.int64(samples[p])
            if position[i] >= 0:
                margins[p] = product(weights, inputs, r, i) - threshold


@njit(nogil=True, cache=True)
def count_pairs(samples, batch, counts):
    """Add 1 to counts[batch[i] + 1] for every listed pair of a sample i; a batch of -1: it is not visited."""
    for i in samples:
        counts[batch[i] + 1] += 1


@njit(nogil=True, cache=True)
def collect(start, samples, margins, position, batch, first, cursor, pairs):
    """Add the lists of a block, whose neurons count from `first` on, to pairs.

    Parameters
    ----------
    start, samples, margins : the lists
    position, batch : (n,) position and batch of each sample
    cursor : (batches + 1,) int64, where the next pair of each batch goes; moved on
    pairs : written
    """
    neurons, visits, values = pairs
    for r in range(start.size - 1):
        for p in range(start[r], start[r + 1]):
            i = samples[p]
            if batch[i] >= 0:
                target = cursor[batch[i]]
                neurons[target] = first + r
                visits[target] = position[i]
                values[target] = margins[p]
                cursor[batch[i]] = target + 1


@njit(nogil=True, cache=True, fastmath={"contract"})
def visit(pairs, rows, coefficients, low, moves, outputs, firing):
    """Find who fires on the samples of a batch, and add coefficient_r (⟨w_r, x⟩ − b) of those to outputs[s].

    Parameters
    ----------
    pairs : those of the batch
    rows : visits at which neurons have fired
    coefficients : (rows,) float64
    low : position of the first sample
    moves : (b, visits + 1) float64, g_v ⟨x_v, x⟩ for each sample x of the batch and each position v, 0 from `low` on
    outputs : (b,) float64, added to
    firing : written: the pairs that fire

    Returns
    -------
    k : number of those
    """
    neurons, visits, margins = pairs
    first, count, fired = rows
    k = 0
    for p in range(neurons.size):
        r = neurons[p]
        s = np.int64(visits[p]) - low
        move = moves[s]
        length = np.int64(count[r])
        a = 0.0
        b = 0.0
        c = 0.0
        d = 0.0
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
def _move(weights, coefficients, rows, g, inputs, r, out):
    """Write out[0] = w_r − coefficient_r Σ_v g_v x_v over the positions at which row r has fired."""
    first, count, fired = rows
    target = out[0]
    a = coefficients[r]
    dtype = out.dtype.type
    target[:] = weights[r]
    last = first[r] + count[r]
    whole = last - count[r] % 4
    for q in range(first[r], whole, 4):
        # Four at a time: the weights stay in registers for them.
        i, j, s, t = fired[q], fired[q + 1], fired[q + 2], fired[q + 3]
        f0 = dtype(a * g[i])
        f1 = dtype(a * g[j])
        f2 = dtype(a * g[s])
        f3 = dtype(a * g[t])
        for c in range(target.size):
            value = (target[c] - f0 * inputs[i, c]) - f1 * inputs[j, c]
            target[c] = (value - f2 * inputs[s, c]) - f3 * inputs[t, c]
    for q in range(whole, last):
        i = fired[q]
        f0 = dtype(a * g[i])
        for c in range(target.size):
            target[c] -= f0 * inputs[i, c]


@njit(nogil=True, cache=True)
def append(firing, pairs, g, lengths, inputs, rows, moving, escaped):
    """Enter who has fired on a batch into the rows, and find the neurons that leave their skins.

    Parameters
    ----------
    firing, pairs : as `visit` leaves them
    g, lengths : (visits,) float64, g_v and ‖x_v‖, rounded up
    inputs : (visits, d)
    rows : visits at which neurons have fired
    moving : `path` is brought up to date, and the weights of neurons that leave are written
    escaped : (rows,) int64, written: the neurons that have left their skins, and are followed elsewhere from now on

    Returns
    -------
    k : number of those
    """
    neurons, visits, _ = pairs
    first, count, fired = rows
    coefficients, weights, reference, path, skin = moving
    here = np.empty((1, weights.shape[1]), weights.dtype)
    k = 0
    for p in firing:
        r = np.int64(neurons[p])
        v = np.int64(visits[p])
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
        _move(weights, coefficients, rows, g, inputs, r, here)
        path[r] = distance(here, reference[r : r + 1], 0)
        if not (path[r] <= skin[r]):
            weights[r] = here[0]
            count[r] = -1
            escaped[k] = r
            k += 1
    return k


@njit(nogil=True, cache=True)
def fold(g, inputs, rows, moving, escaped):
    """Move the neurons to where their rows have taken them, and begin new rows.

    The arguments are those of `append`, with `path` as it was before the first visit; written: for where they are now.
    """
    count = rows.count
    coefficients, weights, reference, path, skin = moving
    here = np.empty((1, weights.shape[1]), weights.dtype)
    k = 0
    for r in range(weights.shape[0]):
        if count[r] > 0:
            _move(weights, coefficients, rows, g, inputs, r, here)
            path[r] += distance(here, weights[r : r + 1], 0)
            weights[r] = here[0]
            count[r] = 0
            if not (path[r] <= skin[r]):
                path[r] = distance(here, reference[r : r + 1], 0)
            if not (path[r] <= skin[r]):
                # Rounding has taken it there.
                count[r] = -1
                escaped[k] = r
                k += 1
    return k
