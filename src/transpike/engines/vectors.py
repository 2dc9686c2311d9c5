"""A vocabulary for kernels that numba's loops cannot express: vectors that stay in registers over a loop of unknown length.

Functions here write LLVM instructions through a builder; `transpike.engines.event_kernels` makes numba intrinsics of them.
Vectors hold `LANES` numbers of single precision; a processor with narrower registers uses several for one.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from llvmlite import ir

__all__ = ["LANES", "broadcast", "compress", "count_loop", "floats", "floor", "load", "number", "pointer", "store"]

LANES = 16

_BIT, _I16, _I32, _I64, _F32 = ir.IntType(1), ir.IntType(LANES), ir.IntType(32), ir.IntType(64), ir.FloatType()
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
    """Write a vector of numbers or indices to ``start[offset]`` on."""
    builder.store(x, builder.bitcast(builder.gep(start, [offset]), x.type.as_pointer())).align = 4


def broadcast(builder, x):
    """A vector with the number or index ``x`` in every lane."""
    kind = ir.VectorType(x.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_INTEGERS, [0] * LANES))


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


def compress(builder, x, mask, offset):
    """The lanes of ``x`` in ``mask`` side by side, likewise their indices counted from ``offset``, and how many they are."""
    indices = builder.add(ir.Constant(_INTEGERS, list(range(LANES))), broadcast(builder, builder.trunc(offset, _I32)))
    packed = []
    for vector, name in ((x, f"v{LANES}f32"), (indices, f"v{LANES}i32")):
        kind = ir.FunctionType(vector.type, [vector.type, _MASK, vector.type])
        pack = builder.module.declare_intrinsic(f"llvm.experimental.vector.compress.{name}", (), kind)
        packed.append(builder.call(pack, [vector, mask, ir.Constant(vector.type, ir.Undefined)]))
    bits = builder.zext(builder.bitcast(mask, _I16), _I32)
    return packed[0], packed[1], builder.zext(builder.ctpop(bits), _I64)


def floor(builder, x):
    """The largest integers not above ``x``."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS])
    return builder.call(builder.module.declare_intrinsic(f"llvm.floor.v{LANES}f32", (), kind), [x])
