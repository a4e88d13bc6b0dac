"""Numba kernels of steps in sample space: only pairs near the threshold are looked at, and no weights are read.

**Pairs** are ordered by sample, and for a sample by neuron: those of sample j stand in start[j]:start[j + 1], and
``slot`` says whose they are. **Rows**: for each neuron of a pair the samples that it fires on, in any order,
words[first[s]:first[s] + length[s]], with room for all of its pairs. **half** is any matrix with
H = scale K ∘ (half + halfᵀ): a flip of (r, j) changes its row j alone.

Every kernel is serial and releases the GIL.
"""

import numpy as np
from numba import njit

_FAST = {"contract", "reassoc"}


@njit(nogil=True, cache=True, fastmath=_FAST)
def _image(half, similarity, g, j, h, image):
    """h = K_l ∘ g, image_l += (row j of half) h, and image += (row j of half)ᵀ ∘ K_l g_l."""
    own, total = g[j], 0.0
    for i in range(g.size):
        value, count = similarity[j, i] * g[i], half[j, i]
        h[i] = value
        total += count * value
        image[i] += count * similarity[j, i] * own
    image[j] += total


@njit(nogil=True, cache=True)
def _sum_over_row(words, first, length, h):
    """Σ h_i over the samples of a row: four sums, and no gather instructions, which are slower than loads."""
    one = two = three = four = 0.0
    high, whole = first + length, first + length - length % 4
    for p in range(first, whole, 4):
        one += h[words[p]]
        two += h[words[p + 1]]
        three += h[words[p + 2]]
        four += h[words[p + 3]]
    for p in range(whole, high):
        one += h[words[p]]
    return (one + two) + (three + four)


@njit(nogil=True, cache=True)
def settle(low, high, pairs, flipped, rows, squares, half):
    """Bring rows low to high of half up to date with flips.

    Parameters
    ----------
    squares : (slots,) what a co-firing counts
    flipped : (pairs,) 1 for a pair that fires since, −1 for one that no longer does; set to 0
    The others are as in `evaluate`.
    """
    start, slot = pairs
    first, length, words = rows
    for j in range(low, high):
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
def evaluate(edges, pairs, z, fires, flipped, rows, coefficients, squares, g, similarity, half, after, images, bends):
    """Where a step takes the pairs of some samples, and their part of what it does to f; returns the flips.

    Parameters
    ----------
    edges : (parts + 1,) part p has the samples edges[p]:edges[p + 1]
    pairs : start, slot
    z, fires : (pairs,) ⟨w, x⟩ − b, and whether the pair fires
    flipped : (pairs,) as in `settle`
    rows : first, length, words
    coefficients : (slots,) a / √m
    g : (n,)
    similarity, half : (n, n); half is brought up to date
    after : (pairs,), written: z after the step
    images : (parts, n), added to: each part of H g / scale
    bends : (n,), written: what flips do to f
    """
    start, slot = pairs
    first, length, words = rows
    h, flips = np.empty(g.size), 0
    for part in range(edges.size - 1):
        for j in range(edges[part], edges[part + 1]):
            # While the row is at hand.
            settle(j, j + 1, pairs, flipped, rows, squares, half)
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
def commit(pairs, z, fires, flipped, turned, carried, rows, g, after):
    """Carry a step out: z, who fires, and the rows; half is left to `settle`.

    Parameters
    ----------
    flipped : (pairs,), written: as in `settle`
    turned : (pairs,), written: True for pairs that have flipped
    carried : (pairs,), added to: Σ g_l over the steps in which the pair fired
    The others are as in `evaluate`.
    """
    start, slot = pairs
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
            length[s], fires[p], turned[p], flipped[p] = high - first[s], now, True, 1 if now else -1


@njit(nogil=True, cache=True)
def count_twice(flipped, squares, half, neurons):
    """Take away what `settle` will count twice: pairs of flips of the same neuron.

    Parameters
    ----------
    neurons : start (q + 1,), the pairs of q rows that have more than one, their samples, and those rows
    """
    start, of, samples, slots = neurons
    for q in range(start.size - 1):
        for one in range(start[q], start[q + 1]):
            a = flipped[of[one]]
            if a == 0:
                continue
            for other in range(start[q], one):
                b = flipped[of[other]]
                if b != 0:
                    half[samples[one], samples[other]] -= half.dtype.type(a * b * squares[slots[q]])


@njit(nogil=True, cache=True)
def fold(weights, coefficients, inputs, neurons, samples, amounts):
    """w_r −= coefficient_r amount x_i for every pair (r, i)."""
    for q in range(neurons.size):
        r, i = neurons[q], samples[q]
        factor = coefficients[r] * amounts[q]
        for c in range(weights.shape[1]):
            weights[r, c] -= factor * inputs[i, c]


@njit(nogil=True, cache=True)
def restore(lists, neurons, samples, fires):
    """Say of some pairs whether they fire, where they are listed."""
    start, listed, out = lists
    for q in range(neurons.size):
        low, high = start[neurons[q]], start[neurons[q] + 1]
        place = low + np.searchsorted(listed[low:high], samples[q])
        if place < high and listed[place] == samples[q]:
            out[place] = fires[q]


@njit(nogil=True, cache=True)
def reach(lists, direction, coefficients, stretch, deviation, out):
    """How far each neuron can go, apart from its near pairs: |a_r| (stretch ‖v_r‖ + deviation[k_r]).

    Parameters
    ----------
    lists : start, samples, fires
    direction : (rows, d), v_r = Σ_{i: r fires on i} ĝ_i x_i
    deviation : (n + 1,), by the number of samples that a neuron fires on
    """
    start, _, fires = lists
    for r in range(out.size):
        k, square = 0, 0.0
        for p in range(start[r], start[r + 1]):
            k += fires[p]
        for c in range(direction.shape[1]):
            square += direction[r, c] * direction[r, c]
        out[r] = abs(coefficients[r]) * (stretch * np.sqrt(square) + deviation[k]) * (1 + 1e-9) if k > 0 else 0.0


@njit(nogil=True, cache=True)
def choose(
    lists, margins, direction, inputs, norms, coefficients, stretch, deviation, swing, rounding, most, near, out
):
    """Pairs that can come to the threshold; returns how many, more than `most` where it gave up.

    Each lets its neuron go further: until none is new.

    Parameters
    ----------
    margins : (listed,) ⟨w, x⟩ − b
    swing : (n,) how far a pair of sample i that flips can take its neuron, over |a|
    rounding : (rows,) of a pre-activation, over 1 + ‖x_i‖
    near : (listed,), written
    out : (rows,), written: how far each neuron can go
    The others are as in `reach`.
    """
    start, samples, fires = lists
    found = 0
    for r in range(out.size):
        a, k, square = coefficients[r], 0, 0.0
        for p in range(start[r], start[r + 1]):
            near[p] = False
            k += fires[p]
        out[r] = 0.0
        if k == 0:
            continue
        for c in range(direction.shape[1]):
            square += direction[r, c] * direction[r, c]
        straight, off, before = abs(a) * stretch * np.sqrt(square) * (1 + 1e-9), abs(a) * deviation[k], -1
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
    """The samples that neurons fire on, with room for the near pairs that do not fire.

    Parameters
    ----------
    neurons : (slots,) rows of the lists
    first : (slots,) where each begins
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
