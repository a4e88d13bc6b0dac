"""Numba kernels of steps in sample space: only pairs near the threshold are evaluated, and no weights are read.

``half`` is any matrix with H = scale K ∘ (half + halfᵀ): a flip of (r, j) changes its row j alone.

Every kernel is serial and releases the GIL.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.borrowing import borrowing


class SamplePairs(NamedTuple):
    """Pairs near the threshold, ordered by sample, and for a sample by neuron.

    Attributes
    ----------
    start : (n + 1,), pairs of sample j are start[j]:start[j + 1]
    slot : (pairs,), row of the pair's neuron
    z : (pairs,), ⟨w, x⟩ − b
    fires : (pairs,) bool
    flipped : (pairs,) int8, 1 for a pair that fires since `half` was brought up to date, −1 for one that no longer does
    """

    start: np.ndarray
    slot: np.ndarray
    z: np.ndarray
    fires: np.ndarray
    flipped: np.ndarray


class SlotRows(NamedTuple):
    """Samples that the neuron of each slot fires on, in any order: words[first[s]:first[s] + length[s]].

    There is room in each row for all pairs of its neuron.
    """

    first: np.ndarray
    length: np.ndarray
    words: np.ndarray


class SharedSlots(NamedTuple):
    """Slots with more than one pair.

    Attributes
    ----------
    start : (q + 1,), pairs of the q-th of these slots are start[q]:start[q + 1]
    pairs, samples : the pairs, and their samples
    slots : (q,)
    """

    start: np.ndarray
    pairs: np.ndarray
    samples: np.ndarray
    slots: np.ndarray


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def _image(half, similarity, g, j, h, image):
    """Write h = K_j ∘ g, add (row j of half) h to image_j, and (row j of half)ᵀ ∘ K_j g_j to image."""
    own = g[j]
    total = 0.0
    for i in range(g.size):
        value = similarity[j, i] * g[i]
        count = half[j, i]
        h[i] = value
        total += count * value
        image[i] += count * similarity[j, i] * own
    image[j] += total


@borrowing
def _sum_over_row(words, first, length, h):
    """Return Σ h_i over the samples of a row: four sums, and no gather instructions, which are slower than loads."""
    one = 0.0
    two = 0.0
    three = 0.0
    four = 0.0
    high = first + length
    whole = high - length % 4
    for p in range(first, whole, 4):
        one += h[words[p]]
        two += h[words[p + 1]]
        three += h[words[p + 2]]
        four += h[words[p + 3]]
    for p in range(whole, high):
        one += h[words[p]]
    return (one + two) + (three + four)


@borrowing
def _update_row(j, pairs, rows, squares, half):
    """Bring row j of half up to date with flips; `pairs.flipped` is set to 0 there.

    squares : (slots,) weight of a co-firing
    """
    start, slot, _, _, flipped = pairs
    first, length, words = rows
    for p in range(start[j], start[j + 1]):
        if flipped[p] == 0:
            continue
        s = slot[p]
        square = half.dtype.type(flipped[p] * squares[s])
        for t in range(first[s], first[s] + length[s]):
            half[j, words[t]] += square
        # The pair itself counts once, half of it here: it stands in its row when it fires.
        half[j, j] += half.dtype.type(-0.5 if flipped[p] > 0 else 0.5) * square
        flipped[p] = 0


@njit(nogil=True, cache=True)
def update_counts(pairs, rows, squares, half):
    """Bring half up to date with flips; `pairs.flipped` is set to 0.

    squares : (slots,) weight of a co-firing
    """
    for j in range(half.shape[0]):
        _update_row(j, pairs, rows, squares, half)


@njit(nogil=True, cache=True)
def evaluate(edges, pairs, rows, coefficients, squares, g, similarity, half, after, images, bends):
    """Compute z of the pairs of some samples after a step, and the terms of these samples in f; return the flips.

    Parameters
    ----------
    edges : (parts + 1,) part p has the samples edges[p]:edges[p + 1]
    coefficients : (slots,) a / √m
    squares : (slots,) weight of a co-firing
    g : (n,)
    similarity, half : (n, n); half is brought up to date
    after : (pairs,), written: z after the step
    images : (parts, n), added to: each part of H g / scale
    bends : (n,), written: effect of flips on f
    """
    start, slot, z, fires, _ = pairs
    first, length, words = rows
    h = np.empty(g.size)
    flips = 0
    for part in range(edges.size - 1):
        for j in range(edges[part], edges[part + 1]):
            # While the row is at hand.
            _update_row(j, pairs, rows, squares, half)
            _image(half, similarity, g, j, h, images[part])
            bend = 0.0
            for p in range(start[j], start[j + 1]):
                s = slot[p]
                moved = z[p] - coefficients[s] * _sum_over_row(words, first[s], length[s], h)
                after[p] = moved
                now = not (moved <= 0)
                if now != fires[p]:
                    flips += 1
                    bend += coefficients[s] * moved if now else -coefficients[s] * moved
            bends[j] = bend
    return flips


@njit(nogil=True, cache=True)
def commit(pairs, rows, g, after, turned, carried):
    """Carry a step out: z, who fires, and the rows; half is left to `update_counts`.

    Parameters
    ----------
    g, after : as in `evaluate`
    turned : (pairs,), written: True for pairs that have flipped
    carried : (pairs,), added to: Σ g_l over the steps in which the pair fired
    """
    start, slot, z, fires, flipped = pairs
    first, length, words = rows
    for j in range(g.size):
        for p in range(start[j], start[j + 1]):
            carried[p] += g[j] if fires[p] else 0.0
            z[p] = after[p]
            now = not (after[p] <= 0)
            if now == fires[p]:
                continue
            s = slot[p]
            high = first[s] + length[s]
            if now:
                words[high] = j
                high += 1
            else:
                for t in range(first[s], high):
                    if words[t] == j:
                        words[t] = words[high - 1]
                        break
                high -= 1
            length[s] = high - first[s]
            fires[p] = now
            turned[p] = True
            flipped[p] = 1 if now else -1


@njit(nogil=True, cache=True)
def subtract_double(flipped, squares, half, shared):
    """Subtract the pairs of flips of the same neuron, which `update_counts` will count twice."""
    start, pairs, samples, slots = shared
    for q in range(start.size - 1):
        for one in range(start[q], start[q + 1]):
            a = flipped[pairs[one]]
            if a == 0:
                continue
            for other in range(start[q], one):
                b = flipped[pairs[other]]
                if b != 0:
                    half[samples[one], samples[other]] -= half.dtype.type(a * b * squares[slots[q]])


@njit(nogil=True, cache=True)
def fold(weights, coefficients, inputs, neurons, samples, amounts):
    """Subtract coefficient_r amount x_i from w_r for every pair (r, i)."""
    for q in range(neurons.size):
        r = neurons[q]
        i = samples[q]
        factor = coefficients[r] * amounts[q]
        for c in range(weights.shape[1]):
            weights[r, c] -= factor * inputs[i, c]


@njit(nogil=True, cache=True)
def restore(lists, neurons, samples, fires):
    """Write whether some pairs fire, where they are listed."""
    start, listed, out = lists
    for q in range(neurons.size):
        low = start[neurons[q]]
        high = start[neurons[q] + 1]
        place = low + np.searchsorted(listed[low:high], samples[q])
        if place < high and listed[place] == samples[q]:
            out[place] = fires[q]


@njit(nogil=True, cache=True)
def reach(lists, direction, coefficients, stretch, deviation, out):
    """Bound the movement of each neuron apart from its near pairs: |a_r| (stretch ‖v_r‖ + deviation[k_r]).

    Parameters
    ----------
    lists : listed pairs
    direction : (rows, d), v_r = Σ_{i: r fires on i} ĝ_i x_i
    deviation : (n + 1,), by the number of samples that a neuron fires on
    """
    for r in range(out.size):
        k = _count_firing(lists, r)
        length = np.sqrt(_square(direction[r]))
        out[r] = abs(coefficients[r]) * (stretch * length + deviation[k]) * (1 + 1e-9) if k > 0 else 0.0


@borrowing
def _count_firing(lists, r):
    """Return the number of samples that row r fires on."""
    k = 0
    for p in range(lists.start[r], lists.start[r + 1]):
        k += lists.fires[p]
    return k


@borrowing
def _square(vector):
    total = 0.0
    for c in range(vector.size):
        total += vector[c] * vector[c]
    return total


class Course(NamedTuple):
    """Steps that a forecast expects, for the neurons of a block.

    Attributes
    ----------
    direction : (rows, d), v_r = Σ_{i: r fires on i} ĝ_i x_i
    stretch : Θ
    deviation : (n + 1,), by the number of samples that a neuron fires on
    swing : (n,) distance that a pair of sample i that flips can take its neuron, over |a|
    """

    direction: np.ndarray
    stretch: float
    deviation: np.ndarray
    swing: np.ndarray


@njit(nogil=True, cache=True)
def choose(lists, margins, course, coefficients, inputs, norms, rounding, most, near, out):
    """Find the pairs that can come to the threshold; return their number, more than `most` where it gave up.

    Each lets its neuron go further: until none is new.

    Parameters
    ----------
    margins : (listed,) ⟨w, x⟩ − b
    norms : (n,) ‖x_i‖
    rounding : (rows,) of a pre-activation, over 1 + ‖x_i‖
    near : (listed,), written
    out : (rows,), written: distance that each neuron can go
    """
    start = lists.start
    samples = lists.samples
    direction, stretch, deviation, swing = course
    found = 0
    for r in range(out.size):
        for p in range(start[r], start[r + 1]):
            near[p] = False
        out[r] = 0.0
        k = _count_firing(lists, r)
        if k == 0:
            continue
        a = coefficients[r]
        straight = abs(a) * stretch * np.sqrt(_square(direction[r])) * (1 + 1e-9)
        off = abs(a) * deviation[k]
        before = -1
        while before != found and found <= most:
            before = found
            for p in range(start[r], start[r + 1]):
                i = samples[p]
                wide = off * norms[i] + rounding[r] * (1 + norms[i])
                if near[p] or abs(margins[p]) > straight * norms[i] + wide:
                    continue
                along = 0.0
                for c in range(direction.shape[1]):
                    along += direction[r, c] * inputs[i, c]
                end = margins[p] - a * stretch * along
                least = min(abs(margins[p]), abs(end))
                if not (least > wide and (end > 0) == (margins[p] > 0)):
                    near[p] = True
                    found += 1
                    off += abs(a) * swing[i]
        out[r] = straight + off
    return found


@njit(nogil=True, cache=True)
def rows_of(lists, neurons, first, length, words):
    """Write the samples that neurons fire on, with room for the near pairs that do not fire.

    Parameters
    ----------
    neurons : (slots,) rows of the lists
    first : (slots,) first word of each
    length, words : written
    """
    start, samples, fires = lists
    for s in range(neurons.size):
        k = first[s]
        for p in range(start[neurons[s]], start[neurons[s] + 1]):
            if fires[p]:
                words[k] = samples[p]
                k += 1
        length[s] = k - first[s]
