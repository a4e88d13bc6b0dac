"""Numba kernels of the certificate tracker: how far steps can move pre-activations at most, rounded outward."""

import numpy as np
from numba import njit

from widefit.kernels.certificate.slots import gather, sum_rows
from widefit.kernels.fire_rows import fired_samples

# Terms g_i K_ij of either sign are sorted into this many bins of equal width: sums of the largest are known to a bin.
_BINS = 256
# Outward rounding, relative: of float32 terms that are summed, and of what is stored in float32.
_UP = 1 + 3e-4
_UP32 = 1 + 2e-7


@njit(nogil=True, cache=True)
def bound_columns(similarity, change, caps, first, last, out):
    """out[q, j] ≥ |Σ_{i in F} change_i K_ij| for every set F of at most caps[q] samples, first ≤ j < last.

    The larger of the sums of the caps[q] largest positive and negative terms, rounded outward.

    Parameters
    ----------
    similarity : (n, n) float32, symmetric, finite
    change : (n,) float32, finite
    caps : (q,) int64, ascending
    out : (q, n) float64, columns first to last written
    """
    n = similarity.shape[0]
    count, total = np.empty(2 * _BINS, np.int32), np.empty(2 * _BINS, np.float32)
    # A bin's float32 sum of up to n terms of one sign is off by no more than n roundings.
    up = _UP + 6e-8 * n
    terms, place = np.empty(n, np.float32), np.empty(n, np.int32)
    for j in range(first, last):
        row = similarity[j]
        low, high = np.float32(0), np.float32(0)
        for i in range(n):
            value = change[i] * row[i]
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
        _take_largest(count[_BINS:][::-1], total[_BINS:][::-1], 1.0, scale, up, caps, out[:, j])
        if low < 0:
            _take_largest(count[:_BINS], total[:_BINS], -1.0, scale, up, caps, out[:, j])


@njit(nogil=True, cache=True)
def _take_largest(count, total, sign, scale, up, caps, out):
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
        out[q] = max(out[q], (whole + part) * up)


@njit(nogil=True, cache=True)
def _path(fired, k, slot, lengths, steps, head, following, entry_sample, entry_value, scale_change):
    """Σ_i |ΔC_ri| ‖x_i‖, rounded up, and its number of terms: k operations for a bound on a movement."""
    size, terms = np.float32(0), k
    for p in range(k):
        size += steps[fired[p]]
    if scale_change != 0:
        e = head[slot]
        while e >= 0:
            size += abs(np.float32(scale_change * entry_value[e])) * lengths[entry_sample[e]]
            terms += 1
            e = following[e]
    return np.float64(size) * (1 + 6e-8 * (terms + 2)), terms


@njit(nogil=True, cache=True)
def _length(
    fired, k, slot, change, head, following, entry_sample, entry_value, scale_change, blocks, path, terms, values, moved
):  # fmt: skip
    """‖Σ_i ΔC_ri x_i‖, rounded up: k d operations; `path` and `terms` are from `_path`, the last two scratch."""
    if scale_change != 0:
        gather(fired, k, change, slot, head, following, entry_sample, entry_value, scale_change, values)
    else:
        for p in range(k):
            values[p] = change[fired[p]]
    sum_rows(fired, values, terms, blocks, moved)
    # The second term bounds what rounding has done to the sums.
    return np.sqrt(_square(moved)) * (1 + 1e-6 * moved.size) + 1.3e-7 * (terms + 2) * path


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _square(moved):
    total = np.float32(0)
    for c in range(moved.size):
        total += moved[c] * moved[c]
    return np.float64(total)


@njit(nogil=True, cache=True)
def own_movements(
    coefficients, counts, start, words, first, last, change, head, following, entry_sample, entry_value, scale_change,
    blocks, lengths, steps, out,
):  # fmt: skip
    """out_r ≥ |c_r| ‖Σ_i ΔC_ri x_i‖: how far a step moves w_r, rounded up, for slots first to last.

    Parameters
    ----------
    change : (n,) float32, that of G; scale_change : that of P
    blocks : X in float32 from `column_blocks`; lengths : (n,) float32, ‖x_i‖
    steps : (n,) float32, |change_i| ‖x_i‖
    out : (last − first,) float32
    """
    n = blocks.shape[1]
    fired, values = np.empty(2 * n + 1, np.int32), np.empty(2 * n, np.float32)
    moved = np.empty(blocks.shape[0] * blocks.shape[2], np.float32)
    for r in range(first, last):
        k = fired_samples(counts, start, words, r, n, fired)
        path, terms = _path(fired, k, r, lengths, steps, head, following, entry_sample, entry_value, scale_change)
        length = _length(
            fired, k, r, change, head, following, entry_sample, entry_value, scale_change, blocks, path, terms, values,
            moved,
        )  # fmt: skip
        out[r - first] = np.float32(abs(coefficients[r]) * length * _UP32)


@njit(nogil=True, cache=True)
def drift_of_movements(
    coefficients, counts, start, words, change, head, following, entry_sample, entry_value, scale_change, blocks,
    lengths, steps, longest, bucket, highest, room, soonest, drift,
):  # fmt: skip
    """drift_r += how far a step moves z of slot r at most, no more closely than it matters.

    Where the length of the path |c_r| Σ_i |ΔC_ri| ‖x_i‖ lets no certificate expire and no pair out of the radius, it
    will do; the movement itself is d times the work.

    Parameters
    ----------
    longest : max ‖x_i‖, rounded up
    bucket : (slots,) uint8; highest, room : (q,) float32, the largest bound, and the drift that is too much
    soonest : (slots,) float32
    drift : (slots,) float32
    The other arguments are those of `own_movements`.
    """
    n = blocks.shape[1]
    fired, values = np.empty(2 * n + 1, np.int32), np.empty(2 * n, np.float32)
    moved = np.empty(blocks.shape[0] * blocks.shape[2], np.float32)
    for r in range(counts.size):
        k = fired_samples(counts, start, words, r, n, fired)
        path, terms = _path(fired, k, r, lengths, steps, head, following, entry_sample, entry_value, scale_change)
        unit, before = abs(coefficients[r]) * longest, np.float64(drift[r])
        after = np.float32((before + unit * path) * _UP32)
        if not (highest[bucket[r]] + after < soonest[r] and after < room[bucket[r]]):
            length = _length(
                fired, k, r, change, head, following, entry_sample, entry_value, scale_change, blocks, path, terms,
                values, moved,
            )  # fmt: skip
            after = np.float32((before + unit * length) * _UP32)
        drift[r] = after


@njit(nogil=True, cache=True)
def own_budgets(coefficients, counts, start, words, budget, reach, out):
    """out_r ≥ |c_r| reach Σ_{i: r fires on i} budget_i: how far steps with Σ |g| ≤ budget can move z of a slot.

    budget : (n,) float32; out : (slots,) float32
    """
    fired = np.empty(budget.size + 1, np.int32)
    for r in range(counts.size):
        k = fired_samples(counts, start, words, r, budget.size, fired)
        total = np.float64(0)
        for p in range(k):
            total += budget[fired[p]]
        out[r] = np.float32(abs(coefficients[r]) * reach * total * (1 + 1e-6))


@njit(nogil=True, cache=True)
def drift_of_corrections(entry_owner, entry_value, used, coefficients, factor, drift):
    """drift[owner] += factor |c_owner ê|, rounded up: how far corrections move when they shrink."""
    for e in range(used):
        owner = entry_owner[e]
        drift[owner] += np.float32(factor * abs(coefficients[owner] * entry_value[e]) * _UP32 + 1e-45)


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
