"""What the event kernels do in vector registers: find events, add their rows of weights to a line of outputs, fire."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedFunctionDecorator=false, reportCallIssue=false

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from transpike.engines import vectors as vec

__all__ = ["NOTHING", "NO_BITS", "SHAPES", "SPARE", "fire_vectors", "line", "numbers_of", "occupied", "word"]

# vectors of an output pixel that `line` holds at once, by how many neighbouring pixels it holds them of
SHAPES = {1: (1, 2, 3, 4, 6, 8, 12), 3: (1, 2, 3, 4)}
if vec.REGISTERS >= 32:
    SHAPES = {1: (*SHAPES[1], 16, 24), 3: (*SHAPES[3], 6, 8)}
SPARE = 8  # bytes behind the last pixel's bits: a word is read wherever one begins
NOTHING: Any = np.empty(0, np.float32)  # in the place of what is not read
NO_BITS: Any = np.zeros(SPARE, np.uint8)
_KINDS = 32  # more than a shape's vectors


@intrinsic
def occupied(typingctx, x, first, known, begin, size, found, to):
    """Bits at ``found[to]`` and on, bit i: is ``x[first + i]`` not 0? Returns if any is neither 0 nor ``known[begin + i]``.

    Whole vectors only: ``size`` rounded down.
    """
    n = types.intp
    signature = types.boolean(x, n, known, n, n, found, n)

    def codegen(context, builder, signature, arguments):
        x, known, found = (vec.pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 5))
        _, first, _, begin, size, _, to = arguments

        def block(i, carried):
            value = vec.load(builder, x, builder.add(first, i))
            lit = builder.fcmp_unordered("!=", value, vec.floats(0.0))
            new = builder.fcmp_unordered("!=", value, vec.load(builder, known, builder.add(begin, i)))
            vec.store_bits(builder, lit, found, builder.add(to, builder.lshr(i, vec.number(3))))
            return [builder.or_(carried[0], vec.bits(builder, builder.and_(lit, new)))]

        _, (new,) = vec.count_loop(builder, vec.number(0), size, vec.LANES, [vec.number(0)], block)
        return builder.icmp_unsigned("!=", new, vec.number(0))

    return signature, codegen


@intrinsic
def word(typingctx, found, at):
    """64 bits from the byte ``found[at]`` on."""
    signature = types.int64(found, types.intp)

    def codegen(context, builder, signature, arguments):
        return vec.load_word(builder, vec.pointer(context, builder, signature.args[0], arguments[0]), arguments[1])

    return signature, codegen


@intrinsic
def numbers_of(typingctx, bits, worth, own, before, at, out, to, size):
    """``out[to + i] = before[at + i] + (worth[own + i] where bit to + i is 1, else 0)``; ``size`` is a multiple of `LANES`."""
    n = types.intp
    signature = types.void(bits, worth, n, before, n, out, n, n)

    def codegen(context, builder, signature, arguments):
        bits, worth, before, out = (vec.pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 3, 5))
        own, at, to, size = (arguments[i] for i in (2, 4, 6, 7))

        def block(i, _):
            place = builder.add(to, i)
            lit = vec.load_bits(builder, bits, builder.lshr(place, vec.number(3)))
            number = builder.select(lit, vec.load(builder, worth, builder.add(own, i)), vec.floats(0.0))
            vec.store(builder, builder.fadd(vec.load(builder, before, builder.add(at, i)), number), out, place)
            return []

        vec.count_loop(builder, vec.number(0), size, vec.LANES, [], block)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def line(
    typingctx, columns, vectors, folded, outputs, taps, hop, step, count, segment, pixel, span, words, offsets, x, first, weights,
    start, bias, channel, out, to, pitch,
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
        folded: 1 where the weights are multiplied by ``x`` already, else 0.
        offsets: where in ``x`` bit i lies (64), then for each word where its first bit lies in ``x`` and in the weights.
        first: of ``x``, where the line's first column lies, be it in the margin (where there are no events).
        start: of the weights. channel: of the bias.
    """
    n = types.intp
    signature = types.void(n, n, n, n, n, n, n, n, n, n, n, words, offsets, x, n, weights, n, bias, n, out, n, n)

    def codegen(context, builder, signature, arguments):
        words, offsets, x, weights, bias, out = (
            vec.pointer(context, builder, signature.args[i], arguments[i]) for i in (11, 12, 13, 15, 17, 19)
        )
        columns, vectors, folded, outputs, taps, hop, step, count, segment, pixel, span = arguments[:11]
        first, start, channel, to, pitch = (arguments[i] for i in (14, 16, 18, 20, 21))

        def lines(wide, high, multiplied):
            """For ``wide`` columns of ``high`` vectors; are weights ``multiplied``?"""
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
                        begin = builder.add(below, builder.mul(i, vec.number(vec.LANES * wide * high)))
                        taken = (vec.load(builder, weights, builder.add(begin, offset)) for offset in numbers)
                        if multiplied:
                            return [builder.fadd(total, w) for w, total in zip(taken, sums, strict=True)]
                        at = builder.add(beside, builder.load(builder.gep(offsets, [i])))
                        worth = vec.broadcast(builder, builder.load(builder.gep(x, [at])))
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
        kind = builder.add(builder.mul(builder.add(builder.mul(columns, vec.number(2)), folded), vec.number(_KINDS)), vectors)
        cases = builder.switch(kind, done)
        for wide, highs in SHAPES.items():
            for high, multiplied in itertools.product(highs, (0, 1)):
                case = builder.append_basic_block()
                cases.add_case(vec.number((2 * wide + multiplied) * _KINDS + high), case)
                builder.position_at_end(case)
                lines(wide, high, multiplied)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def fire_vectors(
    typingctx, x, at, other, there, beside, others, out, to, bits, marked, v, sent, count, unit, theta, worth, extra, number,
    pixels, pitch, size, cap, signed, single,
):  # fmt: skip
    """`_fire` for whole vectors only: ``size`` rounded down."""
    n, flag = types.intp, types.boolean
    signature = types.void(
        x, n, other, n, beside, n, out, n, bits, n, v, sent, count, n, theta, worth, extra, n, n, n, n, types.float32, flag, flag
    )  # fmt: skip

    def codegen(context, builder, signature, arguments):
        arrays = (0, 2, 4, 6, 8, 10, 11, 12, 14, 15, 16)
        x, other, beside, out, bits, v, sent, count, theta, worth, extra = (
            vec.pointer(context, builder, signature.args[i], arguments[i]) for i in arrays
        )
        at, there, others, to, marked, unit, number = (arguments[i] for i in (1, 3, 5, 7, 9, 13, 17))
        pixels, pitch, size, cap, signed, single = arguments[18:]
        zero, one, eight = vec.floats(0.0), vec.floats(1.0), vec.number(3)

        def byte_of(i):
            return builder.lshr(i, eight)

        def no_more(current, i, own):
            return current

        def numbers(current, i, own):
            return builder.fadd(current, vec.load(builder, other, builder.add(there, i)))

        def spikes(current, i, own):
            lit = vec.load_bits(builder, beside, byte_of(builder.add(there, i)))
            return builder.fadd(current, builder.select(lit, vec.load(builder, other, own), zero))

        def neurons(more, emit):
            def block(i, ahead):
                i = builder.add(i, ahead)
                state, own = builder.add(unit, i), builder.add(number, i)
                current = more(vec.load(builder, x, builder.add(at, i)), i, own)
                m = builder.fadd(vec.load(builder, v, state), builder.fadd(current, vec.load(builder, extra, own)))
                limit = vec.load(builder, theta, own)
                taken, fired = emit(m, limit, state, own, builder.add(to, i))
                vec.store(builder, builder.fsub(m, taken), v, state)
                vec.store(builder, builder.fadd(vec.load(builder, count, state), fired), count, state)

            def pixel(k, _):
                ahead = builder.mul(k, pitch)

                def vector(i, _):
                    block(i, ahead)
                    return []

                vec.count_loop(builder, vec.number(0), size, vec.LANES, [], vector)
                return []

            vec.count_loop(builder, vec.number(0), pixels, 1, [], pixel)

        def once(m, limit, state, own, to):
            """One spike at most, as a bit."""
            lit = builder.fcmp_ordered(">=", m, limit)
            vec.store_bits(builder, lit, bits, byte_of(to))
            return builder.select(lit, limit, zero), builder.select(lit, one, zero)

        def burst(m, limit, state, own, to):
            return several(clipped(builder.fdiv(m, limit), zero), limit, own, to)

        def correcting(m, limit, state, own, to):
            before = vec.load(builder, sent, state)
            s = clipped(builder.fdiv(m, limit), builder.fsub(zero, before))
            vec.store(builder, builder.fadd(before, s), sent, state)
            return several(s, limit, own, to)

        def clipped(ratio, low):
            s, high = vec.floor(builder, ratio), vec.broadcast(builder, cap)
            s = builder.select(builder.fcmp_ordered("<", s, low), low, s)
            return builder.select(builder.fcmp_ordered(">", s, high), high, s)

        def several(s, limit, own, to):
            vec.store(builder, builder.fmul(s, vec.load(builder, worth, own)), out, to)
            vec.store_bits(builder, builder.fcmp_unordered("!=", s, zero), bits, builder.mul(byte_of(to), marked))
            size = builder.select(builder.fcmp_ordered("<", s, zero), builder.fsub(zero, s), s)
            return builder.fmul(limit, s), size

        def chosen(emit, kinds):
            """The kind of other current that there is."""
            done = builder.append_basic_block()
            cases = builder.switch(others, done)
            for numbers_of_kind, more in kinds:
                case = builder.append_basic_block()
                for k in numbers_of_kind:
                    cases.add_case(vec.number(k), case)
                builder.position_at_end(case)
                neurons(more, emit)
                builder.branch(done)
            builder.position_at_end(done)

        plain = [((0,), no_more), ((1, 2), numbers)]
        packed = builder.and_(single, builder.icmp_unsigned("!=", marked, vec.number(0)))
        with builder.if_else(packed) as (simple, several_spikes):
            with simple:
                chosen(once, [*plain, ((3,), spikes)])
            with several_spikes, builder.if_else(signed) as (both, positive):
                with both:
                    chosen(correcting, plain)
                with positive:
                    chosen(burst, plain)
        return context.get_dummy_value()

    return signature, codegen
