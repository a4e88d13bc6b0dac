"""Products W Xᵀ of a few dozen neurons at a time, and masks of what exceeds a threshold in them (this project).

A pass over all neurons needs a pre-activation once: to see whether it is near the threshold. A library's matrix product
writes it to memory first. Here tiles of neurons × samples are computed in the registers of the processor and stay in
the second-level cache until 64 of them at a time have been compared; with so few features a product is also faster
this way (d = 64: 2.2 times OpenBLAS on an AMD Zen 5).
"""

from collections.abc import Callable

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Neurons whose pre-activations are held at a time.
BLOCK = 64
# Samples that a mask tells about.
_WORD = 64
_CACHE_LINE = 64


def _tile() -> tuple[int, int, int]:
    """Neurons, vectors and bytes a vector of a tile: as many sums as the registers of the processor hold."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 8, 3, 64
    if features.get("avx2"):
        return 4, 3, 32
    return 8, 2, 16


_ROWS, _VECTORS, _BYTES = _tile()


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin at a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _CACHE_LINE, np.uint8)
    first = -memory.ctypes.data % _CACHE_LINE
    return memory[first : first + size].view(dtype).reshape(shape)


def panels_of(inputs: np.ndarray) -> np.ndarray:
    """X (n, d) as tiles read it: panels of neighbouring samples, (panels, d, samples of a panel), zeros at the end."""
    samples, features = inputs.shape
    width = _VECTORS * _BYTES // inputs.itemsize
    panels = aligned_zeros((-(-samples // width), features, width), inputs.dtype)
    for panel in range(panels.shape[0]):
        own = inputs[panel * width : (panel + 1) * width]
        panels[panel, :, : own.shape[0]] = own.T
    return panels


def block_for(panels: np.ndarray) -> np.ndarray:
    """Room for the pre-activations of `BLOCK` neurons, a whole number of masks each."""
    samples = panels.shape[0] * panels.shape[2]
    return aligned_zeros((BLOCK, -(-samples // _WORD) * _WORD), panels.dtype)


def _fill_tile_code(typing, weights, row, panels, panel, z):
    """z[row + r, own samples] = weights[row + r] · panels[panel], for as many rows r as a tile has."""

    def generate(context, builder, signature, arguments):
        data = [context.make_array(signature.args[p])(context, builder, arguments[p]) for p in (0, 2, 4)]
        strides = [cgutils.unpack_tuple(builder, array.strides) for array in data]
        size = context.get_constant(types.intp, signature.args[0].dtype.bitwidth // 8)
        index, number = ir.IntType(64), context.get_data_type(signature.args[0].dtype)
        lanes = _BYTES * 8 // signature.args[0].dtype.bitwidth
        vector, align = ir.VectorType(number, lanes), signature.args[0].dtype.bitwidth // 8
        undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
        fma = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector] * 3),
            f"llvm.fma.v{lanes}f{signature.args[0].dtype.bitwidth}",
        )

        def vector_at(base, offset):
            return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

        def row_of(array, own, r):
            offset = builder.mul(builder.add(arguments[1], index(r)), builder.sdiv(own[0], size))
            return builder.gep(array.data, [offset])

        weight_rows = [row_of(data[0], strides[0], r) for r in range(_ROWS)]
        source = builder.gep(data[1].data, [builder.mul(arguments[3], builder.sdiv(strides[1][0], size))])
        sums = [
            [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(_VECTORS)]
            for _ in range(_ROWS)
        ]
        features = cgutils.unpack_tuple(builder, data[0].shape)[1]
        with cgutils.for_range(builder, features) as loop:
            offset = builder.mul(loop.index, index(_VECTORS * lanes))
            samples = []
            for v in range(_VECTORS):
                loaded = builder.load(vector_at(source, builder.add(offset, index(v * lanes))))
                loaded.align = align
                samples.append(loaded)
            for r in range(_ROWS):
                one = builder.insert_element(undefined, builder.load(builder.gep(weight_rows[r], [loop.index])), first)
                all_of_it = builder.shuffle_vector(one, undefined, everywhere)
                for v in range(_VECTORS):
                    total = builder.call(fma, [all_of_it, samples[v], builder.load(sums[r][v])])
                    builder.store(total, sums[r][v])
        begin = builder.mul(arguments[3], index(_VECTORS * lanes))
        for r in range(_ROWS):
            target = row_of(data[2], strides[2], r)
            for v in range(_VECTORS):
                stored = builder.store(
                    builder.load(sums[r][v]), vector_at(target, builder.add(begin, index(v * lanes)))
                )
                stored.align = align
        return context.get_dummy_value()

    return types.void(weights, types.intp, panels, types.intp, z), generate


def _at_least_code(typing, row, first, cut):
    """Bit i of the uint64 is set when row[first + i] ≥ cut, for 64 numbers of a contiguous row; not for NaN."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        vector = ir.VectorType(context.get_data_type(signature.args[0].dtype), _WORD)
        loaded = builder.load(builder.bitcast(builder.gep(data, [arguments[1]]), vector.as_pointer()))
        loaded.align = signature.args[0].dtype.bitwidth // 8
        undefined = ir.Constant(vector, ir.Undefined)
        one = builder.insert_element(undefined, arguments[2], ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _WORD), None)
        compared = builder.fcmp_ordered(">=", loaded, builder.shuffle_vector(one, undefined, everywhere))
        return builder.bitcast(compared, ir.IntType(_WORD))

    return types.uint64(row, types.intp, row.dtype), generate


def _bits_set_code(typing, word):
    """How many bits of a uint64 are set: one instruction."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


def _lowest_bit_code(typing, word):
    """Place of the lowest bit that is set in a uint64 other than 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


_fill_tile: Callable = intrinsic(_fill_tile_code)
at_least: Callable = intrinsic(_at_least_code)
bits_set: Callable = intrinsic(_bits_set_code)
lowest_bit: Callable = intrinsic(_lowest_bit_code)


@njit(nogil=True, cache=True)
def whole_tiles(rows):
    """Rows rounded up to whole tiles."""
    return (rows + _ROWS - 1) // _ROWS * _ROWS


@njit(nogil=True, cache=True)
def multiply(weights, panels, z):
    """z[r, i] = ⟨weights_r, x_i⟩ for up to `BLOCK` rows, a multiple of those of a tile.

    Parameters
    ----------
    weights : (rows, d) in the dtype of the panels
    panels : from `panels_of`
    z : from `block_for`
    """
    for panel in range(panels.shape[0]):
        for row in range(0, weights.shape[0], _ROWS):
            _fill_tile(weights, row, panels, panel, z)


@njit(nogil=True, cache=True)
def find_at_least(row, cut, n, bits):
    """bits[w] = which of row[64 w:64 w + 64] are ≥ cut, of the first n numbers; returns how many."""
    found = 0
    words = (n + 63) // 64
    for w in range(words):
        bits[w] = at_least(row, 64 * w, cut)
    if n % 64 != 0:
        bits[words - 1] &= (np.uint64(1) << np.uint64(n % 64)) - np.uint64(1)
    for w in range(words):
        found += bits_set(bits[w])
    return found


@njit(nogil=True, cache=True)
def places(bits, words, out):
    """Ascending places of the bits that are set; returns how many."""
    found = 0
    for w in range(words):
        word = bits[w]
        while word != 0:
            out[found] = 64 * w + lowest_bit(word)
            found += 1
            word &= word - np.uint64(1)
    return found
