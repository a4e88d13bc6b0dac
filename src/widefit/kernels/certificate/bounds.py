"""Numba kernels of the certificate tracker: how far steps can move pre-activations at most, rounded outward."""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.borrowing import borrowing
from widefit.kernels.certificate.slots import Collected, gather, sum_rows
from widefit.kernels.fire_rows import fired_samples

# Terms g_i K_ij of either sign are sorted into this many bins of equal width: sums of the largest are known to a bin.
_BINS = 256
# Outward rounding, relative: of float32 terms that are summed, and of what is stored in float32.
_UP = 1 + 3e-4
_UP32 = 1 + 2e-7


class Movement(NamedTuple):
    """Change of the slots of a chunk in a step.

    Attributes
    ----------
    coefficients : (slots,) float64
    change : C after the step less C before, the running sum in float32
    blocks : X in float32 from `widefit.kernels.vector.column_blocks`
    lengths : (n,) float32, ‖x_i‖
    steps : (n,) float32, |change_i| ‖x_i‖
    """

    coefficients: np.ndarray
    change: Collected
    blocks: np.ndarray
    lengths: np.ndarray
    steps: np.ndarray


@njit(nogil=True, cache=True)
def bound_columns(similarity, change, caps, first, last, out):
    """Bound the movement of neurons that fire on few samples, for samples first ≤ j < last.

    out[q, j] ≥ |Σ_{i in F} change_i K_ij| for every set F of at most caps[q] samples: the larger of the sums of the
    caps[q] largest positive and negative terms, rounded outward.

    Parameters
    ----------
    similarity : (n, n) float32, symmetric, finite
    change : (n,) float32, finite
    caps : (q,) int64, ascending
    out : (q, n) float64, columns first to last written
    """
    n = similarity.shape[0]
    count = np.empty(2 * _BINS, np.int32)
    total = np.empty(2 * _BINS, np.float32)
    # A bin's float32 sum of up to n terms of one sign is off by no more than n roundings.
    up = _UP + 6e-8 * n
    terms = np.empty(n, np.float32)
    bins = np.empty(n, np.int32)
    for j in range(first, last):
        row = similarity[j]
        low = np.float32(0)
        high = np.float32(0)
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
            bins[i] = np.int32(terms[i] * scale + np.float32(_BINS))
        count[:] = 0
        total[:] = 0
        for i in range(n):
            b = bins[i]
            count[b] += 1
            total[b] += terms[i]
        _take_largest(count[_BINS:][::-1], total[_BINS:][::-1], 1.0, scale, up, caps, out[:, j])
        if low < 0:
            _take_largest(count[:_BINS], total[:_BINS], -1.0, scale, up, caps, out[:, j])


@njit(nogil=True, cache=True)
def _take_largest(count, total, sign, scale, up, caps, out):
    """Raise out[q] to at least the sum of the caps[q] largest terms; bins come from the largest down."""
    taken = 0
    whole = 0.0
    b = 0
    for q in range(caps.size):
        while b < count.size and taken + count[b] <= caps[q]:
            taken += count[b]
            whole += sign * np.float64(total[b])
            b += 1
        part = 0.0
        if b < count.size:
            part = min(sign * np.float64(total[b]), (caps[q] - taken) * (count.size - b) / np.float64(scale))
        out[q] = max(out[q], (whole + part) * up)


@borrowing
def _path(fired, k, slot, movement):
    """Bound a movement in k operations: Σ_i |ΔC_ri| ‖x_i‖, rounded up, and its number of terms."""
    _, change, _, lengths, steps = movement
    size = np.float32(0)
    for p in range(k):
        size += steps[fired[p]]
    terms = k
    if change.scale != 0:
        head, following, sample, value = change.corrections
        e = head[slot]
        while e >= 0:
            size += abs(np.float32(change.scale * value[e])) * lengths[sample[e]]
            terms += 1
            e = following[e]
    return np.float64(size) * (1 + 6e-8 * (terms + 2)), terms


@borrowing
def _length(fired, k, slot, movement, path, terms, values, moved):
    """Bound a movement in k d operations: ‖Σ_i ΔC_ri x_i‖, rounded up.

    path, terms : from `_path`
    values, moved : scratch
    """
    change = movement.change
    if change.scale != 0:
        gather(fired, k, slot, change, values)
    else:
        total = change.total
        for p in range(k):
            values[p] = total[fired[p]]
    sum_rows(fired, values, terms, movement.blocks, moved)
    # The second term bounds what rounding has done to the sums.
    return np.sqrt(_square(moved)) * (1 + 1e-6 * moved.size) + 1.3e-7 * (terms + 2) * path


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _square(moved):
    total = np.float32(0)
    for c in range(moved.size):
        total += moved[c] * moved[c]
    return np.float64(total)


@njit(nogil=True, cache=True)
def own_movements(movement, first, last, out):
    """Bound how far a step moves w_r for slots `first` to `last`: out_r ≥ |c_r| ‖Σ_i ΔC_ri x_i‖.

    out : (last − first,) float32, rounded up
    """
    blocks = movement.blocks
    n = blocks.shape[1]
    fired = np.empty(2 * n + 1, np.int32)
    values = np.empty(2 * n, np.float32)
    moved = np.empty(blocks.shape[0] * blocks.shape[2], np.float32)
    for r in range(first, last):
        k = fired_samples(movement.change.rows, r, n, fired)
        path, terms = _path(fired, k, r, movement)
        length = _length(fired, k, r, movement, path, terms, values, moved)
        out[r - first] = np.float32(abs(movement.coefficients[r]) * length * _UP32)


@njit(nogil=True, cache=True)
def drift_of_movements(movement, longest, bucket, highest, room, soonest, drift):
    """Raise drift_r by how far a step moves z of slot r at most, no more closely than it matters.

    Where the length of the path |c_r| Σ_i |ΔC_ri| ‖x_i‖ lets no certificate expire and no pair out of the radius, it
    will do; the movement itself is d times the work.

    Parameters
    ----------
    longest : max ‖x_i‖, rounded up
    bucket : (slots,) uint8
    highest, room : (q,) float32, the largest bound, and the drift that is too much
    soonest : (slots,) float32
    drift : (slots,) float32
    """
    blocks = movement.blocks
    n = blocks.shape[1]
    fired = np.empty(2 * n + 1, np.int32)
    values = np.empty(2 * n, np.float32)
    moved = np.empty(blocks.shape[0] * blocks.shape[2], np.float32)
    for r in range(drift.size):
        k = fired_samples(movement.change.rows, r, n, fired)
        path, terms = _path(fired, k, r, movement)
        unit = abs(movement.coefficients[r]) * longest
        before = np.float64(drift[r])
        after = np.float32((before + unit * path) * _UP32)
        if not (highest[bucket[r]] + after < soonest[r] and after < room[bucket[r]]):
            length = _length(fired, k, r, movement, path, terms, values, moved)
            after = np.float32((before + unit * length) * _UP32)
        drift[r] = after


@njit(nogil=True, cache=True)
def own_budgets(coefficients, rows, budget, reach, out):
    """Bound how far steps with Σ |g| ≤ budget can move z of a slot: out_r ≥ |c_r| reach Σ_{i: r fires on i} budget_i.

    budget : (n,) float32; out : (slots,) float32
    """
    fired = np.empty(budget.size + 1, np.int32)
    for r in range(rows.counts.size):
        k = fired_samples(rows, r, budget.size, fired)
        total = np.float64(0)
        for p in range(k):
            total += budget[fired[p]]
        out[r] = np.float32(abs(coefficients[r]) * reach * total * (1 + 1e-6))


@njit(nogil=True, cache=True)
def drift_of_corrections(owner, value, used, coefficients, factor, drift):
    """Raise drift[owner] by factor |c_owner ê|, rounded up: how far corrections move when they shrink."""
    for e in range(used):
        slot = owner[e]
        drift[slot] += np.float32(factor * abs(coefficients[slot] * value[e]) * _UP32 + 1e-45)


@njit(nogil=True, cache=True)
def move_to_bucket(slots, target, bucket, radius, level, drift, runs):
    """Put slots into larger buckets, whose bounds hold for them from now on.

    What a slot's pairs have used up so far is carried over: certificates keep what is left of them, and pairs without
    one keep the radius they were issued for, the difference to that of the new bucket becoming drift.

    Parameters
    ----------
    slots : (s,) int32
    target : (s,) uint8, their new buckets
    radius : (q,) float32, ascending
    level : (q, n) float32, bounds so far
    runs : certificates, `widefit.kernels.certificate.look.CertificateRuns`
    """
    for s in range(slots.size):
        slot = slots[s]
        q = bucket[slot]
        other = target[s]
        used = np.float64(drift[slot])
        more = np.float32((np.float64(radius[other]) - np.float64(radius[q])) * _UP32)
        earliest = np.float32(np.inf)
        for p in range(runs.start[slot], runs.start[slot] + runs.count[slot]):
            j = runs.sample[p]
            left = np.float64(runs.due[p]) - np.float64(level[q, j]) - used
            at = left + np.float64(level[other, j]) + used + np.float64(more)
            runs.due[p] = np.float32(at - 3e-7 * abs(at))
            earliest = min(earliest, runs.due[p])
        runs.soonest[slot] = earliest
        drift[slot] = np.float32((used + np.float64(more)) * _UP32)
        bucket[slot] = other
