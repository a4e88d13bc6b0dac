"""Numba kernels of N = SᵀS and H = K ∘ N, counted from fire rows or followed flip by flip.

Rows that fire on few samples are counted pair by pair; of the others each sample gets one bit a row, and 64 rows are
counted at a time. Kernels are serial and release the GIL, see `widefit.kernels.fire_rows`.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from widefit.kernels.fire_rows import FireRows, fired_samples

# Samples of either side of a square of N that is counted at a time.
SQUARE = 4
# Words of their bits that are combined at once.
LANES = 8
# Words of every row of a tile that stay in the second-level cache.
_SPAN = 512


@njit(nogil=True, cache=True)
def split_by_sample(counts, start, words, samples, most, sample_start, position, stop, owner, bits, heavy):
    """Turn fire rows into positions in the light rows, sample by sample, and one bit for each other row.

    Parameters
    ----------
    counts, start, words : fire rows
    samples : n
    most : a row that fires on at most so many samples is light; such rows are index rows
    sample_start : (n + 1,) int64, written: entries of sample i are sample_start[i]:sample_start[i + 1]
    position, stop : (firing pairs of light rows,) int64, written: words[position:stop] are the samples ≥ i of that row
    owner : (firing pairs of light rows,) int32, written: the row itself
    bits : (n or more, words) uint64, bit `heavy` + h of sample i is set when the h-th other row fires on i
    heavy : index of the first bit to use
    """
    rows = counts.size
    sample_start[:] = 0
    for r in range(rows):
        if counts[r] <= most:
            for p in range(start[r], start[r] + counts[r]):
                sample_start[words[p] + 1] += 1
    for i in range(samples):
        sample_start[i + 1] += sample_start[i]
    cursor = sample_start[:-1].copy()
    fired = np.empty(samples + 1, np.int32)
    for r in range(rows):
        if counts[r] <= most:
            for p in range(start[r], start[r] + counts[r]):
                q = cursor[words[p]]
                position[q] = p
                stop[q] = start[r] + counts[r]
                owner[q] = r
                cursor[words[p]] = q + 1
        else:
            k = fired_samples(FireRows(counts, start, words), r, samples, fired)
            for p in range(k):
                bits[fired[p], heavy >> 6] |= np.uint64(1) << np.uint64(heavy & 63)
            heavy += 1


@njit(nogil=True, cache=True)
def co_firing_light(words, sample_start, position, stop, owner, weight, first, last, co_firing):
    """Add Σ_r weight_r s_ri s_rj over light rows to co_firing[i, j], for first ≤ i < last and j ≥ i.

    The arrays are those of `split_by_sample`; weight is (rows,), or of size 0 for ones. Row i of co_firing stays in the
    first-level cache while the fire rows that contain i stream by.
    """
    for i in range(first, last):
        row = co_firing[i]
        for q in range(sample_start[i], sample_start[i + 1]):
            if weight.size == 0:
                for p in range(position[q], stop[q]):
                    row[words[p]] += 1
            else:
                w = weight[owner[q]]
                for p in range(position[q], stop[q]):
                    row[words[p]] += w


def _common_bits_code(typing, bits, i, j, first, last, hits):
    """Write hits[SQUARE a + b] = Σ_w popcount(bits[i + a, w] & bits[j + b, w]), w in whole LANES from first to last."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        out = context.make_array(signature.args[5])(context, builder, arguments[5]).data
        index, vector = ir.IntType(64), ir.VectorType(ir.IntType(64), LANES)
        width = builder.sdiv(cgutils.unpack_tuple(builder, array.strides)[0], index(8))
        population = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), f"llvm.ctpop.v{LANES}i64"
        )

        def row(own, offset):
            return builder.gep(array.data, [builder.mul(builder.add(own, index(offset)), width)])

        rows = [[row(arguments[side], offset) for offset in range(SQUARE)] for side in (1, 2)]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(SQUARE * SQUARE)]
        with cgutils.for_range_slice(builder, arguments[3], arguments[4], index(LANES)) as (w, _):
            loaded = []
            for side in rows:
                loaded.append(
                    [builder.load(builder.bitcast(builder.gep(own, [w]), vector.as_pointer())) for own in side]
                )
                for one in loaded[-1]:
                    one.align = 8
            for a in range(SQUARE):
                for b in range(SQUARE):
                    place = sums[SQUARE * a + b]
                    both = builder.call(population, [builder.and_(loaded[0][a], loaded[1][b])])
                    builder.store(builder.add(builder.load(place), both), place)
        for p, place in enumerate(sums):
            total, parts = index(0), builder.load(place)
            for lane in range(LANES):
                total = builder.add(total, builder.extract_element(parts, ir.Constant(ir.IntType(32), lane)))
            builder.store(total, builder.gep(out, [index(p)]))
        return context.get_dummy_value()

    return types.void(bits, types.intp, types.intp, types.intp, types.intp, hits), generate


_common_bits: Callable = intrinsic(_common_bits_code)


@njit(nogil=True, cache=True)
def co_firing_heavy(bits, first, last, co_firing):
    """Add popcount(bits_i & bits_j) to co_firing[i, j] for first ≤ i < last and j ≥ i, and some j < i.

    bits : (n rounded up to SQUARE, a multiple of LANES) uint64; first is a multiple of SQUARE
    """
    n, total = co_firing.shape[0], bits.shape[1]
    hits = np.empty(SQUARE * SQUARE, np.int64)
    for w0 in range(0, total, _SPAN):
        w1 = min(w0 + _SPAN, total)
        for j in range(first, n, SQUARE):
            for i in range(first, min(last, j + SQUARE), SQUARE):
                _common_bits(bits, i, j, w0, w1, hits)
                for a in range(min(SQUARE, last - i)):
                    for b in range(min(SQUARE, n - j)):
                        co_firing[i + a, j + b] += hits[SQUARE * a + b]


@njit(nogil=True, cache=True)
def co_firing_flips(counts, start, words, rows, samples, fires, weight, scale, similarity, co_firing, gram):
    """Follow single flips in N and H: each changes one row and column at the samples that its neuron fires on.

    Parameters
    ----------
    counts, start, words : fire rows before the flips
    rows, samples, fires : (q,) the flips, those of a row together
    weight : (q,) of co_firing's dtype, weight of a co-firing of the flip's row
    scale : H = scale · N ∘ K
    similarity, gram : (n, n) float64; co_firing : (n, n), its upper triangle counts
    """
    n = similarity.shape[0]
    fired = np.empty(n + 1, np.int32)
    on = np.zeros(n, np.bool_)
    k = 0
    for q in range(rows.size):
        if q == 0 or rows[q] != rows[q - 1]:
            for p in range(k):
                on[fired[p]] = False
            k = fired_samples(FireRows(counts, start, words), rows[q], n, fired)
            for p in range(k):
                on[fired[p]] = True
        j = samples[q]
        # `fired` lists every sample that fired before or fires after: at most n of them.
        if fires[q]:
            on[j] = True
            fired[k] = j
            k += 1
        change = weight[q] if fires[q] else -weight[q]
        for p in range(k):
            i = fired[p]
            if on[i]:
                low, high = (i, j) if i < j else (j, i)
                co_firing[low, high] += change
                value = scale * co_firing[low, high] * similarity[low, high]
                gram[low, high] = value
                gram[high, low] = value
        if not fires[q]:
            on[j] = False


@njit(nogil=True, cache=True)
def flip_changes(counts, start, words, rows, samples, fires, weight, order, change):
    """Add up the change of N by flips, N + D + Dᵀ off the diagonal and N + D on it: rows of D, sample by sample.

    With δ = S' − S for a fire row S, S'S'ᵀ − SSᵀ = δSᵀ + Sδᵀ + δδᵀ: every flip adds to the row of its own sample, and
    flips can be taken in any order.

    Parameters
    ----------
    counts, start, words : fire rows before the flips
    rows, samples, fires, weight : (q,) the flips, those of a row together
    order : (p,) which flips to take; best by sample, so that a row of D stays in the first-level cache
    change : (n, n) of the dtype of weight, D, added to
    """
    n = change.shape[0]
    fired = np.empty(n + 1, np.int32)
    for p in range(order.size):
        q = order[p]
        row, step = change[samples[q]], weight[q] if fires[q] else -weight[q]
        k = fired_samples(FireRows(counts, start, words), rows[q], n, fired)
        for t in range(k):
            row[fired[t]] += step
        if fires[q]:
            row[samples[q]] += step
        t = q + 1
        while t < rows.size and rows[t] == rows[q]:
            row[samples[t]] += step if fires[t] else -step
            t += 1


@njit(nogil=True, cache=True)
def add_changes(change, first, last, co_firing):
    """Add D to the upper triangle of N, rows first to last; see `flip_changes`."""
    n = change.shape[0]
    for i in range(first, last):
        co_firing[i, i] += change[i, i]
    for j0 in range(first, n, 32):
        for i in range(first, last):
            for j in range(max(i + 1, j0), min(n, j0 + 32)):
                co_firing[i, j] += change[i, j] + change[j, i]


@njit(nogil=True, cache=True)
def gram_rows(co_firing, similarity, scale, first, last, gram):
    """Write gram[i, j] = gram[j, i] = scale · co_firing[i, j] · similarity[i, j] for first ≤ i < last and j ≥ i."""
    n = similarity.shape[0]
    # Squares of 32 by 32: written by columns, too, a longer one would leave the first-level cache before it is full.
    for j0 in range(first, n, 32):
        for i in range(first, last):
            for j in range(max(i, j0), min(n, j0 + 32)):
                value = scale * co_firing[i, j] * similarity[i, j]
                gram[i, j] = value
                gram[j, i] = value
