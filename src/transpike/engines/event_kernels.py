"""Event-driven synapses for the CPU: what is 0 costs nothing, what is not adds its weights to the membranes around it.

An input pixel meets a few outputs, a rectangle of pixels with all their channels. Its events (the channels that are not 0)
share them: the rectangle is loaded into registers, every event adds one row of weights, and it is stored again.

    I[oy, ox, :] += value * W[ky, kx, c, :]     oy = (y + padding - dilation ky) / stride, likewise ox

Compiled once by numba and cached on disk. Sums are taken in another order than a dense convolution takes them.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedFunctionDecorator=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic

from transpike.engines import vectors as vec

__all__ = ["currents", "spikes"]

_LANES = vec.LANES
_SLACK = vec.LANES  # numbers behind a buffer that vectors may touch
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
def _scatter(typingctx, memory, first, pitch, rows, weights, row, row_pitch, width, index, value, begin, end):
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
def _pack(typingctx, x, first, size, index, value, place):
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


@njit(nogil=True, error_model="numpy")
def _events(x, first, size, index, value, place):
    """Positions (from ``first``) and values of what is not 0 among ``x[first : first + size]`` into the lists from ``place`` on.

    Returns where they end.
    """
    count = _pack(x, first, size, index, value, place)
    for i in range(size - size % _LANES, size):
        if x[first + i] != 0:
            index[count], value[count] = i, x[first + i]
            count += 1
    return count


@intrinsic
def _fire_vectors(
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


@njit(nogil=True, error_model="numpy")
def _fire(x, at, other, there, added, out, to, v, sent, count, unit, theta, worth, extra, number, size, cap, signed, single):
    """One step of ``size`` neurons, see `transpike.spiking.neurons.step`, with ``x`` (and ``other`` if ``added``) as current."""
    _fire_vectors(
        x, at, other, there, added, out, to, v, sent, count, unit, theta, worth, extra, number, size, cap, signed, single
    )  # fmt: skip
    for i in range(size - size % _LANES, size):
        current = x[at + i] + other[there + i] if added else x[at + i]
        m = v[unit + i] + (current + extra[number + i])
        s = np.floor(m / theta[number + i])
        s = min(max(s, -sent[unit + i] if signed else np.float32(0)), cap)
        if signed:
            sent[unit + i] += s
        if single:
            s = np.float32(1) if m >= theta[number + i] else np.float32(0)
        out[to + i] = worth[number + i] * s
        v[unit + i] = m - theta[number + i] * s
        count[unit + i] += abs(s)


@njit(nogil=True, error_model="numpy")
def _line(geometry):
    """The most events of a line of pixels, and what vectors write behind them."""
    return geometry[1] * geometry[2] + _SLACK


@njit(nogil=True, error_model="numpy")
def _aligned(size):
    """Room for numbers that begins with a cache line: a vector on two lines takes twice as long."""
    room = np.empty(size + _LANES, np.float32)
    ahead = (-room.ctypes.data % (4 * _LANES)) // 4
    return room[ahead : ahead + size]


@njit(nogil=True, error_model="numpy")
def _frame(x, first, geometry, phases, patches, weights, block, memory, index, value, begins):
    """Add what one frame of the input (NHWC, from ``x[first]`` on) sends to the output channels of ``block``.

    See `transpike.engines.events.Synapse` for ``geometry``, ``phases`` and ``patches``. Neighbouring pixels share outputs:
    one that follows the other at once would wait for its stores, so every third comes first (with a kernel of width three).
    """
    height, width, channels, groups = geometry[0], geometry[1], geometry[2], geometry[3]
    stride_y, stride_x, pad_y, pad_x, pitch, pixel = geometry[4], geometry[5], geometry[6], geometry[7], geometry[8], geometry[9]
    own, apart = channels // groups, geometry[12] * stride_x
    alone = len(patches) == 2 and len(phases) == 2 and groups == 1  # one rectangle for all (and the row of 0s behind it)
    top, left, rows, down = patches[0, 0], patches[0, 1], patches[0, 2], patches[0, 3]
    wide, start, further = patches[0, 4], patches[0, 5], patches[0, 6]
    start += block * geometry[11]
    for y in range(height):
        oy, phase_y = (y + pad_y) // stride_y, (y + pad_y) % stride_y
        line, end = first + y * width * channels, 0
        for at in range(width * groups):  # lists first: what was just stored is slow to load
            begins[at] = end
            end = _events(x, line + at * own, own, index, value, end)
        begins[width * groups] = end
        for begin in range(apart):
            ox, phase = (begin + pad_x) // stride_x, phase_y * stride_x + (begin + pad_x) % stride_x
            for at in range(begin, width, apart):
                if alone:
                    if begins[at] < begins[at + 1]:
                        place = (oy + top) * pitch + (ox + left) * pixel
                        _scatter(
                            memory, place, down, rows, weights, start, further, wide, index, value, begins[at], begins[at + 1]
                        )  # fmt: skip
                else:
                    for group in range(groups):
                        low, high = begins[at * groups + group], begins[at * groups + group + 1]
                        if low == high:
                            continue
                        for i in range(phases[phase], phases[phase + 1]):
                            place = (oy + patches[i, 0]) * pitch + (ox + patches[i, 1]) * pixel + group * geometry[10]
                            row = patches[i, 5] + block * geometry[11] + group * own * patches[i, 4]
                            _scatter(
                                memory, place, patches[i, 3], patches[i, 2], weights, row, patches[i, 6], patches[i, 4],
                                index, value, low, high,
                            )  # fmt: skip
                ox += geometry[12]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def currents(x, weights, bias, out, frames, geometry, phases, patches, shape):
    """Currents ``out`` (frames NHWC, flat) of the synapses for the input ``x`` (frames NHWC, flat)."""
    rows, columns, own, blocks, height, width, channels, top, left = shape
    size = geometry[0] * geometry[1] * geometry[2]
    jobs = frames * blocks
    parts = min(jobs, 64)
    for part in prange(parts):
        index, value = np.empty(_line(geometry), np.int32), np.empty(_line(geometry), np.float32)
        begins = np.empty(geometry[1] * geometry[3] + 1, np.int64)
        memory = _aligned(rows * columns * own + _SLACK)
        for job in range(jobs * part // parts, jobs * (part + 1) // parts):
            block, frame = job // frames, job % frames
            _reset(memory, bias, block * own, own, rows * columns)
            _frame(x, frame * size, geometry, phases, patches, weights, block, memory, index, value, begins)
            used = min(own, channels - block * own)
            for y in range(height):
                first = ((y + top) * columns + left) * own
                to = ((frame * height + y) * width) * channels + block * own
                if used == own == channels:
                    out[to : to + width * own] = memory[first : first + width * own]
                else:
                    for i in range(width):
                        out[to + i * channels : to + i * channels + used] = memory[first + i * own : first + i * own + used]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def spikes(
    x, weights, bias, other, others, out, v, sent, count, theta, worth, extra, steps, samples, geometry, phases, patches, shape,
    cap, signed,
):  # fmt: skip
    """What neurons behind the synapses emit: ``steps`` frames of each of ``samples``, steps outermost; updates their state.

    Args:
        other: another current of the same neurons (frames NHWC, flat); ``others``: 0 where there is none, 1 where it is the
            same at every step, 2 where it has a frame for each.
        v, sent, count, theta, worth, extra: as for `transpike.engines.kernels.fire`.
    """
    rows, columns, own, blocks, height, width, channels, _, _ = shape
    size, units = geometry[0] * geometry[1] * geometry[2], height * width * channels
    for job in prange(samples * blocks):
        sample, block = job // blocks, job % blocks
        index, value = np.empty(_line(geometry), np.int32), np.empty(_line(geometry), np.float32)
        begins = np.empty(geometry[1] * geometry[3] + 1, np.int64)
        memory = _aligned(rows * columns * own + _SLACK)
        for t in range(steps):
            frame = t * samples + sample
            _reset(memory, bias, block * own, own, rows * columns)
            _frame(x, frame * size, geometry, phases, patches, weights, block, memory, index, value, begins)
            there = (frame if others == 2 else sample) * units
            _fire_frame(
                memory, other, there, others > 0, out, frame * units, v, sent, count, sample * units, theta, worth, extra,
                cap, signed, shape, block,
            )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def _fire_frame(
    memory, other, there, added, out, to, v, sent, count, state, theta, worth, extra, cap, signed, shape, block
):  # fmt: skip
    """Neurons of one frame and block take the sums in ``memory`` as their currents."""
    _, columns, own, _, height, width, channels, top, left = shape
    used, single = min(own, channels - block * own), cap == 1 and not signed
    for y in range(height):
        first, unit = ((y + top) * columns + left) * own, y * width * channels + block * own
        if used == own == channels:
            _fire(
                memory, first, other, there + unit, added, out, to + unit, v, sent, count, state + unit,
                theta, worth, extra, unit, width * own, cap, signed, single,
            )  # fmt: skip
        else:
            for i in range(unit, unit + width * channels, channels):
                _fire(
                    memory, first, other, there + i, added, out, to + i, v, sent, count, state + i,
                    theta, worth, extra, i, used, cap, signed, single,
                )  # fmt: skip
                first += own


@njit(nogil=True, error_model="numpy")
def _reset(memory, bias, first, own, pixels):
    """Every pixel's sums begin with the bias."""
    if own % _LANES == 0:
        _fill(memory, bias, first, own, pixels)
    else:
        for i in range(pixels * own):
            memory[i] = bias[first + i % own]


@intrinsic
def _fill(typingctx, memory, bias, first, own, pixels):
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
