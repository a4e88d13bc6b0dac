"""Numba kernels of the certificate tracker: bounds, the pass that issues certificates, what follows when one expires.

All kernels are serial and release the GIL (see `widefit.kernels.cpu`, also for the layout of fire rows). Here a row is
a *slot*: a neuron that fired on some sample at the start of the run. What slot r has collected from past updates is

    C_r = s_r ∘ G + P ê_r,        w_r = w_r(0) − c_r Σ_i C_ri x_i,

with one running sum G for all slots and a list of corrections ê_r for pairs that have flipped: entries of a pool,
chained by `following` from `head[r]` on; −1 ends the chain.
"""

import numpy as np
from numba import njit

from widefit.kernels.cpu import fired_samples

# Terms g_i K_ij of either sign are sorted into this many bins of equal width: sums of the largest are known to a bin.
_BINS = 256
# Outward rounding, relative: of a sum of float32 terms, and of what is stored in float32.
_UP = 1 + 3e-4
_UP32 = 1 + 2e-7
_DOWN32 = 1 - 2e-7


@njit(nogil=True, cache=True)
def bound_columns(similarity, change, caps, absolute, first, last, out):
    """out[q, j] ≥ |Σ_{i in F} change_i K_ij| for every set F of at most caps[q] samples, first ≤ j < last.

    The larger of the sums of the caps[q] largest positive and negative terms, rounded outward. With `absolute` the
    terms are |change_i K_ij|: a bound for any signs.

    Parameters
    ----------
    similarity : (n, n) float32, symmetric
    change : (n,) float32
    caps : (q,) int64, ascending
    out : (q, n) float64, columns first to last written
    """
    n = similarity.shape[0]
    count, total = np.empty(2 * _BINS, np.int32), np.empty(2 * _BINS, np.float32)
    terms, place = np.empty(n, np.float32), np.empty(n, np.int32)
    for j in range(first, last):
        row = similarity[j]
        low, high = np.float32(0), np.float32(0)
        for i in range(n):
            value = change[i] * row[i]
            if absolute:
                value = abs(value)
            terms[i] = value
            high = max(high, value)
            low = min(low, value)
        largest = max(high, -low)
        for q in range(caps.size):
            out[q, j] = 0.0
        if not largest < 1e30:
            out[:, j] = np.inf
            continue
        if largest < 1e-30:
            out[:, j] = n * 1e-30 if largest > 0 else 0.0
            continue
        # Scaled so that the largest term falls inside the last bin.
        scale = np.float32(_BINS * (1 - 1e-6) / np.float64(largest))
        for i in range(n):
            place[i] = np.int32(terms[i] * scale + np.float32(_BINS))
        count[:] = 0
        total[:] = 0
        for i in range(n):
            b = place[i]
            count[b] += 1
            total[b] += terms[i]
        _take_largest(count[_BINS:][::-1], total[_BINS:][::-1], 1.0, scale, caps, out[:, j])
        if low < 0:
            _take_largest(count[:_BINS], total[:_BINS], -1.0, scale, caps, out[:, j])


@njit(nogil=True, cache=True)
def _take_largest(count, total, sign, scale, caps, out):
    """out[q] = max(out[q], at least the sum of the caps[q] largest terms); bins come from the largest down."""
    taken, whole, b = 0, 0.0, 0
    for q in range(caps.size):
        while b < count.size and taken + count[b] <= caps[q]:
            taken += count[b]
            whole += sign * np.float64(total[b])
            b += 1
        part = 0.0
        if b < count.size:
            part = min(sign * np.float64(total[b]), (caps[q] - taken) * (count.size - b) / np.float64(scale))
        out[q] = max(out[q], (whole + part) * _UP)


@njit(nogil=True, cache=True)
def _dot(a, b):
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


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
    limit = (n + 31) // 32
    fired, near = scratch[0], scratch[1]
    pairs = 0
    start[0] = 0
    for r in range(rows):
        w = weights[r]
        slack = tolerance * np.sqrt(_dot(w, w)) + floor
        low = z.dtype.type(threshold - slack)
        high = threshold + slack
        maybe = 0
        for i in range(n):
            fired[maybe] = i
            maybe += z[r, i] >= low
        k = 0
        for p in range(maybe):
            i = fired[p]
            if z[r, i] > high or _dot(w, inputs[i]) > threshold:
                fired[k] = i
                k += 1
        a = coefficients[r]
        for p in range(k):
            i = fired[p]
            outputs[i] += a * (np.float64(z[r, i]) - threshold)

        base = start[r]
        counts[r] = k
        if k <= limit:
            for p in range(k):
                words[base + p] = fired[p]
            start[r + 1] = base + k
        else:
            for w_ in range(limit):
                words[base + w_] = 0
            for p in range(k):
                i = fired[p]
                words[base + (i >> 5)] |= np.uint32(1) << np.uint32(i & 31)
            start[r + 1] = base + limit

        issued[r] = 0
        soonest[r] = np.inf
        if (k > 0 or idle) and radius.size > 0:
            q = bucket_of[k]
            spent, reach = level[q], radius[q]
            middle = z.dtype.type(threshold)
            # The rounding of the threshold to the dtype of z is part of the slack.
            wider = np.float32(slack * _UP32)
            found = 0
            for i in range(n):
                near[found] = i
                found += np.float32(abs(z[r, i] - middle)) + spent[i] < reach + wider
            first = np.float32(np.inf)
            for p in range(found):
                i = near[p]
                margin = max(abs(np.float64(z[r, i]) - threshold) - slack, 0.0)
                at = np.float32((spent[i] + margin) * _DOWN32)
                pair_sample[pairs] = i
                due[pairs] = at
                first = min(first, at)
                pairs += 1
            issued[r] = found
            soonest[r] = first
    return pairs


@njit(nogil=True, cache=True)
def _add_rows(fired, k, factors, inputs, moved):
    """moved += Σ_p factors[fired[p]] inputs[fired[p]]; four rows at a time load and store `moved` less often."""
    whole = k - k % 4
    for p in range(0, whole, 4):
        i0, i1, i2, i3 = fired[p], fired[p + 1], fired[p + 2], fired[p + 3]
        g0, g1, g2, g3 = factors[i0], factors[i1], factors[i2], factors[i3]
        x0, x1, x2, x3 = inputs[i0], inputs[i1], inputs[i2], inputs[i3]
        for c in range(moved.size):
            moved[c] += (g0 * x0[c] + g1 * x1[c]) + (g2 * x2[c] + g3 * x3[c])
    for p in range(whole, k):
        g, x = factors[fired[p]], inputs[fired[p]]
        for c in range(moved.size):
            moved[c] += g * x[c]


@njit(nogil=True, cache=True)
def _collect(fired, k, collected, slot, head, following, entry_sample, entry_value, scale, inputs, moved):
    """moved = Σ_i C_ri x_i."""
    moved[:] = 0
    _add_rows(fired, k, collected, inputs, moved)
    e = head[slot]
    while e >= 0:
        g = scale * entry_value[e]
        x = inputs[entry_sample[e]]
        for c in range(moved.size):
            moved[c] += g * x[c]
        e = following[e]


@njit(nogil=True, cache=True)
def materialize(
    slots, base, coefficients, counts, start, words, collected, head, following, entry_sample, entry_value, scale,
    inputs, out,
):  # fmt: skip
    """out = base − c_r Σ_i C_ri x_i in float64, slot by slot.

    Parameters
    ----------
    slots : (s,) int32
    base : (s, d) initial weights
    coefficients : float64, of all slots
    counts, start, words : fire rows of all slots
    collected : (n,) float64, G
    head : (slots,) int32; following, entry_sample : int32; entry_value : float64: corrections
    scale : P
    inputs : (n, d) float64
    out : (s, d) float64
    """
    n, d = inputs.shape
    fired = np.empty(n + 1, np.int32)
    moved = np.empty(d, np.float64)
    for s in range(slots.size):
        slot = slots[s]
        k = fired_samples(counts, start, words, slot, n, fired)
        _collect(fired, k, collected, slot, head, following, entry_sample, entry_value, scale, inputs, moved)
        a = coefficients[slot]
        target = out[s]
        source = base[s]
        for c in range(d):
            target[c] = np.float64(source[c]) - a * moved[c]


@njit(nogil=True, cache=True)
def own_movements(
    coefficients, counts, start, words, first, last, change, head, following, entry_sample, entry_value, scale_change,
    inputs, lengths, out,
):  # fmt: skip
    """out_r ≥ |c_r| ‖Σ_i ΔC_ri x_i‖: how far a step moves w_r, rounded up, for slots first to last.

    Parameters
    ----------
    change : (n,) float32, that of G; scale_change : that of P
    inputs : (n, d) float32; lengths : (n,) float32, their norms
    out : (last − first,) float32
    """
    n, d = inputs.shape
    fired = np.empty(n + 1, np.int32)
    moved = np.empty(d, np.float32)
    for r in range(first, last):
        moved[:] = 0
        size = np.float32(0)
        k = fired_samples(counts, start, words, r, n, fired)
        terms = k
        for p in range(k):
            size += abs(change[fired[p]]) * lengths[fired[p]]
        _add_rows(fired, k, change, inputs, moved)
        if scale_change != 0:
            e = head[r]
            while e >= 0:
                g = np.float32(scale_change * entry_value[e])
                size += abs(g) * lengths[entry_sample[e]]
                x = inputs[entry_sample[e]]
                for c in range(d):
                    moved[c] += g * x[c]
                terms += 1
                e = following[e]
        total = np.float32(0)
        for c in range(d):
            total += moved[c] * moved[c]
        # The second term bounds what rounding has done to the sums.
        length = np.sqrt(np.float64(total)) * (1 + 1e-6 * d) + 1.3e-7 * (terms + 2) * np.float64(size)
        out[r - first] = np.float32(abs(coefficients[r]) * length * _UP32)


@njit(nogil=True, cache=True)
def differing_pairs(old_counts, old_start, old_words, slots, counts, start, words, n, slot, sample, fires):
    """Pairs in which fire rows differ from those of their `slots` before; returns their number.

    slot, sample, fires : written, in the order of the rows and then by sample; what they do in the new rows
    """
    before, after = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
    found = 0
    for r in range(counts.size):
        k_before = fired_samples(old_counts, old_start, old_words, slots[r], n, before)
        k_after = fired_samples(counts, start, words, r, n, after)
        before[k_before] = n
        after[k_after] = n
        p = q = 0
        while p < k_before or q < k_after:
            if before[p] == after[q]:
                p += 1
                q += 1
                continue
            slot[found] = slots[r]
            fires[found] = after[q] < before[p]
            if before[p] < after[q]:
                sample[found] = before[p]
                p += 1
            else:
                sample[found] = after[q]
                q += 1
            found += 1
    return found


@njit(nogil=True, cache=True)
def exact_pairs(
    slots, samples, neurons, base, base_first, coefficients, counts, start, words, collected, head, following,
    entry_sample, entry_value, scale, inputs, z, y,
):  # fmt: skip
    """z of pairs after a step, and what it has moved by since the start; those of a slot together.

    The arguments are those of `look_at_certificates`.
    """
    n, d = inputs.shape
    fired = np.empty(n + 1, np.int32)
    moved, weight = np.empty(d, np.float64), np.empty(d, np.float64)
    current = -1
    for p in range(slots.size):
        slot = slots[p]
        if slot != current:
            current = slot
            k = fired_samples(counts, start, words, slot, n, fired)
            _collect(fired, k, collected, slot, head, following, entry_sample, entry_value, scale, inputs, moved)
            source = base[neurons[slot] - base_first]
            for c in range(d):
                moved[c] *= -coefficients[slot]
                weight[c] = np.float64(source[c]) + moved[c]
        z[p] = _dot(weight, inputs[samples[p]])
        y[p] = _dot(moved, inputs[samples[p]])


@njit(nogil=True, cache=True)
def look_at_certificates(
    first, last, run_start, run_count, soonest, pair_sample, due, neurons, base, base_first, coefficients, counts,
    start, words, bucket, drift, bound, highest, step_bound, change, collected, head, following, entry_sample,
    entry_value, scale, reach, inputs, threshold,
    position, new_due, touched, new_soonest, flip_slot, flip_sample, flip_fires, flip_z, flip_y,
):  # fmt: skip
    """Look at the certificates that expire in a step, for slots first to last: renew them, or report flips.

    A certificate is first renewed from what its own neuron can have moved in this step, Σ |change| over its fire row,
    which is often far less than the bound for its bucket; only then is z computed.

    Parameters
    ----------
    run_start, run_count, soonest : (slots,) where the certificates of a slot stand, how many, and when the first is due
    pair_sample, due : of all certificates
    neurons : (slots,) int32; base : initial weights of neurons base_first, base_first + 1, …
    coefficients : (slots,) float64
    bucket : (slots,) uint8
    drift : (slots,) float32 or size 0, after the step: movement that the bounds do not cover
    bound, step_bound : (q, n) float32 after the step, float64 in the step
    highest : (q,) float32, the largest of each row of bound
    change, collected : (n,) float64: G after the step less G before, and G after
    scale : P after the step
    reach : (n,) float64, max_i |K_ij|
    inputs : (n, d) float64
    position, new_due : written: certificates that have expired, and when they are due again
    touched, new_soonest : written: their slots, and when the first certificate of each is due
    flip_slot, flip_sample, flip_fires, flip_z, flip_y : written: the pairs that flip, z and what it has moved by

    Returns
    -------
    expired, slots, flips, evaluated : numbers written, and how often z was computed
    """
    n, d = inputs.shape
    fired = np.empty(n + 1, np.int32)
    on = np.zeros(n, np.bool_)
    moved, weight = np.empty(d, np.float64), np.empty(d, np.float64)
    expired, visited, flips, evaluated = 0, 0, 0, 0
    for slot in range(first, last):
        q = bucket[slot]
        extra = drift[slot] if drift.size > 0 else np.float32(0)
        if highest[q] + extra < soonest[slot]:
            continue
        levels = bound[q]
        a = coefficients[slot]
        k, own = -1, 0.0
        fresh = True
        earliest = np.float32(np.inf)
        for p in range(run_start[slot], run_start[slot] + run_count[slot]):
            j = pair_sample[p]
            level = levels[j] + extra
            if level < due[p]:
                earliest = min(earliest, due[p])
                continue
            if k < 0:
                k = fired_samples(counts, start, words, slot, n, fired)
                for t in range(k):
                    on[fired[t]] = True
                    own += abs(change[fired[t]])
                own *= abs(a) * _UP
            granted, spent = step_bound[q, j], own * reach[j]
            later = np.float64(due[p]) + granted - spent
            again = np.float32(later - 1e-6 * abs(later))
            if granted <= spent or again <= level:
                evaluated += 1
                if fresh:
                    _collect(
                        fired, k, collected, slot, head, following, entry_sample, entry_value, scale, inputs, moved
                    )
                    source = base[neurons[slot] - base_first]
                    for c in range(d):
                        moved[c] *= -a
                        weight[c] = np.float64(source[c]) + moved[c]
                    fresh = False
                z = _dot(weight, inputs[j])
                if (z > threshold) != on[j]:
                    flip_slot[flips] = slot
                    flip_sample[flips] = j
                    flip_fires[flips] = not on[j]
                    flip_z[flips] = z
                    flip_y[flips] = _dot(moved, inputs[j])
                    flips += 1
                margin = max(abs(z - threshold) - 1e-12 * (abs(z) + abs(threshold)), 0.0)
                again = np.float32((np.float64(level) + margin) * _DOWN32)
            position[expired] = p
            new_due[expired] = again
            expired += 1
            earliest = min(earliest, again)
        if k >= 0:
            touched[visited] = slot
            new_soonest[visited] = earliest
            visited += 1
            for t in range(k):
                on[fired[t]] = False
    return expired, visited, flips, evaluated


@njit(nogil=True, cache=True)
def _write_row(fired, k, n, row, counts, start, words, room, free):
    """Store a fire row where it stood, or at `free` when it has outgrown its room; returns the new `free`."""
    limit = (n + 31) // 32
    need = k if k <= limit else limit
    if need > room[row]:
        room[row] = min(limit, need + need // 4 + 4)
        start[row] = free
        free += room[row]
    base = start[row]
    counts[row] = k
    if k <= limit:
        for p in range(k):
            words[base + p] = fired[p]
    else:
        for w in range(limit):
            words[base + w] = 0
        for p in range(k):
            words[base + (fired[p] >> 5)] |= np.uint32(1) << np.uint32(fired[p] & 31)
    return free


@njit(nogil=True, cache=True)
def pack_rows(counts, start, words, n, fired):
    """Store fire rows given as index lists, one after the other, with room for each where it begins."""
    room = np.empty(counts.size, np.int32)
    room[:] = n
    first = 0
    for row in range(counts.size):
        _write_row(fired[first : first + counts[row]], counts[row], n, row, counts, start, words, room, 0)
        first += counts[row]


@njit(nogil=True, cache=True)
def apply_flips(
    slots, samples, fires, collected, scale, rewrite, counts, start, words, room, free, head, entry_owner, following,
    entry_sample, entry_value, used, n,
):  # fmt: skip
    """Carry flips into the fire rows and the corrections.

    Parameters
    ----------
    slots, samples, fires : (q,) flips, ordered by slot
    collected, scale : G and P after the update
    rewrite : False leaves the fire rows as they are
    words : its first `free` entries are taken; needs room for the rows that grow
    room : (slots,) int32, words that a row may take where it stands
    entry_owner, following, entry_sample, entry_value : corrections; the first `used` are taken

    Returns
    -------
    free, used : after the flips
    """
    fired, after = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
    p = 0
    while p < slots.size:
        slot, begun = slots[p], p
        while p < slots.size and slots[p] == slot:
            j = samples[p]
            value = (-collected[j] if fires[p] else collected[j]) / scale
            e = head[slot]
            while e >= 0 and entry_sample[e] != j:
                e = following[e]
            if e >= 0:
                entry_value[e] += value
            else:
                entry_owner[used] = slot
                entry_sample[used] = j
                entry_value[used] = value
                following[used] = head[slot]
                head[slot] = used
                used += 1
            p += 1
        if rewrite:
            k = fired_samples(counts, start, words, slot, n, fired)
            fired[k] = n
            size, t = 0, 0
            for f in range(begun, p):
                while fired[t] < samples[f]:
                    after[size] = fired[t]
                    size += 1
                    t += 1
                if fires[f]:
                    after[size] = samples[f]
                    size += 1
                else:
                    t += 1
            while t < k:
                after[size] = fired[t]
                size += 1
                t += 1
            free = _write_row(after, size, n, slot, counts, start, words, room, free)
    return free, used


@njit(nogil=True, cache=True)
def move_to_bucket(slots, target, bucket, radius, bound, drift, run_start, run_count, soonest, pair_sample, due):
    """Put slots into larger buckets, whose bounds hold for them from now on.

    What a slot's pairs have used up so far is carried over: certificates keep what is left of them, and pairs without
    one keep the radius they were issued for, the difference to that of the new bucket becoming drift.

    Parameters
    ----------
    slots : (s,) int32; target : (s,) uint8, their new buckets
    radius : (q,) float32, ascending; bound : (q, n) float32
    """
    for s in range(slots.size):
        slot = slots[s]
        q, other = bucket[slot], target[s]
        more = np.float32((np.float64(radius[other]) - np.float64(radius[q])) * _UP32)
        earliest = np.float32(np.inf)
        for p in range(run_start[slot], run_start[slot] + run_count[slot]):
            j = pair_sample[p]
            left = np.float64(due[p]) - np.float64(bound[q, j]) - np.float64(drift[slot])
            at = left + np.float64(bound[other, j]) + np.float64(drift[slot]) + np.float64(more)
            due[p] = np.float32(at - 3e-7 * abs(at))
            earliest = min(earliest, due[p])
        soonest[slot] = earliest
        drift[slot] = np.float32((np.float64(drift[slot]) + np.float64(more)) * _UP32)
        bucket[slot] = other


@njit(nogil=True, cache=True)
def drift_of_corrections(entry_owner, entry_value, used, coefficients, factor, drift):
    """drift[owner] += factor |c_owner ê|, rounded up: how far corrections move when they shrink."""
    for e in range(used):
        owner = entry_owner[e]
        drift[owner] += np.float32(factor * abs(coefficients[owner] * entry_value[e]) * _UP32 + 1e-45)


@njit(nogil=True, cache=True)
def open_certificates(
    run_start, run_count, soonest, pair_sample, due, counts, start, words, bucket, drift, bound, highest, n, out_slot,
    out_sample, out_fires,
):  # fmt: skip
    """The pairs whose certificates `bound` would reach, and whether they fire; returns their number.

    The arguments are those of `look_at_certificates`.
    """
    fired = np.empty(n + 1, np.int32)
    on = np.zeros(n, np.bool_)
    found = 0
    for slot in range(counts.size):
        q = bucket[slot]
        extra = drift[slot] if drift.size > 0 else np.float32(0)
        if highest[q] + extra < soonest[slot]:
            continue
        levels = bound[q]
        k = -1
        for p in range(run_start[slot], run_start[slot] + run_count[slot]):
            j = pair_sample[p]
            if levels[j] + extra < due[p]:
                continue
            if k < 0:
                k = fired_samples(counts, start, words, slot, n, fired)
                for t in range(k):
                    on[fired[t]] = True
            out_slot[found] = slot
            out_sample[found] = j
            out_fires[found] = on[j]
            found += 1
        for t in range(k):
            on[fired[t]] = False
    return found


@njit(nogil=True, cache=True)
def walk_minibatches(
    samples, edges, rates, first, last, targets, sample_weight, loss, grams, outputs, response, collected, budget,
    spent, path, due, squared_norm,
):  # fmt: skip
    """Stochastic steps first to last while no neuron can flip; returns the step to go on from.

    Ends before a step that would exceed the budget, and after one that makes a certificate due.

    Parameters
    ----------
    samples, edges, rates, targets, sample_weight : as in `widefit.trackers.Minibatches`
    loss : 0 squared, 1 logistic, 2 softmax
    grams : tuple of k (n, n) float64, H of every output
    outputs, response, collected, spent : (k, n) float64, updated: f, J (W − W₀), G and Σ |g|
    budget : (k, n), what `spent` must not exceed
    path, due : (k,) float64: Σ ‖g‖₂, updated, and the value at which the first certificate is due
    squared_norm : (k,) float64, updated
    """
    k = outputs.shape[0]
    longest = 0
    for t in range(first, last):
        longest = max(longest, edges[t + 1] - edges[t])
    g = np.empty((longest, k), np.float64)
    f = np.empty(k, np.float64)
    for t in range(first, last):
        batch = samples[edges[t] : edges[t + 1]]
        for b in range(batch.size):
            i = batch[b]
            for o in range(k):
                f[o] = outputs[o, i]
            _slope(f, targets[i], loss, g[b])
            for o in range(k):
                g[b, o] *= rates[t] * sample_weight[i]
                if not spent[o, i] + abs(g[b, o]) <= budget[o, i]:
                    return t
        ready = False
        for o in range(k):
            size = 0.0
            for b in range(batch.size):
                i, step = batch[b], g[b, o]
                size += step * step
                squared_norm[o] -= 2 * step * response[o, i]
                spent[o, i] += abs(step)
                collected[o, i] += step
            matrix, own, moved = grams[o], outputs[o], response[o]
            for b in range(batch.size):
                i, step = batch[b], g[b, o]
                row = matrix[i]
                for c in range(b):
                    squared_norm[o] += 2 * step * g[c, o] * row[batch[c]]
                squared_norm[o] += step * step * row[i]
                for j in range(own.size):
                    own[j] -= step * row[j]
                    moved[j] -= step * row[j]
            path[o] += np.sqrt(size)
            ready |= path[o] >= due[o]
        if ready:
            return t + 1
    return last


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
