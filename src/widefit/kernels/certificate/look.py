"""Numba kernels of the certificate tracker: what follows when certificates expire."""

import numpy as np
from numba import njit

from widefit.kernels.certificate.slots import dot, place
from widefit.kernels.fire_rows import fired_samples

# Outward rounding, relative: of a sum of float32 terms, and of what is stored in float32.
_UP = 1 + 3e-4
_DOWN32 = 1 - 2e-7


@njit(nogil=True, cache=True)
def look_at_certificates(
    first, last, run_start, run_count, soonest, pair_sample, due, neurons, base, base_first, coefficients, counts,
    start, words, bucket, drift, bound, highest, step_bound, change, collected, head, following, entry_sample,
    entry_value, scale, reach, blocks, inputs, threshold,
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
    bound : (q, n) float32, after the step
    step_bound : (q, n) float64, in the step; of size 0 where the drift has all of it
    highest : (q,) float32, the largest of each row of bound
    change, collected : (n,) float64: G after the step less G before, and G after
    scale : P after the step
    reach : (n,) float64, max_i |K_ij|
    blocks : X from `column_blocks` for sums in float64; inputs : (n, d)
    position, new_due : written: certificates that have expired, and when they are due again
    touched, new_soonest : written: their slots, and when the first certificate of each is due
    flip_slot, flip_sample, flip_fires, flip_z, flip_y : written: the pairs that flip, z and what it has moved by

    Returns
    -------
    expired, slots, flips, evaluated : numbers written, and how often z was computed
    """
    n, d = inputs.shape
    fired, values, late = np.empty(2 * n + 1, np.int32), np.empty(2 * n), np.empty(n + 1, np.int64)
    on = np.zeros(n, np.bool_)
    moved, weight = np.empty(blocks.shape[0] * blocks.shape[2]), np.empty(d)
    expired, visited, flips, evaluated = 0, 0, 0, 0
    for slot in range(first, last):
        q = bucket[slot]
        extra = drift[slot] if drift.size > 0 else np.float32(0)
        if highest[q] + extra < soonest[slot]:
            continue
        levels = bound[q]
        found, earliest = _late(pair_sample, due, run_start[slot], run_count[slot], levels, extra, late)
        if found == 0:
            continue
        k = fired_samples(counts, start, words, slot, n, fired)
        if step_bound.size > 0:
            own = 0.0
            for t in range(k):
                own += abs(change[fired[t]])
            own *= abs(coefficients[slot]) * _UP
            left = 0
            for t in range(found):
                p = late[t]
                j = pair_sample[p]
                granted, spent = step_bound[q, j], own * reach[j]
                later = np.float64(due[p]) + granted - spent
                again = np.float32(later - 1e-6 * abs(later))
                if granted <= spent or again <= levels[j] + extra:
                    late[left] = p
                    left += 1
                    continue
                position[expired], new_due[expired] = p, again
                expired += 1
                earliest = min(earliest, again)
            found = left
        if found > 0:
            for t in range(k):
                on[fired[t]] = True
            place(
                fired, k, slot, neurons, base, base_first, coefficients, collected, head, following, entry_sample,
                entry_value, scale, blocks, values, moved, weight,
            )  # fmt: skip
            for t in range(found):
                p = late[t]
                j = pair_sample[p]
                z = dot(weight, inputs[j])
                if (z > threshold) != on[j]:
                    flip_slot[flips], flip_sample[flips], flip_fires[flips] = slot, j, not on[j]
                    flip_z[flips], flip_y[flips] = z, dot(moved[:d], inputs[j])
                    flips += 1
                margin = max(abs(z - threshold) - 1e-12 * (abs(z) + abs(threshold)), 0.0)
                again = np.float32((np.float64(levels[j] + extra) + margin) * _DOWN32)
                position[expired], new_due[expired] = p, again
                expired += 1
                earliest = min(earliest, again)
            evaluated += found
            for t in range(k):
                on[fired[t]] = False
        touched[visited], new_soonest[visited] = slot, earliest
        visited += 1
    return expired, visited, flips, evaluated


@njit(nogil=True, cache=True)
def _late(pair_sample, due, first, count, levels, extra, late):
    """Certificates of a slot that have expired; returns how many, and when the first of the others is due."""
    found, earliest = 0, np.float32(np.inf)
    for p in range(first, first + count):
        # Branchless: which ones expire cannot be foretold.
        late[found] = p
        valid = levels[pair_sample[p]] + extra < due[p]
        found += not valid
        earliest = min(earliest, due[p] if valid else np.float32(np.inf))
    return found, earliest
