"""What the event kernels do in vector registers: pack events, add rows of weights to a rectangle, fire, fill with the bias."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedFunctionDecorator=false, reportCallIssue=false

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from transpike.engines import vectors as vec

__all__ = ["fill", "fire_vectors", "pack", "scatter"]

_WIDE = (6, 3, 2, 1)  # vectors of one row of the rectangle, with three rows at once: at most 18 registers
_NARROW = (16, 8, 4, 2, 1)  # with one row at once


def _rectangle(builder, memory, first, pitch, weights, row, row_pitch, width, index, value, events, rows, widths):
    """``memory[first + r pitch + i] += sum_k value[k] weights[row + r row_pitch + index[k] width + i]``, r < rows, i < width."""
    column = vec.number(0)
    for size in widths:

        def add_rows(at, _, size=size):
            places = [
                builder.add(builder.add(first, builder.mul(pitch, vec.number(r))), builder.add(at, vec.number(vec.LANES * j)))
                for r in range(rows)
                for j in range(size)
            ]

            def add_event(k, sums):
                channel = builder.sext(builder.load(builder.gep(index, [k])), first.type)
                worth = vec.broadcast(builder, builder.load(builder.gep(value, [k])))
                start = builder.add(builder.add(row, at), builder.mul(channel, width))
                changed = []
                for r in range(rows):
                    for j in range(size):
                        offset = builder.add(builder.mul(row_pitch, vec.number(r)), vec.number(vec.LANES * j))
                        product = builder.fmul(worth, vec.load(builder, weights, builder.add(start, offset)), flags=("contract",))
                        changed.append(builder.fadd(sums[r * size + j], product, flags=("contract",)))
                return changed

            sums = [vec.load(builder, memory, place) for place in places]
            _, sums = vec.count_loop(builder, *events, 1, sums, add_event)
            for total, place in zip(sums, places, strict=True):
                vec.store(builder, total, memory, place)
            return []

        column, _ = vec.count_loop(builder, column, width, vec.LANES * size, [], add_rows)


@intrinsic
def scatter(typingctx, memory, first, pitch, rows, weights, row, row_pitch, width, index, value, begin, end):
    """Add the weights of all events of a pixel to the rectangle that begins at ``memory[first]``; see `_rectangle`."""
    size = types.intp
    signature = types.void(memory, size, size, size, weights, size, size, size, index, value, size, size)

    def codegen(context, builder, signature, arguments):
        kinds = signature.args
        start, table, numbers, values = (vec.pointer(context, builder, kinds[i], arguments[i]) for i in (0, 4, 8, 9))
        _, first, pitch, rows, _, row, row_pitch, width, _, _, begin, end = arguments
        events = (begin, end)
        with builder.if_else(builder.icmp_signed("==", rows, vec.number(3))) as (three, others):
            with three:
                _rectangle(builder, start, first, pitch, table, row, row_pitch, width, numbers, values, events, 3, _WIDE)
            with others:

                def one_row(r, _):
                    place, line = builder.add(first, builder.mul(pitch, r)), builder.add(row, builder.mul(row_pitch, r))
                    _rectangle(builder, start, place, pitch, table, line, row_pitch, width, numbers, values, events, 1, _NARROW)
                    return []

                vec.count_loop(builder, vec.number(0), rows, 1, [], one_row)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def pack(typingctx, x, first, size, index, value, place):
    """`_events` of whole vectors only: ``size`` rounded down."""
    signature = types.intp(x, types.intp, types.intp, index, value, types.intp)

    def codegen(context, builder, signature, arguments):
        kinds = signature.args
        start, numbers, values = (vec.pointer(context, builder, kinds[i], arguments[i]) for i in (0, 3, 4))
        _, first, size, _, _, place = arguments

        def block(i, carried):
            loaded = vec.load(builder, start, builder.add(first, i))
            mask = builder.fcmp_unordered("!=", loaded, vec.floats(0.0))
            packed, indices, found = vec.compress(builder, loaded, mask, i)
            vec.store(builder, packed, values, carried[0])
            vec.store(builder, indices, numbers, carried[0])
            return [builder.add(carried[0], found)]

        _, (count,) = vec.count_loop(builder, vec.number(0), size, vec.LANES, [place], block)
        return count

    return signature, codegen


@intrinsic
def fire_vectors(
    typingctx, x, at, other, there, added, out, to, v, sent, count, unit, theta, worth, extra, number, size, cap, signed, single
):
    """`_fire` for whole vectors only: ``size`` rounded down."""
    n, flag = types.intp, types.boolean
    signature = types.void(
        x, n, other, n, flag, out, n, v, sent, count, n, theta, worth, extra, n, n, types.float32, flag, flag
    )  # fmt: skip

    def codegen(context, builder, signature, arguments):
        arrays = (0, 2, 5, 7, 8, 9, 11, 12, 13)
        x, other, out, v, sent, count, theta, worth, extra = (
            vec.pointer(context, builder, signature.args[i], arguments[i]) for i in arrays
        )
        at, there, added, to, unit, number, size, cap, signed, single = (arguments[i] for i in (1, 3, 4, 6, 10, 14, 15, 16, 17, 18))
        zero, one = vec.floats(0.0), vec.floats(1.0)

        def neurons(spike, add):
            def block(i, _):
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

            vec.count_loop(builder, vec.number(0), size, vec.LANES, [], block)

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


@intrinsic
def fill(typingctx, memory, bias, first, own, pixels):
    """`_reset` for whole vectors."""
    signature = types.void(memory, bias, types.intp, types.intp, types.intp)

    def codegen(context, builder, signature, arguments):
        start, line = (vec.pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 1))
        _, _, first, own, pixels = arguments

        def column(i, _):
            value = vec.load(builder, line, builder.add(first, i))

            def pixel(k, _):
                vec.store(builder, value, start, builder.add(builder.mul(k, own), i))
                return []

            vec.count_loop(builder, vec.number(0), pixels, 1, [], pixel)
            return []

        vec.count_loop(builder, vec.number(0), own, vec.LANES, [], column)
        return context.get_dummy_value()

    return signature, codegen
