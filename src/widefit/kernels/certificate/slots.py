"""Numba kernels of the certificate tracker: what a slot has collected, and where that has taken it.

All kernels are serial and release the GIL (see `widefit.kernels.fire_rows`, also for the layout of fire rows). Here a
row is a *slot*: a neuron that fired on some sample at the start of the run. What slot r has collected from past updates
is

    C_r = s_r ∘ G + P ê_r,        w_r = w_r(0) − c_r Σ_i C_ri x_i,

with one running sum G for all slots and a list of corrections ê_r for pairs that have flipped: entries of a pool,
chained by `following` from `head[r]` on; −1 ends the chain.
"""

import numpy as np
from numba import njit

from widefit.kernels.fire_rows import fired_samples
from widefit.kernels.vector import add_scaled_rows


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def dot(a, b):
    # Summed in any order, the same on every call: otherwise every term would wait for the one before.
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


@njit(nogil=True, cache=True)
def sum_rows(index, values, terms, blocks, out):
    """out = Σ_p values[p] x_index[p] over p < terms; out (blocks · lanes,) of the dtype of values."""
    lanes = blocks.shape[2]
    out[:] = 0
    for b in range(blocks.shape[0]):
        add_scaled_rows(out[b * lanes : (b + 1) * lanes], blocks[b], index, values, 0, terms)


@njit(nogil=True, cache=True)
def gather(index, k, collected, slot, head, following, entry_sample, entry_value, scale, values):
    """The entries of C_r other than 0: values and, behind the k samples it fires on, indices; returns how many.

    index, values : (2n,), the first k indices given
    """
    for p in range(k):
        values[p] = collected[index[p]]
    terms, e = k, head[slot]
    while e >= 0:
        index[terms], values[terms] = entry_sample[e], scale * entry_value[e]
        terms += 1
        e = following[e]
    return terms


@njit(nogil=True, cache=True)
def place(
    fired, k, slot, neurons, base, base_first, coefficients, collected, head, following, entry_sample, entry_value,
    scale, blocks, values, moved, weight,
):  # fmt: skip
    """weight = w_slot after a step, moved = what it differs by from the start; float64, written.

    fired, k : (2n,), the samples that the slot fired on before the step; the rest is overwritten
    values : (2n,) scratch
    moved : as long as a row of all blocks; weight : (d,)
    The other arguments are those of `look_at_certificates`.
    """
    terms = gather(fired, k, collected, slot, head, following, entry_sample, entry_value, scale, values)
    sum_rows(fired, values, terms, blocks, moved)
    source, a = base[neurons[slot] - base_first], coefficients[slot]
    for c in range(weight.size):
        moved[c] *= -a
        weight[c] = np.float64(source[c]) + moved[c]


@njit(nogil=True, cache=True)
def materialize(
    slots, neurons, base, base_first, coefficients, counts, start, words, collected, head, following, entry_sample,
    entry_value, scale, blocks, out,
):  # fmt: skip
    """out = w_r(0) − c_r Σ_i C_ri x_i in float64, slot by slot.

    Parameters
    ----------
    slots : (s,) int32
    neurons : (slots,) int32; base : initial weights of neurons base_first, base_first + 1, …
    coefficients : float64, of all slots
    counts, start, words : fire rows of all slots
    collected : (n,) float64, G
    head : (slots,) int32; following, entry_sample : int32; entry_value : float64: corrections
    scale : P
    blocks : X from `column_blocks` for sums in float64
    out : (s, d) float64
    """
    n = blocks.shape[1]
    fired, values = np.empty(2 * n + 1, np.int32), np.empty(2 * n)
    moved = np.empty(blocks.shape[0] * blocks.shape[2])
    for s in range(slots.size):
        k = fired_samples(counts, start, words, slots[s], n, fired)
        place(
            fired, k, slots[s], neurons, base, base_first, coefficients, collected, head, following, entry_sample,
            entry_value, scale, blocks, values, moved, out[s],
        )  # fmt: skip


@njit(nogil=True, cache=True)
def exact_pairs(
    slots, samples, neurons, base, base_first, coefficients, counts, start, words, collected, head, following,
    entry_sample, entry_value, scale, blocks, inputs, z, y,
):  # fmt: skip
    """z of pairs after a step, and what it has moved by since the start; those of a slot together.

    The arguments are those of `look_at_certificates`.
    """
    n, d = inputs.shape
    fired, values = np.empty(2 * n + 1, np.int32), np.empty(2 * n)
    moved, weight = np.empty(blocks.shape[0] * blocks.shape[2]), np.empty(d)
    current = -1
    for p in range(slots.size):
        slot = slots[p]
        if slot != current:
            current = slot
            k = fired_samples(counts, start, words, slot, n, fired)
            place(
                fired, k, slot, neurons, base, base_first, coefficients, collected, head, following, entry_sample,
                entry_value, scale, blocks, values, moved, weight,
            )  # fmt: skip
        z[p] = dot(weight, inputs[samples[p]])
        y[p] = dot(moved[:d], inputs[samples[p]])
