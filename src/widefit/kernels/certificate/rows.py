"""Numba kernels of the certificate tracker: fire rows and corrections as flips change them."""

import numpy as np
from numba import njit

from widefit.kernels.borrowing import borrowing
from widefit.kernels.fire_rows import fired_samples, row_limit, store_row


@borrowing
def _write_row(fired, k, n, row, rows, room, free):
    """Store a fire row where it stood, or at `free` when it has outgrown its room; return the new `free`."""
    limit = row_limit(rows.words, n)
    need = k if k <= limit else limit
    if need > room[row]:
        room[row] = min(limit, need + need // 4 + 4)
        rows.start[row] = free
        free += room[row]
    rows.counts[row] = k
    store_row(fired, k, n, rows.start[row], rows.words)
    return free


@njit(nogil=True, cache=True)
def store_lists(rows, n, fired):
    """Store fire rows given as index lists, one after the other, where each begins."""
    first = 0
    for row in range(rows.counts.size):
        k = rows.counts[row]
        store_row(fired[first : first + k], k, n, rows.start[row], rows.words)
        first += k


@njit(nogil=True, cache=True)
def unpack_lists(rows, n, fired):
    """Write fire rows as index lists, one after the other: the inverse of `store_lists`."""
    out = np.empty(n + 1, np.int32)
    first = 0
    for row in range(rows.counts.size):
        k = fired_samples(rows, row, n, out)
        fired[first : first + k] = out[:k]
        first += k


@njit(nogil=True, cache=True)
def differing_pairs(before, slots, after, n, slot, sample, fires):
    """List the pairs in which fire rows `after` differ from those of their `slots` before; return their number.

    slot, sample, fires : written, in the order of the rows and then by sample; whether the pair is in the new rows
    """
    old = np.empty(n + 1, np.int32)
    new = np.empty(n + 1, np.int32)
    found = 0
    for r in range(after.counts.size):
        k_old = fired_samples(before, slots[r], n, old)
        k_new = fired_samples(after, r, n, new)
        old[k_old] = n
        new[k_new] = n
        p = 0
        q = 0
        while p < k_old or q < k_new:
            if old[p] == new[q]:
                p += 1
                q += 1
                continue
            slot[found] = slots[r]
            fires[found] = new[q] < old[p]
            if old[p] < new[q]:
                sample[found] = old[p]
                p += 1
            else:
                sample[found] = new[q]
                q += 1
            found += 1
    return found


@njit(nogil=True, cache=True)
def first_due(slots, runs):
    """Write the level at which the first certificate of each of some slots is due."""
    for s in range(slots.size):
        slot = slots[s]
        earliest = np.float32(np.inf)
        for p in range(runs.start[slot], runs.start[slot] + runs.count[slot]):
            earliest = min(earliest, runs.due[p])
        runs.soonest[slot] = earliest


@njit(nogil=True, cache=True)
def link(owner, head, following):
    """Chain entries that stand slot after slot, from the latest on; `head` (slots,) is −1 to begin with."""
    for e in range(owner.size):
        following[e] = e - 1 if e > 0 and owner[e - 1] == owner[e] else -1
        head[owner[e]] = e


@njit(nogil=True, cache=True)
def add_corrections(slots, samples, values, owner, chains, used):
    """Add values to the corrections of pairs; return how many entries are taken then.

    owner, chains : slots and links of the entries; the first `used` are taken, and there is room for one a pair
    """
    for p in range(slots.size):
        slot = slots[p]
        j = samples[p]
        e = chains.head[slot]
        while e >= 0 and chains.sample[e] != j:
            e = chains.following[e]
        if e >= 0:
            chains.value[e] += values[p]
        else:
            owner[used] = slot
            chains.sample[used] = j
            chains.value[used] = values[p]
            chains.following[used] = chains.head[slot]
            chains.head[slot] = used
            used += 1
    return used


@njit(nogil=True, cache=True)
def rewrite_rows(slots, samples, fires, rows, room, free, n):
    """Carry flips into the fire rows; return the first free word afterwards.

    Parameters
    ----------
    slots, samples, fires : (q,) flips, ordered by slot and then by sample
    rows : the first `free` of its words are taken; there is room for the rows that grow
    room : (slots,) words that a row may take where it stands
    """
    fired = np.empty(n + 1, np.int32)
    after = np.empty(n + 1, np.int32)
    p = 0
    while p < slots.size:
        slot = slots[p]
        last = p
        while last < slots.size and slots[last] == slot:
            last += 1
        k = fired_samples(rows, slot, n, fired)
        fired[k] = n
        k = _flip_row(fired, k, samples[p:last], fires[p:last], after)
        free = _write_row(after, k, n, slot, rows, room, free)
        p = last
    return free


@borrowing
def _flip_row(fired, k, samples, fires, after):
    """Write a list of samples with flips carried in, all ascending; return its length."""
    size = 0
    t = 0
    for p in range(samples.size):
        while fired[t] < samples[p]:
            after[size] = fired[t]
            size += 1
            t += 1
        if fires[p]:
            after[size] = samples[p]
            size += 1
        else:
            t += 1
    while t < k:
        after[size] = fired[t]
        size += 1
        t += 1
    return size
