"""Numba kernels of the certificate tracker: what follows when certificates expire or candidates are due."""

import numpy as np
from numba import njit

from widefit.kernels.certificate_slots import dot, place
from widefit.kernels.cpu import fired_samples

# Outward rounding, relative: of a sum of float32 terms, and of what is stored in float32.
_UP = 1 + 3e-4
_DOWN32 = 1 - 2e-7


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
                    place(
                        fired, k, slot, neurons, base, base_first, coefficients, collected, head, following,
                        entry_sample, entry_value, scale, inputs, moved, weight,
                    )  # fmt: skip
                    fresh = False
                z = dot(weight, inputs[j])
                if (z > threshold) != on[j]:
                    flip_slot[flips] = slot
                    flip_sample[flips] = j
                    flip_fires[flips] = not on[j]
                    flip_z[flips] = z
                    flip_y[flips] = dot(moved, inputs[j])
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
def look_at_candidates(
    slots, samples, fires, rate, due, path, soon, neurons, base, base_first, coefficients, counts, start, words,
    collected, head, following, entry_sample, entry_value, scale, inputs, threshold,
    position, new_due, flips, flip_z, flip_y,
):  # fmt: skip
    """Evaluate the candidates that are due by `soon`, when the path length is `path`.

    Parameters
    ----------
    slots, samples, fires, rate, due : the candidates, see `widefit.trackers.certificate.window`
    position, new_due : written: those that were looked at, and when they are due again
    flips, flip_z, flip_y : written: candidates that flip, z and what it has moved by since the start
    The other arguments are those of `look_at_certificates`.

    Returns
    -------
    looked_at, flipped : numbers
    """
    n, d = inputs.shape
    fired = np.empty(n + 1, np.int32)
    moved, weight = np.empty(d, np.float64), np.empty(d, np.float64)
    current, found, flipped = -1, 0, 0
    for p in range(slots.size):
        if due[p] > soon:
            continue
        slot, j = slots[p], samples[p]
        if slot != current:
            current = slot
            k = fired_samples(counts, start, words, slot, n, fired)
            place(
                fired, k, slot, neurons, base, base_first, coefficients, collected, head, following, entry_sample,
                entry_value, scale, inputs, moved, weight,
            )  # fmt: skip
        z = dot(weight, inputs[j])
        if (z > threshold) != fires[p]:
            flips[flipped] = p
            flip_z[flipped] = z
            flip_y[flipped] = dot(moved, inputs[j])
            flipped += 1
        margin = max(abs(z - threshold) - 1e-12 * (abs(z) + abs(threshold)), 0.0)
        position[found] = p
        new_due[found] = path + margin / rate[p] * (1 - 1e-9) if rate[p] > 0 else np.inf
        found += 1
    return found, flipped
