"""Numba kernels of H v for a two-layer network, from fire rows and samples alone: nothing of size n × n.

H v = Σ_r w_r D_r X (Xᵀ D_r v) with D_r the samples that neuron r fires on: sums of rows of X, and products of these
sums with the same rows, 4 d operations a pair that fires. Columns of X are cut into blocks as wide as a few registers,
and samples into tiles whose rows of a block stay in the second-level cache. Kernels are serial and release the GIL, see
`widefit.kernels.fire_rows`.

**Twins.** Two neurons that started with the same weights fire on nearly the same samples, D' = D + E with E = ±1 on the
few where they differ. Their sums are u and u' = u + Xᵀ E v, and what they give is D X (w u + w' u') + E X (w' u'): one
walk over the samples of D serves both.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from widefit.kernels.bits import lowest_bit, without_lowest_bit
from widefit.kernels.borrowing import borrowing
from widefit.kernels.fire_rows import FireRows, fired_samples, row_limit
from widefit.kernels.products import aligned_zeros

# Bytes of a step: a block of columns is 1, 2, 4 or 8 of them wide, as many as the registers hold beside what they work
# on.
_STEP = 64
_MOST_STEPS = 8 if binding.get_host_cpu_features().get("avx512f") else 4
# Bytes of a tile: a part of a second-level cache, which sums have to share (measured).
_TILE_BYTES = 1 << 18
# Samples of a tile are a multiple of the bits of a word, whatever the word.
_WORD = 64


class Twins(NamedTuple):
    """Fire rows, and what those of a second neuron each differ by.

    Attributes
    ----------
    rows : fire rows
    weights : (rows,) float64, w of each
    others : (rows,) float64, w' of the second neuron; 0 where there is none
    start : (rows + 1,) int64, where the differences of each row begin
    samples : (differences,) int32, on which one of the two fires alone, ascending for every row
    gained : (differences,) bool, True where that is the second
    """

    rows: FireRows
    weights: np.ndarray
    others: np.ndarray
    start: np.ndarray
    samples: np.ndarray
    gained: np.ndarray


def steps_of(features: int, itemsize: int) -> int:
    """Return the width of a block for so many columns, in steps."""
    steps = 1
    while steps < _MOST_STEPS and steps * _STEP < features * itemsize:
        steps *= 2
    return steps


def blocks_of(inputs: np.ndarray) -> np.ndarray:
    """Return X (n, d) cut into blocks of columns, (blocks, n, lanes), zero-padded."""
    samples, features = inputs.shape
    lanes = steps_of(features, inputs.itemsize) * _STEP // inputs.itemsize
    blocks = aligned_zeros((-(-features // lanes), samples, lanes), inputs.dtype)
    for block in range(blocks.shape[0]):
        own = inputs[:, block * lanes : (block + 1) * lanes]
        blocks[block, :, : own.shape[1]] = own
    return blocks


def tile_of(blocks: np.ndarray) -> int:
    """Return the samples of a tile."""
    return max(_WORD, _TILE_BYTES // (blocks.shape[2] * blocks.itemsize) // _WORD * _WORD)


def width_of(blocks: np.ndarray) -> tuple[int, ...]:
    """Return a tuple as long as a block has steps: kernels are compiled for that length."""
    return (0,) * (blocks.shape[2] * blocks.itemsize // _STEP)


class _Row:
    """Pointers, and vectors as wide as a block, for the two intrinsics below; `wide` are those of the sums."""

    def __init__(self, context, builder, kinds, arguments, steps: int):
        self.builder = builder
        self.number = context.get_data_type(kinds[1].dtype)
        self.size = kinds[1].dtype.bitwidth // 8
        self.lanes = steps * _STEP // self.size
        self.vector = ir.VectorType(self.number, self.lanes)
        self.wide = ir.VectorType(context.get_data_type(kinds[0].dtype), self.lanes)
        self.data = [
            context.make_array(kind)(context, builder, argument).data
            for kind, argument in zip(kinds, arguments, strict=True)
        ]

    def place(self, data, row):
        """Pointer to a row of so many lanes, as a vector."""
        first = self.builder.gep(data, [self.builder.mul(row, row.type(self.lanes))])
        vector = ir.VectorType(data.type.pointee, self.lanes)
        return self.builder.bitcast(first, vector.as_pointer())

    def load(self, pointer):
        loaded = self.builder.load(pointer)
        loaded.align = self.size
        return loaded


def _collect_code(typing, sums, own, rows, base, index, values, offset, count, width):
    """Add values[offset + index[p]] rows[base + index[p]] over p < count to sums[own], all of them flat arrays.

    The sums stay in registers from the first p to the last, in the dtype of rows; `sums` may be more precise.
    """
    signature = types.void(
        sums, types.intp, rows, types.intp, index, values, types.intp, types.intp, width
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        kinds = [signature.args[a] for a in (0, 2, 4, 5)]
        row = _Row(context, builder, kinds, [arguments[a] for a in (0, 2, 4, 5)], signature.args[8].count)
        total, source, index, values = row.data
        own, base, offset, count = (arguments[a] for a in (1, 3, 6, 7))
        place = row.place(total, own)
        held = cgutils.alloca_once(builder, row.vector)
        exact = row.wide != row.vector
        builder.store(ir.Constant(row.vector, [0.0] * row.lanes) if exact else row.load(place), held)
        lane = ir.IntType(32)
        nothing = ir.Constant(row.vector, ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(lane, row.lanes), [0] * row.lanes)
        with cgutils.for_range(builder, count, intp=count.type) as loop:
            sample = builder.zext(builder.load(builder.gep(index, [loop.index])), count.type)
            vector = row.load(row.place(source, builder.add(base, sample)))
            value = builder.load(builder.gep(values, [builder.add(offset, sample)]))
            factor = builder.shuffle_vector(builder.insert_element(nothing, value, lane(0)), nothing, everywhere)
            product = builder.fmul(vector, factor, flags=["contract"])
            builder.store(builder.fadd(builder.load(held), product, flags=["contract"]), held)
        found = builder.load(held)
        if exact:
            found = builder.fadd(row.load(place), builder.fpext(found, row.wide))
        builder.store(found, place).align = row.size
        return context.get_dummy_value()

    return signature, generate


def _spread_code(typing, sums, own, rows, base, index, out, offset, count, scale, width):
    """Add scale · sums[own] · rows[base + index[p]] to out[offset + index[p]] (float64) for all p < count."""
    signature = types.void(
        sums, types.intp, rows, types.intp, index, out, types.intp, types.intp, types.float64, width
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        kinds = [signature.args[a] for a in (0, 2, 4, 5)]
        row = _Row(context, builder, kinds, [arguments[a] for a in (0, 2, 4, 5)], signature.args[9].count)
        total, source, index, out = row.data
        own, base, offset, count, scale = (arguments[a] for a in (1, 3, 6, 7, 8))
        held = row.load(row.place(total, own))
        held = builder.fptrunc(held, row.vector) if row.wide != row.vector else held
        kind = {4: "f32", 8: "f64"}[row.size]
        reduce = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(row.number, [row.number, row.vector]),
            f"llvm.vector.reduce.fadd.v{row.lanes}{kind}",
        )
        double = ir.DoubleType()
        with cgutils.for_range(builder, count, intp=count.type) as loop:
            sample = builder.zext(builder.load(builder.gep(index, [loop.index])), count.type)
            vector = row.load(row.place(source, builder.add(base, sample)))
            product = builder.fmul(vector, held)
            # In a fixed order, by halves: a sum from the left would wait for every term.
            sum_ = builder.call(reduce, [ir.Constant(row.number, -0.0), product], fastmath=["reassoc"])
            sum_ = sum_ if row.size == 8 else builder.fpext(sum_, double)
            place = builder.gep(out, [builder.add(offset, sample)])
            builder.store(builder.fadd(builder.load(place), builder.fmul(sum_, scale)), place)
        return context.get_dummy_value()

    return signature, generate


_collect: Callable[..., None] = intrinsic(_collect_code)
_spread: Callable[..., None] = intrinsic(_spread_code)


@borrowing
def _fired_in_tile(rows, row, samples, first, last, cursor, out):
    """Write the samples first ≤ i < last that `row` fires on into out, counted from `first`; return how many.

    Parameters
    ----------
    cursor : (rows,) int64, entries of every index row that lie before `first`; moved on
    """
    counts, start, words = rows
    limit = row_limit(words, samples)
    k = np.int64(counts[row])
    base = np.int64(start[row])
    found = 0
    if k <= limit:
        p = cursor[row]
        while p < k and np.int64(words[base + p]) < last:
            out[found] = np.int64(words[base + p]) - first
            found += 1
            p += 1
        cursor[row] = p
        return found
    width = 8 * words.itemsize
    for w in range(first // width, (last + width - 1) // width):
        bits = np.uint64(words[base + w])
        while bits != 0:
            out[found] = width * w + lowest_bit(bits) - first
            found += 1
            bits = without_lowest_bit(bits)
    return found


@borrowing
def _differing_in_tile(twins, row, first, last, cursor, gained, lost):
    """Do as `_fired_in_tile` for the samples that the second neuron of `row` fires on alone, and does not fire on."""
    more = less = 0
    p = cursor[row]
    while p < twins.start[row + 1] and twins.samples[p] < last:
        if twins.gained[p]:
            gained[more] = twins.samples[p] - first
            more += 1
        else:
            lost[less] = twins.samples[p] - first
            less += 1
        p += 1
    cursor[row] = p
    return more, less


@njit(nogil=True, cache=True)
def apply_rows(twins, blocks, vectors, negated, tile, width, sums, differences, out):
    """Add Σ_r w_r D_r X (Xᵀ D_r v) to out for every vector, over both neurons of every row.

    Parameters
    ----------
    twins : Twins
    blocks : X from `blocks_of`
    vectors, negated : (c, n) of the dtype of blocks, and −1 times that
    tile, width : from `tile_of` and `width_of`
    sums : (c · rows · lanes,) of the dtype of blocks or float64, overwritten
    differences : as sums, or empty where no row differs from its second neuron
    out : (c, n) float64
    """
    rows = twins.rows
    total = rows.counts.size
    count, n = vectors.shape
    lanes = blocks.shape[2]
    differ = differences.size > 0
    cursor = np.empty(total, np.int64)
    beside = np.empty(total, np.int64)
    fired = np.empty(min(tile, n) + _WORD, np.int32)
    gained = np.empty(fired.size, np.int32)
    lost = np.empty(fired.size, np.int32)
    flat, values, opposite, results = blocks.reshape(-1), vectors.reshape(-1), negated.reshape(-1), out.reshape(-1)
    for b in range(blocks.shape[0]):
        sums[:] = 0
        differences[:] = 0
        cursor[:] = 0
        beside[:] = twins.start[:-1]
        for first in range(0, n, tile):
            last = min(first + tile, n)
            for r in range(total):
                k = _fired_in_tile(rows, r, n, first, last, cursor, fired)
                if k > 0:
                    for q in range(count):
                        _collect(
                            sums, q * total + r, flat, b * n + first, fired, values, q * n + first, k, width
                        )  # fmt: skip
                if differ and beside[r] < twins.start[r + 1]:
                    more, less = _differing_in_tile(twins, r, first, last, beside, gained, lost)
                    for q in range(count):
                        own = q * total + r
                        _collect(differences, own, flat, b * n + first, gained, values, q * n + first, more, width)
                        _collect(differences, own, flat, b * n + first, lost, opposite, q * n + first, less, width)
        for q in range(count):
            for r in range(total):
                for p in range((q * total + r) * lanes, (q * total + r + 1) * lanes):
                    if differ:
                        second = twins.others[r] * (sums[p] + differences[p])
                        differences[p] = second
                        sums[p] = twins.weights[r] * sums[p] + second
                    else:
                        sums[p] = (twins.weights[r] + twins.others[r]) * sums[p]
        cursor[:] = 0
        beside[:] = twins.start[:-1]
        for first in range(0, n, tile):
            last = min(first + tile, n)
            for r in range(total):
                k = _fired_in_tile(rows, r, n, first, last, cursor, fired)
                if k > 0:
                    for q in range(count):
                        _spread(
                            sums, q * total + r, flat, b * n + first, fired, results, q * n + first, k, 1.0, width
                        )  # fmt: skip
                if differ and beside[r] < twins.start[r + 1]:
                    more, less = _differing_in_tile(twins, r, first, last, beside, gained, lost)
                    for q in range(count):
                        own = q * total + r
                        at = q * n + first
                        _spread(differences, own, flat, b * n + first, gained, results, at, more, 1.0, width)
                        _spread(differences, own, flat, b * n + first, lost, results, at, less, -1.0, width)


@njit(nogil=True, cache=True)
def add_weights(twins, out):
    """Add w_r to out_i for every sample i that a neuron r fires on: diag Sᵀ diag(w) S."""
    rows = twins.rows
    fired = np.empty(out.size + 1, np.int32)
    for r in range(rows.counts.size):
        k = fired_samples(FireRows(rows.counts, rows.start, rows.words), r, out.size, fired)
        both = twins.weights[r] + twins.others[r]
        for p in range(k):
            out[fired[p]] += both
        for p in range(twins.start[r], twins.start[r + 1]):
            out[twins.samples[p]] += twins.others[r] if twins.gained[p] else -twins.others[r]


@njit(nogil=True, cache=True)
def add_columns(twins, place, within, out):
    """Add columns of Sᵀ diag(w) S, one below the other: neurons fire on samples in ascending order.

    Parameters
    ----------
    twins : Twins
    place : (n,) int32, the column of out that a sample has, or −1
    within : True for the rows of samples with a column alone: out is square
    out : (columns, n or columns) float64, added to
    """
    n = place.size
    rows = twins.rows
    fired = np.empty(n + 1, np.int32)
    chosen = np.empty(n + 1, np.int32)
    for r in range(rows.counts.size):
        k = fired_samples(FireRows(rows.counts, rows.start, rows.words), r, n, fired)
        first = twins.start[r]
        last = twins.start[r + 1]
        found = 0
        for p in range(k):
            column = place[fired[p]]
            chosen[found] = column
            found += column >= 0
        other = twins.others[r]
        both = twins.weights[r] + other
        if within:
            for p in range(found):
                for q in range(found):
                    out[chosen[p], chosen[q]] += both
            for p in range(first, last):
                column = place[twins.samples[p]]
                if column < 0:
                    continue
                weight = other if twins.gained[p] else -other
                for q in range(found):
                    out[column, chosen[q]] += weight
                    out[chosen[q], column] += weight
                _add_differences(twins, place, True, first, last, weight, out[column])
            continue
        for q in range(found):
            column = out[chosen[q]]
            for p in range(k):
                column[fired[p]] += both
            _add_differences(twins, place, False, first, last, other, column)
        for p in range(first, last):
            if place[twins.samples[p]] < 0:
                continue
            column = out[place[twins.samples[p]]]
            weight = other if twins.gained[p] else -other
            for q in range(k):
                column[fired[q]] += weight
            _add_differences(twins, place, False, first, last, weight, column)


@borrowing
def _add_differences(twins, place, within, first, last, weight, column):
    """Add weight · E to a column of Sᵀ diag(w) S."""
    for p in range(first, last):
        sample = np.int64(twins.samples[p])
        row = place[sample] if within else sample
        if row >= 0:
            column[row] += weight if twins.gained[p] else -weight
