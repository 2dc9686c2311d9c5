"""What the event kernels do in vector registers: find events, add their rows of weights to a line of outputs, fire."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedFunctionDecorator=false, reportCallIssue=false

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from transpike.engines import vectors as vec

__all__ = ["SHAPES", "fire_vectors", "line", "occupied"]

# vectors of an output pixel that `line` holds at once, by how many neighbouring pixels it holds them of
SHAPES = {1: (1, 2, 3, 4, 6, 8, 12), 3: (1, 2, 3, 4)}
if vec.REGISTERS >= 32:
    SHAPES = {1: (*SHAPES[1], 16, 24), 3: (*SHAPES[3], 6, 8)}
_KINDS = 32  # more than a shape's vectors


@intrinsic
def occupied(typingctx, x, first, known, begin, size):
    """Two words, bit i: is ``x[first + i]`` not 0? And is it neither 0 nor ``known[begin + i]``?

    Whole vectors only: ``size`` (at most 64) rounded down.
    """
    signature = types.UniTuple(types.intp, 2)(x, types.intp, known, types.intp, types.intp)

    def codegen(context, builder, signature, arguments):
        x, known = (vec.pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 2))
        _, first, _, begin, size = arguments

        def block(i, words):
            value = vec.load(builder, x, builder.add(first, i))
            lit = builder.fcmp_unordered("!=", value, vec.floats(0.0))
            new = builder.fcmp_unordered("!=", value, vec.load(builder, known, builder.add(begin, i)))
            found = (vec.bits(builder, mask) for mask in (lit, builder.and_(lit, new)))
            return [builder.or_(word, builder.shl(bits, i)) for word, bits in zip(words, found, strict=True)]

        _, words = vec.count_loop(builder, vec.number(0), size, vec.LANES, [vec.number(0)] * 2, block)
        return context.make_tuple(builder, signature.return_type, words)

    return signature, codegen


@intrinsic
def line(
    typingctx, columns, vectors, outputs, taps, hop, step, count, segment, pixel, span, words, offsets, x, first, weights, start,
    bias, channel, out, to, pitch,
):  # fmt: skip
    """One line of sums: ``vectors`` vectors of channels of each of ``outputs`` pixels to ``out[to]``, ``out[to + pitch]`` ...

    An output pixel and its ``columns - 1`` left neighbours are in registers while an input column's events are added, so
    a sum is written once, when the last column that it sees is done.

        for o in range(outputs + columns - 1):
            for tap in range(taps):
                for w in range(count), for every bit i of words[w span + o hop + tap step]:
                    sums += x[first + (o hop + tap step) pixel + rows[w] + i] weights[start + tap segment + taps[w] + i row]
            the leftmost pixel's sums go out, a new pixel comes in with its bias

    Args:
        offsets: where in ``x`` bit i lies (64), then for each word where its first bit lies in ``x`` and in the weights.
        first: of ``x``, where the line's first column lies, be it in the margin (where there are no events).
        start: of the weights. channel: of the bias.
    """
    n = types.intp
    signature = types.void(n, n, n, n, n, n, n, n, n, n, words, offsets, x, n, weights, n, bias, n, out, n, n)

    def codegen(context, builder, signature, arguments):
        words, offsets, x, weights, bias, out = (
            vec.pointer(context, builder, signature.args[i], arguments[i]) for i in (10, 11, 12, 14, 16, 18)
        )
        columns, vectors, outputs, taps, hop, step, count, segment, pixel, span = arguments[:10]
        first, start, channel, to, pitch = (arguments[i] for i in (13, 15, 17, 19, 20))

        def lines(wide, high):
            """For ``wide`` columns of ``high`` vectors."""
            numbers = [vec.number(vec.LANES * j) for j in range(wide * high)]

            def fresh():
                return [vec.load(builder, bias, builder.add(channel, numbers[j])) for j in range(high)]

            def add_column(o, tap, sums):
                column = o if wide > 1 else builder.add(builder.mul(o, hop), builder.mul(tap, step))
                place, row = builder.add(first, builder.mul(column, pixel)), builder.add(start, builder.mul(tap, segment))

                def add_word(w, sums):
                    both = builder.gep(offsets, [builder.add(vec.number(64), builder.shl(w, vec.number(1)))])
                    beside = builder.add(place, builder.load(both))
                    below = builder.add(row, builder.load(builder.gep(both, [vec.number(1)])))

                    def add_event(i, sums):
                        at = builder.add(beside, builder.load(builder.gep(offsets, [i])))
                        worth = vec.broadcast(builder, builder.load(builder.gep(x, [at])))
                        begin = builder.add(below, builder.mul(i, vec.number(vec.LANES * wide * high)))
                        taken = (vec.load(builder, weights, builder.add(begin, offset)) for offset in numbers)
                        return [vec.multiply_add(builder, worth, w, total) for w, total in zip(taken, sums, strict=True)]

                    word = builder.load(builder.gep(words, [builder.add(builder.mul(w, span), column)]))
                    return vec.bit_loop(builder, word, sums, add_event)

                return vec.count_loop(builder, vec.number(0), count, 1, sums, add_word)[1]

            def add_pixel(o, sums):
                if wide > 1:
                    sums = add_column(o, vec.number(0), sums)
                else:
                    _, sums = vec.count_loop(builder, vec.number(0), taps, 1, sums, lambda tap, sums: add_column(o, tap, sums))
                done = builder.sub(o, vec.number(wide - 1))
                with builder.if_then(builder.icmp_signed(">=", done, vec.number(0))):
                    at = builder.add(to, builder.mul(done, pitch))
                    for total, offset in zip(sums[:high], numbers, strict=False):
                        vec.store(builder, total, out, builder.add(at, offset))
                return [*sums[high:], *fresh()]

            every = builder.add(outputs, vec.number(wide - 1))
            vec.count_loop(builder, vec.number(0), every, 1, [total for _ in range(wide) for total in fresh()], add_pixel)

        done = builder.append_basic_block()
        cases = builder.switch(builder.add(builder.mul(columns, vec.number(_KINDS)), vectors), done)
        for wide, highs in SHAPES.items():
            for high in highs:
                case = builder.append_basic_block()
                cases.add_case(vec.number(_KINDS * wide + high), case)
                builder.position_at_end(case)
                lines(wide, high)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def fire_vectors(
    typingctx, x, at, other, there, added, out, to, v, sent, count, unit, theta, worth, extra, number, pixels, pitch, size, cap,
    signed, single,
):  # fmt: skip
    """`_fire` for whole vectors only: ``size`` rounded down."""
    n, flag = types.intp, types.boolean
    signature = types.void(
        x, n, other, n, flag, out, n, v, sent, count, n, theta, worth, extra, n, n, n, n, types.float32, flag, flag
    )  # fmt: skip

    def codegen(context, builder, signature, arguments):
        arrays = (0, 2, 5, 7, 8, 9, 11, 12, 13)
        x, other, out, v, sent, count, theta, worth, extra = (
            vec.pointer(context, builder, signature.args[i], arguments[i]) for i in arrays
        )
        at, there, added, to, unit, number = (arguments[i] for i in (1, 3, 4, 6, 10, 14))
        pixels, pitch, size, cap, signed, single = arguments[15:]
        zero, one = vec.floats(0.0), vec.floats(1.0)

        def neurons(spike, add):
            def block(i, ahead):
                i = builder.add(i, ahead)
                state, own = builder.add(unit, i), builder.add(number, i)
                current = vec.load(builder, x, builder.add(at, i))
                if add:
                    current = builder.fadd(current, vec.load(builder, other, builder.add(there, i)))
                current = builder.fadd(current, vec.load(builder, extra, own))
                m = builder.fadd(vec.load(builder, v, state), current)
                limit = vec.load(builder, theta, own)
                s = spike(m, limit, state)
                vec.store(builder, builder.fmul(s, vec.load(builder, worth, own)), out, builder.add(to, i))
                vec.store(builder, builder.fsub(m, builder.fmul(limit, s)), v, state)
                either = builder.select(builder.fcmp_ordered("<", s, zero), builder.fsub(zero, s), s)
                vec.store(builder, builder.fadd(vec.load(builder, count, state), either), count, state)
                return []

            def pixel(k, _):
                ahead = builder.mul(k, pitch)
                vec.count_loop(builder, vec.number(0), size, vec.LANES, [], lambda i, _: block(i, ahead))
                return []

            vec.count_loop(builder, vec.number(0), pixels, 1, [], pixel)

        def once(m, limit, state):
            return builder.select(builder.fcmp_ordered(">=", m, limit), one, zero)

        def burst(m, limit, state):
            return clipped(builder.fdiv(m, limit), zero)

        def clipped(ratio, low):
            s, high = vec.floor(builder, ratio), vec.broadcast(builder, cap)
            s = builder.select(builder.fcmp_ordered("<", s, low), low, s)
            return builder.select(builder.fcmp_ordered(">", s, high), high, s)

        def correcting(m, limit, state):
            before = vec.load(builder, sent, state)
            s = clipped(builder.fdiv(m, limit), builder.fsub(zero, before))
            vec.store(builder, builder.fadd(before, s), sent, state)
            return s

        def either_way(spike):
            with builder.if_else(added) as (yes, no):
                with yes:
                    neurons(spike, True)
                with no:
                    neurons(spike, False)

        with builder.if_else(single) as (simple, others):
            with simple:
                either_way(once)
            with others, builder.if_else(signed) as (both, positive):
                with both:
                    either_way(correcting)
                with positive:
                    either_way(burst)
        return context.get_dummy_value()

    return signature, codegen
