"""Numba kernels of the certificate tracker's windows: pairs near the threshold, followed step after step.

Within a window a pair is *cold*, and fires or not as it did when the window was opened; *near*, the same, but to be
looked at once the path has come so far; or *hot*, evaluated whenever its sample is in question. A row is a neuron that
has near or hot pairs. With F_r the samples that its cold and near pairs fire on, and C_rj what a hot pair has
collected,

    z_rj = base_rj − c_r (Σ_{i in F_r} G_i K_ij + Σ_{hot (r,i)} C_ri K_ij).

The outputs are the sum of those of the cold and near pairs, which are linear in the step, and of the hot pairs, each
c_r max(z_rj − b, 0). The Gram matrix kept here is that of the cold and near pairs alone, so that a flip changes no
matrix: what hot pairs push is added from K at the samples that their neurons fire on.

The *path* of bucket q is a sum over laps: how far the caps[q] samples that have moved the most in a lap have moved
together. A neuron that fires on no more samples than that moves z_rj by no more than |c_r| max_i |K_ij| times the path.

All kernels are serial and release the GIL (see `widefit.kernels.cpu`).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.certificate_slots import dot
from widefit.kernels.cpu import fired_samples

# Finest part of the largest movement that is told apart, in quarters of an octave.
OCTAVES = 256


class Plane(NamedTuple):
    """What belongs to samples.

    inputs : (n, d) float64
    similarity : (n, n) float64, K
    peak : (n,) float64, max_i |K_ij|
    gram : (n, n) float64, H of the cold and near pairs, changed
    """

    inputs: np.ndarray
    similarity: np.ndarray
    peak: np.ndarray
    gram: np.ndarray


class Rows(NamedTuple):
    """Neurons that have near or hot pairs.

    weights : W₀ of all neurons
    neuron, coefficient, bucket : (rows,) which one, c_r, and the path that it follows
    first, count, fired : F_r is fired[first[r]:first[r] + count[r]], in any order
    spare : (rows,) Σ |c_r g_j| over samples j that it has begun to fire on in the window: what is left for them
    head : (rows,) its latest hot pair, −1 for none
    stamp : (rows,) changes whenever the bases of its pairs do
    corrected_first, corrected_sample, corrected_value : corrections P ê of pairs that are not hot
    """

    weights: np.ndarray
    neuron: np.ndarray
    coefficient: np.ndarray
    bucket: np.ndarray
    first: np.ndarray
    count: np.ndarray
    fired: np.ndarray
    spare: np.ndarray
    head: np.ndarray
    stamp: np.ndarray
    corrected_first: np.ndarray
    corrected_sample: np.ndarray
    corrected_value: np.ndarray


class Near(NamedTuple):
    """Pairs by sample and bucket: group j · buckets + q stands from first[group] on.

    soonest : (groups,) float32, least `due` of each group
    row, fires : (pairs,)
    due : (pairs,) float32, the path at which the pair may have reached the threshold
    base, stamp : (pairs,) see the module; as of the row's stamp
    """

    first: np.ndarray
    soonest: np.ndarray
    row: np.ndarray
    fires: np.ndarray
    due: np.ndarray
    base: np.ndarray
    stamp: np.ndarray


class Hot(NamedTuple):
    """Pairs by sample: those of sample j stand from first[j] on, count[j] of them.

    row, sample : (room,) the pair
    base, z : (room,) float64, z when it was last evaluated
    collected, begun : (room,) float64, C now and at the start of the window
    origin : (room,) float64, z at W₀
    following : (room,) the next hot pair of the row, −1 for none
    fires, recorded : (room,) as the tracker's fire rows and corrections P ê have it
    silent : (room,) True where it did not fire as a cold pair
    """

    first: np.ndarray
    count: np.ndarray
    row: np.ndarray
    sample: np.ndarray
    base: np.ndarray
    z: np.ndarray
    collected: np.ndarray
    begun: np.ndarray
    origin: np.ndarray
    following: np.ndarray
    fires: np.ndarray
    recorded: np.ndarray
    silent: np.ndarray


class Now(NamedTuple):
    """Where an output stands.

    collected, begun : (n,) float64, G now and at the start of the window
    outputs : (n,) float64, f of the cold and near pairs
    offset : (n,) float64, their part of J (W − W₀) less that of f
    """

    collected: np.ndarray
    begun: np.ndarray
    outputs: np.ndarray
    offset: np.ndarray


# Building.


@njit(nogil=True, cache=True)
def expiring_pairs(
    run_start, run_count, soonest, pair_sample, due, counts, start, words, bucket, now, drift, bound, highest, n,
    out_slot, out_sample, out_fires, out_left,
):  # fmt: skip
    """The pairs whose certificates a drift would reach, whether they fire, and how far the threshold is at least.

    now, drift : (slots,) float32 or size 0, and (slots,): movement that the bounds do not cover, now and to be
    The other arguments are those of `look_at_certificates`. Returns their number.
    """
    fired = np.empty(n + 1, np.int32)
    on = np.zeros(n, np.bool_)
    found = 0
    for slot in range(counts.size):
        q = bucket[slot]
        if highest[q] + drift[slot] < soonest[slot]:
            continue
        levels = bound[q]
        used = now[slot] if now.size > 0 else np.float32(0)
        k = -1
        for p in range(run_start[slot], run_start[slot] + run_count[slot]):
            j = pair_sample[p]
            if levels[j] + drift[slot] < due[p]:
                continue
            if k < 0:
                k = fired_samples(counts, start, words, slot, n, fired)
                for t in range(k):
                    on[fired[t]] = True
            out_slot[found] = slot
            out_sample[found] = j
            out_fires[found] = on[j]
            out_left[found] = due[p] - (np.float64(levels[j]) + np.float64(used)) * (1 + 1e-6)
            found += 1
        for t in range(k):
            on[fired[t]] = False
    return found


@njit(nogil=True, cache=True)
def list_rows(counts, start, words, slots, n, first, fired):
    """fired[first[p]:] = the samples that slots[p] fires on."""
    scratch = np.empty(n + 1, np.int32)
    for p in range(slots.size):
        k = fired_samples(counts, start, words, slots[p], n, scratch)
        for t in range(k):
            fired[first[p] + t] = scratch[t]


@njit(nogil=True, cache=True)
def list_corrections(head, following, sample, value, scale, slots, first, out_sample, out_value):
    """Corrections P ê of slots, where there is room: returns how many there are in all; first : (slots + 1,)."""
    total = 0
    for p in range(slots.size):
        first[p] = total
        e = head[slots[p]]
        while e >= 0:
            if total < out_sample.size:
                out_sample[total] = sample[e]
                out_value[total] = scale * value[e]
            total += 1
            e = following[e]
    first[slots.size] = total
    return total


@njit(nogil=True, cache=True)
def group_pairs(rows, samples, fires, left, bucket, coefficient, peak, buckets, first, soonest, row, fire, due):
    """Near pairs by sample and bucket, due when what is left to the threshold may have been used up.

    first : (groups + 1,) int64, zeros; the others as in `Near`, written
    """
    for p in range(rows.size):
        first[samples[p] * buckets + bucket[rows[p]] + 1] += 1
    for g in range(first.size - 1):
        first[g + 1] += first[g]
        soonest[g] = np.inf
    place = first[:-1].copy()
    for p in range(rows.size):
        r = rows[p]
        g = samples[p] * buckets + bucket[r]
        rate = abs(coefficient[r]) * peak[samples[p]]
        at = place[g]
        place[g] += 1
        row[at] = r
        fire[at] = fires[p]
        due[at] = _after(0.0, left[p], rate)
        soonest[g] = min(soonest[g], due[at])


@njit(nogil=True, cache=True)
def _after(granted, margin, rate):
    """The path that takes a pair to the threshold, rounded down."""
    if not rate > 0:
        return np.float32(np.inf)
    return np.float32((granted + max(margin, 0.0) / rate) * (1 - 1e-6))


# Evaluating.


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _sum_at(values, places, first, count):
    total = 0.0
    for t in range(first, first + count):
        total += values[places[t]]
    return total


@njit(nogil=True, cache=True)
def _pulled(plane, rows, hot, collected, r, j, products):
    """Σ_{i in F_r} G_i K_ij + Σ_{hot (r,i)} C_ri K_ij; products = G ∘ K_j."""
    total = _sum_at(products, rows.fired, rows.first[r], rows.count[r])
    p = rows.head[r]
    while p >= 0:
        total += collected[p] * plane.similarity[j, hot.sample[p]]
        p = hot.following[p]
    return total


@njit(nogil=True, cache=True)
def _origin(plane, rows, r, j):
    return dot(rows.weights[rows.neuron[r]], plane.inputs[j])


@njit(nogil=True, cache=True)
def _base(plane, rows, r, j, origin):
    total = 0.0
    for e in range(rows.corrected_first[r], rows.corrected_first[r + 1]):
        total += rows.corrected_value[e] * plane.similarity[j, rows.corrected_sample[e]]
    return origin - rows.coefficient[r] * total


@njit(nogil=True, cache=True)
def _add_hot(plane, rows, hot, now, threshold, r, j, z, fires):
    """Make a pair hot that fires or not as a cold one."""
    at = hot.first[j] + hot.count[j]
    hot.count[j] += 1
    c, similarity, own, begun = rows.coefficient[r], plane.similarity[j], 0.0, 0.0
    origin = _origin(plane, rows, r, j)
    if fires:
        first, last = rows.first[r], rows.first[r] + rows.count[r] - 1
        for t in range(first, last):
            if rows.fired[t] == j:
                rows.fired[t] = rows.fired[last]
                break
        rows.count[r] -= 1
        for t in range(first, last):
            i = rows.fired[t]
            value = c * c * similarity[i]
            plane.gram[i, j] -= value
            plane.gram[j, i] -= value
        plane.gram[j, j] -= c * c * similarity[j]
        now.outputs[j] -= c * (z - threshold)
        now.offset[j] -= c * (threshold - origin)
        own, begun = now.collected[j], now.begun[j]
    extra = 0.0
    for e in range(rows.corrected_first[r], rows.corrected_first[r + 1]):
        if rows.corrected_sample[e] == j:
            extra += rows.corrected_value[e]
            rows.corrected_value[e] = 0.0
    if extra != 0:
        rows.stamp[r] += 1
        p = rows.head[r]
        while p >= 0:
            hot.base[p] += c * extra * similarity[hot.sample[p]]
            p = hot.following[p]
    hot.row[at], hot.sample[at] = r, j
    hot.base[at], hot.z[at], hot.origin[at] = _base(plane, rows, r, j, origin), z, origin
    hot.collected[at], hot.begun[at] = own + extra, begun + extra
    hot.fires[at], hot.recorded[at], hot.silent[at] = fires, extra, not fires
    hot.following[at] = rows.head[r]
    rows.head[r] = at


@njit(nogil=True, cache=True)
def look_at_sample(plane, rows, near, hot, now, threshold, j, reached, granted, close, products, counters):
    """Evaluate the near pairs of sample j that are due.

    Those that have flipped or are close become hot, the others are due again later.

    Parameters
    ----------
    reached, granted : (buckets,) paths: how far it has come at most, and from where new ones are counted
    close : (buckets,) path within which a pair becomes hot
    products : (n,) scratch
    counters : (2,) int64: pairs evaluated and flips, added to

    Returns
    -------
    False where there is no room for hot pairs: to be called again when there is.
    """
    ready = False
    for q in range(reached.size):
        group = j * reached.size + q
        if near.soonest[group] > reached[q]:
            continue
        if not ready:
            ready = True
            for i in range(products.size):
                products[i] = now.collected[i] * plane.similarity[j, i]
        soonest = np.float32(np.inf)
        for p in range(near.first[group], near.first[group + 1]):
            if near.due[p] <= reached[q]:
                r = near.row[p]
                if near.stamp[p] != rows.stamp[r]:
                    near.base[p] = _base(plane, rows, r, j, _origin(plane, rows, r, j))
                    near.stamp[p] = rows.stamp[r]
                c = rows.coefficient[r]
                z = near.base[p] - c * _pulled(plane, rows, hot, hot.collected, r, j, products)
                margin = abs(z - threshold) - 1e-12 * (abs(z) + abs(threshold))
                rate, flipped = abs(c) * plane.peak[j], (z > threshold) != near.fires[p]
                if flipped or not margin > close[q] * rate:
                    if hot.first[j] + hot.count[j] == hot.first[j + 1]:
                        return False
                    _add_hot(plane, rows, hot, now, threshold, r, j, z, near.fires[p])
                    counters[1] += flipped
                    near.due[p] = np.inf
                else:
                    near.due[p] = _after(granted[q], margin, rate)
                counters[0] += 1
            soonest = min(soonest, near.due[p])
        near.soonest[group] = soonest
    return True


@njit(nogil=True, cache=True)
def look_at_samples(plane, rows, near, hot, now, threshold, first, reached, granted, close, counters):
    """`look_at_sample` from `first` on; returns the sample that has no room for hot pairs, n for none."""
    n = plane.peak.size
    products = np.empty(n, np.float64)
    for j in range(first, n):
        if not look_at_sample(plane, rows, near, hot, now, threshold, j, reached, granted, close, products, counters):
            return j
    return n


@njit(nogil=True, cache=True)
def _push_sample(plane, rows, hot, threshold, j, g, z, collected, share, out):
    """Move everything that fires on sample j: out is f of the cold and near pairs.

    share : (n,), written: for every sample i, Σ c_r² over neurons whose pair (r, j) is hot and fires, i in F_r
    collected : C of the hot pairs, updated

    Returns
    -------
    True where a hot pair fires; share means nothing otherwise.
    """
    some = False
    for p in range(hot.first[j], hot.first[j] + hot.count[j]):
        if z[p] > threshold:
            collected[p] += g
            if not some:
                some = True
                share[:] = 0.0
            r = hot.row[p]
            square = rows.coefficient[r] ** 2
            for t in range(rows.first[r], rows.first[r] + rows.count[r]):
                share[rows.fired[t]] += square
    gram, similarity = plane.gram[j], plane.similarity[j]
    if some:
        for i in range(out.size):
            out[i] -= g * (gram[i] + similarity[i] * share[i])
    else:
        for i in range(out.size):
            out[i] -= g * gram[i]
    return some


@njit(nogil=True, cache=True)
def _charge_sample(rows, hot, threshold, j, g):
    """Take what a step moves neurons by, that have begun to fire on sample j, off what they have to spare."""
    enough = True
    for p in range(hot.first[j], hot.first[j] + hot.count[j]):
        if hot.silent[p] and hot.z[p] > threshold:
            r = hot.row[p]
            rows.spare[r] -= abs(rows.coefficient[r] * g)
            enough &= rows.spare[r] >= 0
    return enough


@njit(nogil=True, cache=True)
def charge(rows, hot, threshold, g):
    """`_charge_sample` for all samples, g (n,); False where a neuron has not enough to spare: the window is over."""
    enough = True
    for j in range(g.size):
        enough &= _charge_sample(rows, hot, threshold, j, g[j])
    return enough


@njit(nogil=True, cache=True)
def push_samples(plane, rows, hot, threshold, first, last, g, collected, out):
    """`_push_sample` for samples first to last, from z as it was last evaluated; g, out : (n,) float64."""
    share = np.empty(g.size, np.float64)
    for j in range(first, last):
        _push_sample(plane, rows, hot, threshold, j, g[j], hot.z, collected, share, out)


@njit(nogil=True, cache=True)
def evaluate_samples(plane, rows, hot, threshold, first, last, total, collected, z, outputs, response, before):
    """z of the hot pairs of samples first to last, and what it comes to.

    Parameters
    ----------
    total, collected : (n,) G, and C of the hot pairs
    z : written
    outputs, response : (n,), added to: f and J (W − W₀) of the hot pairs
    before : (n,), added to: the latter, of those that fired when they were last evaluated

    Returns
    -------
    flips since they were last evaluated
    """
    products, flips = np.empty(total.size, np.float64), 0
    for j in range(first, last):
        if hot.count[j] == 0:
            continue
        for i in range(total.size):
            products[i] = total[i] * plane.similarity[j, i]
        for p in range(hot.first[j], hot.first[j] + hot.count[j]):
            r = hot.row[p]
            c = rows.coefficient[r]
            value = hot.base[p] - c * _pulled(plane, rows, hot, collected, r, j, products)
            fired, fires, moved = hot.z[p] > threshold, value > threshold, c * (value - hot.origin[p])
            z[p] = value
            flips += fired != fires
            if fires:
                outputs[j] += c * (value - threshold)
                response[j] += moved
            if fired:
                before[j] += moved
    return flips


@njit(nogil=True, cache=True)
def add_hot_gram(plane, rows, hot, threshold):
    """H of all pairs, in place of that of the cold and near ones."""
    for r in range(rows.head.size):
        square = rows.coefficient[r] ** 2
        p = rows.head[r]
        while p >= 0:
            following = hot.following[p]
            if hot.z[p] > threshold:
                j = hot.sample[p]
                for t in range(rows.first[r], rows.first[r] + rows.count[r]):
                    _add_symmetric(plane, square, rows.fired[t], j)
                other = following
                while other >= 0:
                    if hot.z[other] > threshold:
                        _add_symmetric(plane, square, hot.sample[other], j)
                    other = hot.following[other]
                plane.gram[j, j] += square * plane.similarity[j, j]
            p = following


@njit(nogil=True, cache=True)
def _add_symmetric(plane, square, i, j):
    plane.gram[i, j] += square * plane.similarity[i, j]
    plane.gram[j, i] += square * plane.similarity[i, j]


@njit(nogil=True, cache=True)
def displacements(plane, rows, hot, change, which, out):
    """‖Σ_i ΔC_ri x_i‖ of some rows since the start of the window, G having changed so.

    which : (s,) rows; out : (s,) float64, written
    """
    moved = np.empty(plane.inputs.shape[1], np.float64)
    for s in range(which.size):
        r = which[s]
        moved[:] = 0.0
        for t in range(rows.first[r], rows.first[r] + rows.count[r]):
            i = rows.fired[t]
            for f in range(moved.size):
                moved[f] += change[i] * plane.inputs[i, f]
        p = rows.head[r]
        while p >= 0:
            g = hot.collected[p] - hot.begun[p]
            for f in range(moved.size):
                moved[f] += g * plane.inputs[hot.sample[p], f]
            p = hot.following[p]
        out[s] = np.sqrt(dot(moved, moved))


# Stochastic steps.


@njit(nogil=True, cache=True)
def _octave(value, top):
    if not value > 0:
        return OCTAVES - 1
    return min(OCTAVES - 1, max(0, int(-4 * np.log2(value / top))))


@njit(nogil=True, cache=True)
def _lap_paths(tally, top, caps, out):
    """out[q] ≥ the sum of the caps[q] largest movements, from their number in every quarter of an octave."""
    taken, total, q = 0, 0.0, 0
    for b in range(OCTAVES):
        if tally[b] == 0:
            continue
        value = top * 2.0 ** (-0.25 * b) * (1 + 1e-9)
        while q < caps.size and caps[q] < taken + tally[b]:
            out[q] = total + (caps[q] - taken) * value
            q += 1
        taken += tally[b]
        total += tally[b] * value
    while q < caps.size:
        out[q] = total
        q += 1


@njit(nogil=True, cache=True)
def descend_minibatches(
    samples, edges, rates, first, last, targets, sample_weight, loss, planes, rowses, nears, hots, nows, threshold,
    caps, lap_length, budget, spent, lap, tally, path, reached, close, clock, squared_norm, counters,
):  # fmt: skip
    """Stochastic steps first to last, looking at the pairs of the samples of each batch alone.

    Ends before a step that would exceed the budget, and where there is no room for hot pairs.

    Parameters
    ----------
    samples, edges, rates, targets, sample_weight : as in `widefit.trackers.Minibatches`
    loss : 0 squared, 1 logistic, 2 softmax
    planes, rowses, nears, hots, nows : tuples of k, one an output
    caps : (buckets,); lap_length : steps a lap
    budget, spent, lap : (k, n) float64: what Σ |g| must not exceed, what it has come to, and that in this lap
    tally : (k, octaves) int64, samples by what they have moved in this lap
    path, reached : (k, buckets) float64 at the start of the lap, and now
    close : part of the last lap's path within which a pair becomes hot, (k, buckets)
    clock : (1,) int64, steps in this lap
    squared_norm : (k,) float64, updated
    counters : (2,) int64: pairs evaluated and flips, added to

    Returns
    -------
    step, output : the step to go on from, and the output without room for hot pairs, k for none
    """
    k, n = budget.shape
    longest = 0
    for t in range(first, last):
        longest = max(longest, edges[t + 1] - edges[t])
    g, f, response = np.empty((longest, k)), np.empty(k), np.empty((longest, k))
    products, share, whole, slope = np.empty(n), np.empty(n), np.zeros(n), np.empty(k)
    tops = np.empty(k)
    for o in range(k):
        tops[o] = max(budget[o].max(), 1e-300)
    for t in range(first, last):
        batch = samples[edges[t] : edges[t + 1]]
        for b in range(batch.size):
            j = batch[b]
            for o in range(k):
                plane, rows, hot, now = planes[o], rowses[o], hots[o], nows[o]
                if not look_at_sample(
                    plane, rows, nears[o], hot, now, threshold, j, reached[o], path[o], close[o], products, counters
                ):
                    return t, o
                f[o] = now.outputs[j]
                response[b, o] = now.outputs[j] + now.offset[j]
                if hot.count[j] == 0:
                    continue
                for i in range(n):
                    products[i] = now.collected[i] * plane.similarity[j, i]
                for p in range(hot.first[j], hot.first[j] + hot.count[j]):
                    r = hot.row[p]
                    c = rows.coefficient[r]
                    z = hot.base[p] - c * _pulled(plane, rows, hot, hot.collected, r, j, products)
                    counters[1] += (z > threshold) != (hot.z[p] > threshold)
                    hot.z[p] = z
                    if z > threshold:
                        f[o] += c * (z - threshold)
                        response[b, o] += c * (z - hot.origin[p])
                counters[0] += hot.count[j]
            _slope(f, targets[j], loss, slope)
            for o in range(k):
                g[b, o] = rates[t] * sample_weight[j] * slope[o]
                if not spent[o, j] + abs(g[b, o]) <= budget[o, j]:
                    return t, k
                if not _charge_sample(rowses[o], hots[o], threshold, j, g[b, o]):
                    return t, k
        for o in range(k):
            plane, rows, hot, now = planes[o], rowses[o], hots[o], nows[o]
            for b in range(batch.size):
                whole[batch[b]] = g[b, o]
            for b in range(batch.size):
                j, step = batch[b], g[b, o]
                some = _push_sample(plane, rows, hot, threshold, j, step, hot.z, hot.collected, share, now.outputs)
                image = 0.0
                for i in batch:
                    image += whole[i] * plane.gram[j, i]
                    if some:
                        image += 2 * whole[i] * plane.similarity[j, i] * share[i]
                if some:
                    image += _image_of_hot(plane, rows, hot, threshold, j, whole)
                squared_norm[o] += step * (image - 2 * response[b, o])
            for b in range(batch.size):
                j, step = batch[b], g[b, o]
                whole[j] = 0.0
                now.collected[j] += step
                spent[o, j] += abs(step)
                tally[o, _octave(lap[o, j], tops[o])] -= 1
                lap[o, j] += abs(step)
                tally[o, _octave(lap[o, j], tops[o])] += 1
            _lap_paths(tally[o], tops[o], caps, share)
            for q in range(caps.size):
                reached[o, q] = path[o, q] + share[q]
        clock[0] += 1
        if clock[0] >= lap_length:
            clock[0] = 0
            end_lap(lap, tally, path, reached, close)
    return last, k


@njit(nogil=True, cache=True)
def _image_of_hot(plane, rows, hot, threshold, j, g):
    """Σ_i g_i K_ij Σ_r c_r² over hot pairs (r, i) and (r, j) that both fire."""
    total = 0.0
    for p in range(hot.first[j], hot.first[j] + hot.count[j]):
        if hot.z[p] > threshold:
            r = hot.row[p]
            other = rows.head[r]
            while other >= 0:
                i = hot.sample[other]
                if g[i] != 0 and hot.z[other] > threshold:
                    total += g[i] * plane.similarity[j, i] * rows.coefficient[r] ** 2
                other = hot.following[other]
    return total


@njit(nogil=True, cache=True)
def end_lap(lap, tally, path, reached, close):
    """Begin another lap; what is close is told from the last."""
    for o in range(lap.shape[0]):
        for q in range(path.shape[1]):
            close[o, q] = _CLOSE * (reached[o, q] - path[o, q])
            path[o, q] = reached[o, q]
        lap[o, :] = 0.0
        tally[o, :] = 0
        tally[o, OCTAVES - 1] = lap.shape[1]


# Part of a lap's path: a pair nearer than that is evaluated at every visit.
_CLOSE = 0.05


@njit(nogil=True, cache=True)
def _slope(f, y, loss, out):
    """∂ℓ/∂f of one sample."""
    if loss == 0:
        for o in range(f.size):
            out[o] = f[o] - y[o]
    elif loss == 1:
        for o in range(f.size):
            t = y[o] * f[o]
            out[o] = -y[o] / (1 + np.exp(t)) if t < 0 else -y[o] * np.exp(-t) / (1 + np.exp(-t))
    else:
        largest = f.max()
        total = 0.0
        for o in range(f.size):
            out[o] = np.exp(f[o] - largest)
            total += out[o]
        for o in range(f.size):
            out[o] = out[o] / total - y[o]
