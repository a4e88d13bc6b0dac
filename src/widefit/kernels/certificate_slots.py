"""Numba kernels of the certificate tracker: what a slot has collected, and where that has taken it.

All kernels are serial and release the GIL (see `widefit.kernels.cpu`, also for the layout of fire rows). Here a row is
a *slot*: a neuron that fired on some sample at the start of the run. What slot r has collected from past updates is

    C_r = s_r ∘ G + P ê_r,        w_r = w_r(0) − c_r Σ_i C_ri x_i,

with one running sum G for all slots and a list of corrections ê_r for pairs that have flipped: entries of a pool,
chained by `following` from `head[r]` on; −1 ends the chain.
"""

import numpy as np
from numba import njit

from widefit.kernels.cpu import fired_samples


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def dot(a, b):
    # Summed in any order, the same on every call: otherwise every term would wait for the one before.
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


@njit(nogil=True, cache=True)
def add_rows(fired, k, factors, inputs, moved):
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
def collect(fired, k, collected, slot, head, following, entry_sample, entry_value, scale, inputs, moved):
    """moved = Σ_i C_ri x_i."""
    moved[:] = 0
    add_rows(fired, k, collected, inputs, moved)
    e = head[slot]
    while e >= 0:
        g = scale * entry_value[e]
        x = inputs[entry_sample[e]]
        for c in range(moved.size):
            moved[c] += g * x[c]
        e = following[e]


@njit(nogil=True, cache=True)
def place(
    fired, k, slot, neurons, base, base_first, coefficients, collected, head, following, entry_sample, entry_value,
    scale, inputs, moved, weight,
):  # fmt: skip
    """weight = w_slot after a step, moved = what it differs by from the start; both (d,) float64, written.

    fired, k : the samples that the slot fired on before the step
    The other arguments are those of `look_at_certificates`.
    """
    collect(fired, k, collected, slot, head, following, entry_sample, entry_value, scale, inputs, moved)
    source = base[neurons[slot] - base_first]
    for c in range(moved.size):
        moved[c] *= -coefficients[slot]
        weight[c] = np.float64(source[c]) + moved[c]


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
        collect(fired, k, collected, slot, head, following, entry_sample, entry_value, scale, inputs, moved)
        a = coefficients[slot]
        target = out[s]
        source = base[s]
        for c in range(d):
            target[c] = np.float64(source[c]) - a * moved[c]


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
            place(
                fired, k, slot, neurons, base, base_first, coefficients, collected, head, following, entry_sample,
                entry_value, scale, inputs, moved, weight,
            )  # fmt: skip
        z[p] = dot(weight, inputs[samples[p]])
        y[p] = dot(moved, inputs[samples[p]])
