"""Numba kernels of the certificate tracker: fire rows as flips change them."""

import numpy as np
from numba import njit

from widefit.kernels.fire_rows import fired_samples, row_limit


@njit(nogil=True, cache=True)
def store_row(fired, k, n, base, words):
    """Store a fire row at `base`; returns the words it takes."""
    limit, width = row_limit(words, n), 8 * words.itemsize
    if k <= limit:
        for p in range(k):
            words[base + p] = fired[p]
        return k
    for w in range(limit):
        words[base + w] = 0
    for p in range(k):
        w = base + fired[p] // width
        words[w] = np.uint64(words[w]) | (np.uint64(1) << np.uint64(fired[p] % width))
    return limit


@njit(nogil=True, cache=True)
def _write_row(fired, k, n, row, counts, start, words, room, free):
    """Store a fire row where it stood, or at `free` when it has outgrown its room; returns the new `free`."""
    limit = row_limit(words, n)
    need = k if k <= limit else limit
    if need > room[row]:
        room[row] = min(limit, need + need // 4 + 4)
        start[row] = free
        free += room[row]
    counts[row] = k
    store_row(fired, k, n, start[row], words)
    return free


@njit(nogil=True, cache=True)
def pack_rows(counts, start, words, n, fired):
    """Store fire rows given as index lists, one after the other, where each begins."""
    first = 0
    for row in range(counts.size):
        store_row(fired[first : first + counts[row]], counts[row], n, start[row], words)
        first += counts[row]


@njit(nogil=True, cache=True)
def unpack_lists(counts, start, words, n, fired):
    """The inverse of `pack_rows`."""
    out, first = np.empty(n + 1, np.int32), 0
    for row in range(counts.size):
        k = fired_samples(counts, start, words, row, n, out)
        fired[first : first + k] = out[:k]
        first += k


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
def first_due(slots, run_start, run_count, due, soonest):
    """soonest[slot] = when the first certificate of each of these slots is due."""
    for s in range(slots.size):
        slot = slots[s]
        earliest = np.float32(np.inf)
        for p in range(run_start[slot], run_start[slot] + run_count[slot]):
            earliest = min(earliest, due[p])
        soonest[slot] = earliest


@njit(nogil=True, cache=True)
def link(owner, head, following):
    """Chains, from the latest on, of entries that stand slot after slot; `head` (slots,) is −1 to begin with."""
    for e in range(owner.size):
        following[e] = e - 1 if e > 0 and owner[e - 1] == owner[e] else -1
        head[owner[e]] = e


@njit(nogil=True, cache=True)
def add_corrections(slots, samples, values, head, entry_owner, following, entry_sample, entry_value, used):
    """Add values to the corrections of pairs; returns how many entries are taken then.

    entry_owner, following, entry_sample, entry_value : corrections; the first `used` are taken, and there is room
    """
    for p in range(slots.size):
        slot, j = slots[p], samples[p]
        e = head[slot]
        while e >= 0 and entry_sample[e] != j:
            e = following[e]
        if e >= 0:
            entry_value[e] += values[p]
        else:
            entry_owner[used] = slot
            entry_sample[used] = j
            entry_value[used] = values[p]
            following[used] = head[slot]
            head[slot] = used
            used += 1
    return used


@njit(nogil=True, cache=True)
def rewrite_rows(slots, samples, fires, counts, start, words, room, free, n):
    """Carry flips into the fire rows; returns the first free word afterwards.

    Parameters
    ----------
    slots, samples, fires : (q,) flips, ordered by slot and then by sample
    words : its first `free` entries are taken; needs room for the rows that grow
    room : (slots,) words that a row may take where it stands
    """
    fired, after = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
    p = 0
    while p < slots.size:
        slot = slots[p]
        k = fired_samples(counts, start, words, slot, n, fired)
        fired[k] = n
        size, t = 0, 0
        while p < slots.size and slots[p] == slot:
            while fired[t] < samples[p]:
                after[size] = fired[t]
                size += 1
                t += 1
            if fires[p]:
                after[size] = samples[p]
                size += 1
            else:
                t += 1
            p += 1
        while t < k:
            after[size] = fired[t]
            size += 1
            t += 1
        free = _write_row(after, size, n, slot, counts, start, words, room, free)
    return free
