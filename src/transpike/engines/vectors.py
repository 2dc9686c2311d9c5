"""A vocabulary for kernels that numba's loops cannot express: vectors that stay in registers over a loop of unknown length.

Functions here write LLVM instructions through a builder; `transpike.engines.event_vectors` makes numba intrinsics of them.
Vectors hold `LANES` numbers of single precision, as many as a register of this processor.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from llvmlite import binding, ir

__all__ = [
    "LANES", "REGISTERS", "bit_loop", "bits", "broadcast", "count_loop", "floats", "floor", "load", "load_bits", "load_word",
    "multiply_add", "number", "pointer", "store", "store_bits",
]  # fmt: skip

# registers: AVX-512 has 32 of 16 numbers, AVX2 16 of 8, NEON 32 of 4 (two make a vector)
LANES, REGISTERS = (16, 32) if binding.get_host_cpu_features().get("avx512f") else (8, 16)

_BIT, _LANE_BITS, _I32, _I64, _F32 = ir.IntType(1), ir.IntType(LANES), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTEGERS, _MASK = (ir.VectorType(x, LANES) for x in (_F32, _I32, _BIT))


def number(x: int):
    """A constant index."""
    return ir.Constant(_I64, x)


def floats(x: float):
    """A vector with ``x`` in every lane."""
    return ir.Constant(_FLOATS, [x] * LANES)


def pointer(context, builder, array_type, array):
    """Where the elements of a numba array begin."""
    return context.make_array(array_type)(context, builder, array).data


def load(builder, start, offset):
    """`LANES` numbers from ``start[offset]`` on."""
    loaded = builder.load(builder.bitcast(builder.gep(start, [offset]), _FLOATS.as_pointer()))
    loaded.align = 4
    return loaded


def store(builder, x, start, offset):
    """Write a vector to ``start[offset]`` on."""
    builder.store(x, builder.bitcast(builder.gep(start, [offset]), x.type.as_pointer())).align = 4


def broadcast(builder, x):
    """A vector with the number ``x`` in every lane."""
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), x, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTEGERS, [0] * LANES))


def multiply_add(builder, a, b, c):
    """``a b + c``, rounded once where the processor can."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def bits(builder, mask):
    """A comparison's lanes as the low bits of an index."""
    return builder.zext(builder.bitcast(mask, _LANE_BITS), _I64)


def store_bits(builder, mask, start, byte):
    """Write a comparison's lanes as bits, from the byte ``start[byte]`` on."""
    at = builder.bitcast(builder.gep(start, [byte]), _LANE_BITS.as_pointer())
    builder.store(builder.bitcast(mask, _LANE_BITS), at).align = 1


def load_bits(builder, start, byte):
    """Bits from the byte ``start[byte]`` on, as a comparison's lanes."""
    loaded = builder.load(builder.bitcast(builder.gep(start, [byte]), _LANE_BITS.as_pointer()))
    loaded.align = 1
    return builder.bitcast(loaded, _MASK)


def load_word(builder, start, byte):
    """An index's worth of bits from the byte ``start[byte]`` on."""
    loaded = builder.load(builder.bitcast(builder.gep(start, [byte]), _I64.as_pointer()))
    loaded.align = 1
    return loaded


def count_loop(builder, start, end, step: int, carried, body):
    """``while k + step <= end: carried = body(k, carried); k += step``, with what is carried in registers.

    Returns:
        The last ``k`` and what was carried.
    """
    before = builder.block
    head, inside, after = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(_I64)
    k.add_incoming(start, before)
    values = [builder.phi(x.type) for x in carried]
    for value, x in zip(values, carried, strict=True):
        value.add_incoming(x, before)
    builder.cbranch(builder.icmp_signed("<=", builder.add(k, number(step)), end), inside, after)
    builder.position_at_end(inside)
    changed = body(k, values)
    k.add_incoming(builder.add(k, number(step)), builder.block)
    for value, x in zip(values, changed, strict=True):
        value.add_incoming(x, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return k, values


def bit_loop(builder, word, carried, body):
    """``for i in the bits of word that are 1: carried = body(i, carried)``, lowest first; returns what was carried."""
    before, none = builder.block, number(0)
    inside, after = (builder.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_unsigned("!=", word, none), inside, after)
    builder.position_at_end(inside)
    left = builder.phi(_I64)
    left.add_incoming(word, before)
    values = [builder.phi(x.type) for x in carried]
    for value, x in zip(values, carried, strict=True):
        value.add_incoming(x, before)
    changed = body(builder.cttz(left, ir.Constant(_BIT, 1)), values)
    rest, last = builder.and_(left, builder.sub(left, number(1))), builder.block
    left.add_incoming(rest, last)
    builder.cbranch(builder.icmp_unsigned("!=", rest, none), inside, after)
    builder.position_at_end(after)
    results = [builder.phi(x.type) for x in carried]
    for value, result, x, y in zip(values, results, carried, changed, strict=True):
        value.add_incoming(y, last)
        result.add_incoming(x, before)
        result.add_incoming(y, last)
    return results


def floor(builder, x):
    """The largest integers not above ``x``."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS])
    return builder.call(builder.module.declare_intrinsic(f"llvm.floor.v{LANES}f32", (), kind), [x])
