"""Sums held in vector registers, which Numba's loops cannot express.

They are written in LLVM's own vectors, which it maps to the registers that the processor has.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BYTES = 256


def column_blocks(matrix: np.ndarray, sums: type[np.floating]) -> np.ndarray:
    """Return columns as `add_scaled_rows` takes them for sums of this dtype: (blocks, rows, lanes), zero-padded."""
    rows, columns = matrix.shape
    lanes = _BYTES // np.dtype(sums).itemsize
    blocks = np.zeros((-(-columns // lanes), rows, lanes), matrix.dtype)
    for block in range(blocks.shape[0]):
        own = matrix[:, block * lanes : (block + 1) * lanes]
        blocks[block, :, : own.shape[1]] = own
    return blocks


def _add_scaled_rows(typingctx, target, rows, index, value, first, last):
    """Add value[p] rows[index[p]] over first ≤ p < last to target, contiguous and 256 bytes wide.

    Rows, contiguous and of as many numbers, may be of a shorter dtype than the target: less to read.

    In a loop of Numba the sums go to memory and back for every p, or for every few p written out by hand; here they
    stay in registers from the first p to the last.
    """
    signature = types.void(target, rows, index, value, types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        begin = [
            context.make_array(kind)(context, builder, argument).data
            for kind, argument in zip(signature.args[:4], arguments[:4], strict=True)
        ]
        target, rows, index, value = begin
        first, last = arguments[4:]
        number, stored = (context.get_data_type(kind.dtype) for kind in signature.args[:2])
        size, stored_size = (kind.dtype.bitwidth // 8 for kind in signature.args[:2])
        lanes = _BYTES // size
        vector = ir.VectorType(number, lanes)
        word, lane = first.type, ir.IntType(32)

        def load(pointer, number, align):
            loaded = builder.load(builder.bitcast(pointer, ir.VectorType(number, lanes).as_pointer()))
            loaded.align = align
            return loaded

        sums = cgutils.alloca_once(builder, vector)
        builder.store(load(target, number, size), sums)
        with cgutils.for_range_slice(builder, first, last, word(1), intp=word) as (p, _):
            column = builder.zext(builder.load(builder.gep(index, [p])), word)
            row = load(builder.gep(rows, [builder.mul(column, word(lanes))]), stored, stored_size)
            row = row if stored == number else builder.fpext(row, vector)
            nothing = ir.Constant(vector, ir.Undefined)
            one = builder.insert_element(nothing, builder.load(builder.gep(value, [p])), lane(0))
            factor = builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(lane, lanes), [0] * lanes))
            product = builder.fmul(row, factor, flags=["contract"])
            builder.store(builder.fadd(builder.load(sums), product, flags=["contract"]), sums)
        builder.store(builder.load(sums), builder.bitcast(target, vector.as_pointer())).align = size
        return context.get_dummy_value()

    return signature, generate


add_scaled_rows: Callable[..., None] = intrinsic(_add_scaled_rows)
