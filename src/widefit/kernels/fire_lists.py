"""Numba kernels of H v for a two-layer network, from fire rows and samples alone: nothing of size n × n.

H v = Σ_r w_r D_r X (Xᵀ D_r v) with D_r the samples that neuron r fires on: sums of rows of X, and products of these
sums with the same rows, 4 d operations a pair that fires. Columns of X are cut into blocks as wide as a few registers,
and samples into tiles whose rows of a block stay in the second-level cache. Kernels are serial and release the GIL, see
`widefit.kernels.fire_rows`.
"""

from collections.abc import Callable

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
    """Pointers, and vectors as wide as a block, for the two intrinsics below."""

    def __init__(self, context, builder, kinds, arguments, steps: int):
        self.builder = builder
        self.number = context.get_data_type(kinds[0].dtype)
        self.size = kinds[0].dtype.bitwidth // 8
        self.lanes = steps * _STEP // self.size
        self.vector = ir.VectorType(self.number, self.lanes)
        self.data = [
            context.make_array(kind)(context, builder, argument).data
            for kind, argument in zip(kinds, arguments, strict=True)
        ]

    def place(self, data, row):
        """Pointer to a row of so many lanes, as a vector."""
        first = self.builder.gep(data, [self.builder.mul(row, row.type(self.lanes))])
        return self.builder.bitcast(first, self.vector.as_pointer())

    def load(self, pointer):
        loaded = self.builder.load(pointer)
        loaded.align = self.size
        return loaded


def _collect_code(typing, sums, own, rows, base, index, values, offset, count, width):
    """Add values[offset + index[p]] rows[base + index[p]] over p < count to sums[own], all of them flat arrays.

    The sums stay in registers from the first p to the last.
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
        builder.store(row.load(place), held)
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
        builder.store(builder.load(held), place).align = row.size
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


@njit(nogil=True, cache=True)
def apply_rows(rows, weights, blocks, vectors, tile, width, out):
    """Add Σ_r weights_r D_r X (Xᵀ D_r v) to out for every vector.

    Parameters
    ----------
    rows : fire rows
    weights : (rows,) float64
    blocks : X from `blocks_of`
    vectors : (c, n) of the dtype of blocks
    tile, width : from `tile_of` and `width_of`
    out : (c, n) float64
    """
    total = rows.counts.size
    count, n = vectors.shape
    lanes = blocks.shape[2]
    sums = np.empty(count * total * lanes, blocks.dtype)
    cursor = np.empty(total, np.int64)
    fired = np.empty(min(tile, n) + _WORD, np.int32)
    flat, values, results = blocks.reshape(-1), vectors.reshape(-1), out.reshape(-1)
    for b in range(blocks.shape[0]):
        sums[:] = 0
        cursor[:] = 0
        for first in range(0, n, tile):
            last = min(first + tile, n)
            for r in range(total):
                k = _fired_in_tile(rows, r, n, first, last, cursor, fired)
                if k > 0:
                    for q in range(count):
                        _collect(
                            sums, q * total + r, flat, b * n + first, fired, values, q * n + first, k, width
                        )  # fmt: skip
        cursor[:] = 0
        for first in range(0, n, tile):
            last = min(first + tile, n)
            for r in range(total):
                k = _fired_in_tile(rows, r, n, first, last, cursor, fired)
                if k > 0:
                    for q in range(count):
                        _spread(
                            sums, q * total + r, flat, b * n + first, fired, results, q * n + first, k,
                            weights[r], width,
                        )  # fmt: skip


@njit(nogil=True, cache=True)
def add_weights(rows, weights, out):
    """Add weights_r to out_i for every sample i that a row r fires on: diag Sᵀ diag(weights) S."""
    fired = np.empty(out.size + 1, np.int32)
    for r in range(rows.counts.size):
        k = fired_samples(FireRows(rows.counts, rows.start, rows.words), r, out.size, fired)
        for p in range(k):
            out[fired[p]] += weights[r]


@njit(nogil=True, cache=True)
def add_columns(rows, weights, place, within, out):
    """Add columns of Sᵀ diag(weights) S, one below the other: neurons fire on samples in ascending order.

    Parameters
    ----------
    rows, weights : fire rows, and a weight each
    place : (n,) int32, the column of out that a sample has, or −1
    within : True for the rows of samples with a column alone: out is square
    out : (columns, n or columns) float64, added to
    """
    n = place.size
    fired = np.empty(n + 1, np.int32)
    chosen = np.empty(n + 1, np.int32)
    for r in range(rows.counts.size):
        k = fired_samples(FireRows(rows.counts, rows.start, rows.words), r, n, fired)
        found = 0
        for p in range(k):
            column = place[fired[p]]
            chosen[found] = column
            found += column >= 0
        if found == 0:
            continue
        weight = weights[r]
        if within:
            for p in range(found):
                for q in range(found):
                    out[chosen[p], chosen[q]] += weight
        else:
            for q in range(found):
                column = chosen[q]
                for p in range(k):
                    out[column, fired[p]] += weight
