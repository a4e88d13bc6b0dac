"""Numba kernels of the certificate tracker: weights of slots from what they have collected.

All kernels are serial and release the GIL (see `widefit.kernels.fire_rows`, also for the layout of fire rows). Here a
row is a *slot*: a neuron that fired on some sample at the start of the run. From past updates slot r has collected

    C_r = s_r ∘ G + P ê_r,        w_r = w_r(0) − c_r Σ_i C_ri x_i,

with one running sum G for all slots and a list of corrections ê_r for pairs that have flipped.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.borrowing import borrowing
from widefit.kernels.fire_rows import FireRows, fired_samples
from widefit.kernels.vector import add_scaled_rows


class CorrectionChains(NamedTuple):
    """Corrections ê: entries of a pool, chained slot by slot.

    Attributes
    ----------
    head : (slots,) int32, latest entry of each slot; −1 for none
    following : int32, the entry of the same slot before; −1 ends the chain
    sample : integers, sample of each entry
    value : float64, ê of each entry
    """

    head: np.ndarray
    following: np.ndarray
    sample: np.ndarray
    value: np.ndarray


class Collected(NamedTuple):
    """C = S ∘ G + P ê of the slots of a chunk, or the change of C in a step.

    Attributes
    ----------
    rows : fire rows S of all slots
    total : (n,), G in float64, or its change in float32
    corrections : ê
    scale : P, or its change
    """

    rows: FireRows
    total: np.ndarray
    corrections: CorrectionChains
    scale: float


class SlotOrigin(NamedTuple):
    """Weights of the slots of a chunk at the start of the run, and the directions they move along.

    Attributes
    ----------
    neurons : (slots,) integers, neuron of each slot, counted from the first of the chunk
    initial : (some, d), weights at the start of neurons `first`, `first` + 1, …
    first : the neuron of the first row of `initial`
    coefficients : (slots,) float64, c
    blocks : X from `widefit.kernels.vector.column_blocks` for sums in float64
    """

    neurons: np.ndarray
    initial: np.ndarray
    first: int
    coefficients: np.ndarray
    blocks: np.ndarray


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def dot(a, b):
    # Summed in any order, the same on every call: otherwise every term would wait for the one before.
    total = 0.0
    for c in range(a.size):
        total += np.float64(a[c]) * np.float64(b[c])
    return total


@borrowing
def sum_rows(index, values, terms, blocks, out):
    """Write Σ_p values[p] x_index[p] over p < terms into out (blocks · lanes,) of the dtype of values."""
    lanes = blocks.shape[2]
    out[:] = 0
    for b in range(blocks.shape[0]):
        add_scaled_rows(out[b * lanes : (b + 1) * lanes], blocks[b], index, values, 0, terms)


@borrowing
def gather(index, k, slot, collected, values):
    """List the entries of C_r other than 0; return how many.

    Parameters
    ----------
    index : (2n,) int32, the first k given: the samples that the slot fires on. The others are written behind them
    values : (2n,), written
    """
    _, total, chains, scale = collected
    head, following, sample, value = chains
    for p in range(k):
        values[p] = total[index[p]]
    terms = k
    e = head[slot]
    while e >= 0:
        index[terms] = sample[e]
        values[terms] = scale * value[e]
        terms += 1
        e = following[e]
    return terms


@borrowing
def move_slot(fired, k, slot, origin, collected, values, moved, weight):
    """Write w_slot after a step, and its difference from the start, in float64.

    Parameters
    ----------
    fired, k : (2n,), the samples that the slot fired on before the step; the rest is overwritten
    values : (2n,) scratch
    moved : as long as a row of all blocks, written: the difference
    weight : (d,), written
    """
    terms = gather(fired, k, slot, collected, values)
    sum_rows(fired, values, terms, origin.blocks, moved)
    source = origin.initial[origin.neurons[slot] - origin.first]
    a = origin.coefficients[slot]
    for c in range(weight.size):
        moved[c] *= -a
        weight[c] = np.float64(source[c]) + moved[c]


@njit(nogil=True, cache=True)
def materialize(slots, origin, collected, out):
    """Write w_r(0) − c_r Σ_i C_ri x_i of some slots (s,) int32 into out (s, d) float64."""
    blocks = origin.blocks
    n = blocks.shape[1]
    fired = np.empty(2 * n + 1, np.int32)
    values = np.empty(2 * n)
    moved = np.empty(blocks.shape[0] * blocks.shape[2])
    for s in range(slots.size):
        k = fired_samples(collected.rows, slots[s], n, fired)
        move_slot(fired, k, slots[s], origin, collected, values, moved, out[s])


@njit(nogil=True, cache=True)
def exact_pairs(slots, samples, origin, collected, inputs, z, y):
    """Compute z of pairs after a step, and its difference y from the start.

    Parameters
    ----------
    slots, samples : (q,) the pairs, those of a slot together
    inputs : (n, d)
    z, y : (q,) float64, written
    """
    n, d = inputs.shape
    blocks = origin.blocks
    fired = np.empty(2 * n + 1, np.int32)
    values = np.empty(2 * n)
    moved = np.empty(blocks.shape[0] * blocks.shape[2])
    weight = np.empty(d)
    current = -1
    for p in range(slots.size):
        slot = slots[p]
        if slot != current:
            current = slot
            k = fired_samples(collected.rows, slot, n, fired)
            move_slot(fired, k, slot, origin, collected, values, moved, weight)
        z[p] = dot(weight, inputs[samples[p]])
        y[p] = dot(moved[:d], inputs[samples[p]])
