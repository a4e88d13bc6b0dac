"""What Numba's loops cannot express: sums held in vector registers.

Written in LLVM's own vectors, which it maps to whatever registers the processor has.
"""

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BYTES = 256


def _add_scaled_rows(typingctx, target, rows, index, value, first, last):
    """target += Σ value[p] rows[index[p]] over first ≤ p < last; target and rows are 256 bytes wide and contiguous.

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
        number = context.get_data_type(signature.args[0].dtype)
        size = 4 if isinstance(number, ir.FloatType) else 8
        lanes = _BYTES // size
        vector = ir.VectorType(number, lanes)
        word, lane = first.type, ir.IntType(32)

        def load(pointer):
            loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
            loaded.align = size
            return loaded

        sums = cgutils.alloca_once(builder, vector)
        builder.store(load(target), sums)
        with cgutils.for_range_slice(builder, first, last, word(1), intp=word) as (p, _):
            column = builder.zext(builder.load(builder.gep(index, [p])), word)
            row = load(builder.gep(rows, [builder.mul(column, word(lanes))]))
            nothing = ir.Constant(vector, ir.Undefined)
            one = builder.insert_element(nothing, builder.load(builder.gep(value, [p])), lane(0))
            factor = builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(lane, lanes), [0] * lanes))
            product = builder.fmul(row, factor, flags=["contract"])
            builder.store(builder.fadd(builder.load(sums), product, flags=["contract"]), sums)
        builder.store(builder.load(sums), builder.bitcast(target, vector.as_pointer())).align = size
        return context.get_dummy_value()

    return signature, generate


add_scaled_rows: Callable[..., None] = intrinsic(_add_scaled_rows)
