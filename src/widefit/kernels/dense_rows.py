"""Numba kernels of H v for neurons that fire on a good part of all samples: products of whole tiles behind a mask.

From an eighth of the samples on that is cheaper than walks over those that fire. Sums Σ_i v_i x_i of eight neurons, and
eight products with 32 samples, stay in the registers of the processor; bits of fire rows become masks of vectors.
Kernels are serial and release the GIL, see `widefit.kernels.fire_rows`.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from widefit.kernels.bits import count_bits
from widefit.kernels.products import aligned_zeros

# Samples of a word, and of a panel of X.
WORD = 32
# Neurons at work at a time.
GROUP = 8
# Words of a tile: what eight neurons make of it stays in the first-level cache.
_TILE = 16
# Bytes of a step of columns, as in `widefit.kernels.fire_lists`, and steps whose sums the registers hold.
_STEP = 64
_STEPS = 2


def panels_of(inputs: np.ndarray) -> np.ndarray:
    """Return X (n, d) by panels of samples, (panels, d, 32), zero-padded."""
    samples, features = inputs.shape
    panels = aligned_zeros((-(-samples // WORD), features, WORD), inputs.dtype)
    whole = samples // WORD
    panels[:whole] = inputs[: whole * WORD].reshape(whole, WORD, features).swapaxes(1, 2)
    if whole < len(panels):
        panels[whole, :, : samples - whole * WORD] = inputs[whole * WORD :].T
    return panels


def _data(context, builder, signature, arguments, places):
    return [context.make_array(signature.args[p])(context, builder, arguments[p]).data for p in places]


def _at(builder, data, place, vector, align):
    """A vector of an array from some place on."""
    pointer = builder.bitcast(builder.gep(data, [place]), vector.as_pointer())
    loaded = builder.load(pointer)
    loaded.align = align
    return loaded


def _store(builder, found, data, place, align):
    pointer = builder.bitcast(builder.gep(data, [place]), found.type.as_pointer())
    builder.store(found, pointer).align = align


def _everywhere(builder, number, vector):
    lane = ir.IntType(32)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, lane(0))
    zeros = ir.Constant(ir.VectorType(lane, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _fma(builder, vector, kind):
    name = f"llvm.fma.v{vector.count}f{kind.bitwidth}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)


def _expand_code(typing, words, word, values, first, out, place):
    """Write values[first + b] where bit b of words[word] is set and 0 elsewhere to out[place + b]."""
    signature = types.void(words, types.intp, values, types.intp, out, types.intp)

    def generate(context, builder, signature, arguments):
        mask, source, target = _data(context, builder, signature, arguments, (0, 2, 4))
        kind = signature.args[4].dtype
        vector = ir.VectorType(context.get_data_type(kind), WORD)
        align = kind.bitwidth // 8
        bits = builder.load(builder.gep(mask, [arguments[1]]))
        chosen = builder.bitcast(bits, ir.VectorType(ir.IntType(1), WORD))
        numbers = _at(builder, source, arguments[3], vector, align)
        _store(
            builder, builder.select(chosen, numbers, ir.Constant(vector, None)), target, arguments[5], align
        )  # fmt: skip
        return context.get_dummy_value()

    return signature, generate


def _collect_code(typing, expanded, length, rows, base, stride, count, sums, place, pitch, width):
    """Add Σ_{i < count} expanded[r length + i] rows[base + i stride :] to sums[place + r pitch :], r < 8, by strips."""
    signature = types.void(
        expanded, types.intp, rows, types.intp, types.intp, types.intp, sums, types.intp, types.intp, width
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        factors, source, total = _data(context, builder, signature, arguments, (0, 2, 6))
        _, length, _, base, stride, count, _, place, pitch, _ = arguments
        kind, exact = signature.args[2].dtype, signature.args[6].dtype
        align = kind.bitwidth // 8
        lanes = min(_STEPS, signature.args[9].count) * _STEP // align
        vector = ir.VectorType(context.get_data_type(kind), lanes)
        wide = ir.VectorType(context.get_data_type(exact), lanes)
        fma = _fma(builder, vector, kind)
        held = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(GROUP)]
        for one in held:
            builder.store(ir.Constant(vector, None), one)
        with cgutils.for_range(builder, count, intp=count.type) as loop:
            row = _at(builder, source, builder.add(base, builder.mul(loop.index, stride)), vector, align)
            for r, one in enumerate(held):
                where = builder.add(builder.mul(length, length.type(r)), loop.index)
                factor = _everywhere(builder, builder.load(builder.gep(factors, [where])), vector)
                builder.store(builder.call(fma, [factor, row, builder.load(one)]), one)
        for r, one in enumerate(held):
            where = builder.add(place, builder.mul(pitch, pitch.type(r)))
            found = builder.load(one)
            found = found if exact == kind else builder.fpext(found, wide)
            before = _at(builder, total, where, wide, exact.bitwidth // 8)
            _store(builder, builder.fadd(before, found), total, where, exact.bitwidth // 8)
        return context.get_dummy_value()

    return signature, generate


def _spread_code(typing, sums, place, pitch, panels, base, features, words, starts, row, word, out, at):
    """Add ⟨sums[place + r pitch :], x_i⟩ to out[at + i] where row r fires, over r < 8, for the samples i of a panel."""
    signature = types.void(
        sums, types.intp, types.intp, panels, types.intp, types.intp, words, starts, types.intp, types.intp, out,
        types.intp,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        total, source, bits, begin, target = _data(context, builder, signature, arguments, (0, 3, 6, 7, 10))
        _, place, pitch, _, base, features, _, _, row, word, _, at = arguments
        kind = signature.args[3].dtype
        align = kind.bitwidth // 8
        vector = ir.VectorType(context.get_data_type(kind), WORD)
        fma = _fma(builder, vector, kind)
        held = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(GROUP)]
        for one in held:
            builder.store(ir.Constant(vector, None), one)
        with cgutils.for_range(builder, features, intp=features.type) as loop:
            own = _at(
                builder, source, builder.add(base, builder.mul(loop.index, features.type(WORD))), vector, align
            )  # fmt: skip
            for r, one in enumerate(held):
                where = builder.add(builder.add(place, builder.mul(pitch, pitch.type(r))), loop.index)
                factor = _everywhere(builder, builder.load(builder.gep(total, [where])), vector)
                builder.store(builder.call(fma, [factor, own, builder.load(one)]), one)
        found = _at(builder, target, at, vector, align)
        for r, one in enumerate(held):
            first = builder.load(builder.gep(begin, [builder.add(row, row.type(r))]))
            first = first if first.type == word.type else builder.sext(first, word.type)
            mask = builder.load(builder.gep(bits, [builder.add(first, word)]))
            chosen = builder.bitcast(mask, ir.VectorType(ir.IntType(1), WORD))
            found = builder.fadd(found, builder.select(chosen, builder.load(one), ir.Constant(vector, None)))
        _store(builder, found, target, at, align)
        return context.get_dummy_value()

    return signature, generate


_expand: Callable[..., None] = intrinsic(_expand_code)
_collect: Callable[..., None] = intrinsic(_collect_code)
_spread: Callable[..., None] = intrinsic(_spread_code)


@njit(nogil=True, cache=True)
def collect(start, words, blocks, vector, width, sums):
    """Add Σ_i v_i x_i over the samples on which each row fires.

    Parameters
    ----------
    start : (rows,) int64, first word of each row, a multiple of `GROUP` of them
    words : uint32, ⌈n/32⌉ a row
    blocks : X from `widefit.kernels.fire_lists.blocks_of`
    vector : v, zero-padded to whole words
    width : as `widefit.kernels.fire_lists.width_of` gives it
    sums : (rows, blocks · lanes) of the dtype of blocks or float64
    """
    count, n, lanes = blocks.shape
    strip = min(_STEPS * _STEP // blocks.itemsize, lanes)
    length = _TILE * WORD
    expanded = np.empty(GROUP * length, blocks.dtype)
    flat, total = blocks.reshape(-1), sums.reshape(-1)
    pitch = sums.shape[1]
    for first in range(0, n, length):
        size = min(length, n - first)
        # A block of columns of the tile stays in the second-level cache for all neurons.
        for b in range(count):
            for group in range(0, start.size, GROUP):
                for r in range(GROUP):
                    base = start[group + r] + first // WORD
                    for w in range((size + WORD - 1) // WORD):
                        _expand(words, base + w, vector, first + w * WORD, expanded, r * length + w * WORD)
                for c in range(0, lanes, strip):
                    _collect(
                        expanded, length, flat, (b * n + first) * lanes + c, lanes, size, total,
                        group * pitch + b * lanes + c, pitch, width,
                    )  # fmt: skip


@njit(nogil=True, cache=True)
def spread(start, words, panels, sums, out):
    """Add ⟨sums_r, x_i⟩ to out_i over the rows r that fire on sample i.

    Parameters
    ----------
    start, words : as in `collect`
    panels : X from `panels_of`
    sums : (rows, ≥ d) of the dtype of panels
    out : (n,) float64
    """
    count, features, _ = panels.shape
    total = np.empty(_TILE * WORD, panels.dtype)
    flat, numbers = panels.reshape(-1), sums.reshape(-1)
    pitch = sums.shape[1]
    for first in range(0, count, _TILE):
        size = min(_TILE, count - first)
        total[:] = 0
        for w in range(size):
            for group in range(0, start.size, GROUP):
                _spread(
                    numbers, group * pitch, pitch, flat, (first + w) * features * WORD, features, words, start, group,
                    first + w, total, w * WORD,
                )  # fmt: skip
        for i in range(min(size * WORD, out.size - first * WORD)):
            out[first * WORD + i] += total[i]


@njit(nogil=True, cache=True)
def turn(start, words, first, out):
    """Write bit r of sample first + i to bit r % 64 of out[r // 64, i], for 64 samples from a multiple of 64 on.

    Parameters
    ----------
    start, words : rows of ⌈n/32⌉ words; those of samples beyond n mean nothing
    first : the first sample
    out : (⌈rows/64⌉, 64) uint64
    """
    block = np.empty(64, np.uint64)
    low = first // WORD
    for group in range(out.shape[0]):
        rows = min(64, start.size - 64 * group)
        for r in range(rows):
            base = start[64 * group + r] + low
            block[r] = np.uint64(words[base])
            # The last word of a row may be the only one of these 64 samples.
            if base + 1 < words.size:
                block[r] |= np.uint64(words[base + 1]) << np.uint64(32)
        block[rows:] = 0
        _transpose(block)
        out[group] = block


@njit(nogil=True, cache=True)
def _transpose(block):
    """Transpose 64 × 64 bits in place (Warren, Hacker's Delight 7-3, with bit 0 first)."""
    width = np.uint64(32)
    mask = np.uint64(0x00000000FFFFFFFF)
    while width != 0:
        k = np.uint64(0)
        while k < 64:
            moved = ((block[k] >> width) ^ block[k | width]) & mask
            block[k] ^= moved << width
            block[k | width] ^= moved
            k = ((k | width) + np.uint64(1)) & ~width
        width >>= np.uint64(1)
        mask ^= mask << width


@njit(nogil=True, cache=True)
def rows_that_fire(start, words, chosen, out):
    """Set bit r % 64 of out[q, r // 64] where row r fires on sample chosen_q; see `turn`."""
    for q in range(chosen.size):
        i = np.int64(chosen[q])
        for r in range(start.size):
            bit = (words[start[r] + (i >> 5)] >> np.uint32(i & 31)) & np.uint32(1)
            out[q, r >> 6] |= np.uint64(bit) << np.uint64(r & 63)


@njit(nogil=True, cache=True)
def count_together(start, words, chosen, weight, first, last, out):
    """Add weight times the rows that fire on both samples to out[q, i] for the samples i of a range and chosen_q.

    Parameters
    ----------
    start, words : as in `turn`
    chosen : (columns, ⌈rows/64⌉) uint64, the rows that fire on each chosen sample
    weight : scalar
    first, last : the range; it begins at a multiple of 64
    out : (columns, n) float64
    """
    groups = chosen.shape[1]
    own = np.empty((groups, 64), np.uint64)
    found = np.empty(64, np.int64)
    for low in range(first, last, 64):
        turn(start, words, low, own)
        size = min(64, last - low)
        for q in range(chosen.shape[0]):
            found[:] = 0
            for g in range(groups):
                bits = chosen[q, g]
                for i in range(64):
                    found[i] += count_bits(own[g, i] & bits)
            for i in range(size):
                out[q, low + i] += weight * found[i]
