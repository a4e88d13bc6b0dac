"""Products W Xᵀ of a few dozen neurons at a time, and masks of what exceeds a threshold in them (this project).

A pass over all neurons needs a pre-activation once: to see whether it is near the threshold. A library's matrix product
writes it to memory first. Here tiles of neurons × samples are computed in the registers of the processor and stay in
the second-level cache until 64 of them at a time have been compared; with so few features a product is also faster
this way (d = 64: 2.2 times OpenBLAS on an AMD Zen 5). Where int16 tells enough, an instruction makes twice as many
products: a pass then computes in float64 only what is nearer to the threshold than rounding can tell.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from widefit.kernels.bits import count_bits

# Neurons whose pre-activations are held at a time.
BLOCK = 64
# Samples of a mask.
_WORD = 64
_CACHE_LINE = 64


def _tile() -> tuple[int, int, int]:
    """Return neurons, vectors and bytes of a vector of a tile: as many sums as the registers of the processor hold."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 8, 3, 64
    if features.get("avx2"):
        return 4, 3, 32
    return 8, 2, 16


_ROWS, _VECTORS, _BYTES = _tile()
# True where a vector instruction adds up products of int16, two to an int32: twice as many as of float32.
INTEGERS = any(binding.get_host_cpu_features().get(name) for name in ("avx512vnni", "avxvnni"))


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Allocate zeros that begin at a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _CACHE_LINE, np.uint8)
    first = -memory.ctypes.data % _CACHE_LINE
    return memory[first : first + size].view(dtype).reshape(shape)


def panels_of(inputs: np.ndarray) -> np.ndarray:
    """Return X (n, d) as tiles read it: panels of neighboring samples, (panels, d, samples of a panel), zero-padded.

    Of int16 the two features that are multiplied at once stand together: (panels, d / 2, 2 · samples of a panel).
    """
    samples, features = inputs.shape
    together = together_of(inputs.dtype)
    width = _VECTORS * _BYTES // (together * inputs.itemsize)
    panels = aligned_zeros((-(-samples // width), -(-features // together), width, together), inputs.dtype)
    padded = np.pad(inputs, [(0, 0), (0, -features % together)]).reshape(samples, -1, together)
    for first in range(0, samples, width):
        own = padded[first : first + width]
        panels[first // width, :, : own.shape[0]] = own.swapaxes(0, 1)
    return panels.reshape(*panels.shape[:2], -1)


def together_of(dtype: np.dtype) -> int:
    """Return the features that a vector instruction multiplies at once, beside each other in a lane."""
    return 2 if dtype == np.int16 else 1


def block_for(panels: np.ndarray) -> np.ndarray:
    """Allocate room for the products of `BLOCK` neurons, a whole number of masks each: int32 where X is int16."""
    samples = panels.shape[0] * panels.shape[2] // together_of(panels.dtype)
    dtype = np.dtype(np.int32) if panels.dtype == np.int16 else panels.dtype
    return aligned_zeros((BLOCK, -(-samples // _WORD) * _WORD), dtype)


def _multiply_add(builder, lanes, kind):
    """Return the instruction sum + samples · weight on vectors of float32, float64 or, of pairs of int16, int32."""
    if isinstance(kind, types.Integer):
        vector, name = ir.VectorType(ir.IntType(32), lanes), f"llvm.x86.avx512.vpdpwssd.{32 * lanes}"
    else:
        number = ir.FloatType() if kind.bitwidth == 32 else ir.DoubleType()
        vector, name = ir.VectorType(number, lanes), f"llvm.fma.v{lanes}f{kind.bitwidth}"
    called = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)

    def multiply_add(total, samples, weight):
        summed_first = isinstance(kind, types.Integer)
        return builder.call(called, (total, samples, weight) if summed_first else (weight, samples, total))

    return vector, multiply_add


def _fill_tile_code(typing, weights, row, panels, panel, z):
    """Write z[row + r, own samples] = weights[row + r] · panels[panel], for as many rows r as a tile has.

    A lane holds a number of z; a step multiplies what fits into it, one float or two int16.
    """

    def generate(context, builder, signature, arguments):
        data = [context.make_array(signature.args[p])(context, builder, arguments[p]) for p in (0, 2, 4)]
        strides = [cgutils.unpack_tuple(builder, array.strides) for array in data]
        kind, index = signature.args[4].dtype, ir.IntType(64)
        align = kind.bitwidth // 8
        lanes = _BYTES // align
        vector, multiply_add = _multiply_add(builder, lanes, kind)
        lane, byte = vector.element, ir.IntType(8).as_pointer()
        undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)

        def at(base, offset, of):
            return builder.bitcast(builder.gep(base, [offset]), of.as_pointer())

        def bytes_of(array, stride, number):
            return builder.gep(builder.bitcast(array.data, byte), [builder.mul(number, stride)])

        rows = [builder.add(arguments[1], index(r)) for r in range(_ROWS)]
        weight_rows = [bytes_of(data[0], strides[0][0], row) for row in rows]
        source = bytes_of(data[1], strides[1][0], arguments[3])
        sums = [
            [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(_VECTORS)]
            for _ in range(_ROWS)
        ]
        steps = cgutils.unpack_tuple(builder, data[1].shape)[1]
        with cgutils.for_range(builder, steps) as loop:
            offset, samples = builder.mul(loop.index, index(_VECTORS * _BYTES)), []
            for v in range(_VECTORS):
                loaded = builder.load(at(source, builder.add(offset, index(v * _BYTES)), vector))
                loaded.align = align
                samples.append(loaded)
            place = builder.mul(loop.index, index(align))
            for r in range(_ROWS):
                weight = builder.load(at(weight_rows[r], place, lane))
                one = builder.insert_element(undefined, weight, first)
                all_of_it = builder.shuffle_vector(one, undefined, everywhere)
                for v in range(_VECTORS):
                    builder.store(multiply_add(builder.load(sums[r][v]), samples[v], all_of_it), sums[r][v])
        begin = builder.mul(arguments[3], index(_VECTORS * _BYTES))
        for r in range(_ROWS):
            target = bytes_of(data[2], strides[2][0], rows[r])
            for v in range(_VECTORS):
                place = at(target, builder.add(begin, index(v * _BYTES)), vector)
                builder.store(builder.load(sums[r][v]), place).align = align
        return context.get_dummy_value()

    return types.void(weights, types.intp, panels, types.intp, z), generate


def _at_least_code(typing, row, first, cut):
    """Return a uint64 with bit i set where row[first + i] ≥ cut, for 64 numbers of a contiguous row; not for NaN."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        vector = ir.VectorType(context.get_data_type(signature.args[0].dtype), _WORD)
        loaded = builder.load(builder.bitcast(builder.gep(data, [arguments[1]]), vector.as_pointer()))
        loaded.align = signature.args[0].dtype.bitwidth // 8
        undefined = ir.Constant(vector, ir.Undefined)
        one = builder.insert_element(undefined, arguments[2], ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _WORD), None)
        compare = builder.icmp_signed if isinstance(row.dtype, types.Integer) else builder.fcmp_ordered
        compared = compare(">=", loaded, builder.shuffle_vector(one, undefined, everywhere))
        return builder.bitcast(compared, ir.IntType(_WORD))

    return types.uint64(row, types.intp, row.dtype), generate


_fill_tile: Callable = intrinsic(_fill_tile_code)
at_least: Callable = intrinsic(_at_least_code)


@njit(nogil=True, cache=True)
def whole_tiles(rows):
    """Return the rows rounded up to whole tiles."""
    return (rows + _ROWS - 1) // _ROWS * _ROWS


@njit(nogil=True, cache=True)
def multiply(weights, panels, z):
    """Write z[r, i] = ⟨weights_r, x_i⟩ for up to `BLOCK` rows, a multiple of those of a tile.

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
    """Set the bits of the first n numbers of a row that are ≥ cut; return how many."""
    found = 0
    words = (n + 63) // 64
    for w in range(words):
        bits[w] = at_least(row, 64 * w, cut)
    if n % 64 != 0:
        bits[words - 1] &= (np.uint64(1) << np.uint64(n % 64)) - np.uint64(1)
    for w in range(words):
        found += count_bits(bits[w])
    return found
