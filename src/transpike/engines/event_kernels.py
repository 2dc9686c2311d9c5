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
from numba import njit, prange

from transpike.engines.event_vectors import fill, fire_vectors, pack, scatter
from transpike.engines.vectors import LANES

__all__ = ["currents", "spikes"]

_SLACK = LANES  # numbers behind a buffer that vectors may touch


@njit(nogil=True, error_model="numpy")
def _events(x, first, size, index, value, place):
    """Positions (from ``first``) and values of what is not 0 among ``x[first : first + size]`` into the lists from ``place`` on.

    Returns where they end.
    """
    count = pack(x, first, size, index, value, place)
    for i in range(size - size % LANES, size):
        if x[first + i] != 0:
            index[count], value[count] = i, x[first + i]
            count += 1
    return count


@njit(nogil=True, error_model="numpy")
def _fire(x, at, other, there, added, out, to, v, sent, count, unit, theta, worth, extra, number, size, cap, signed, single):
    """One step of ``size`` neurons, see `transpike.spiking.neurons.step`, with ``x`` (and ``other`` if ``added``) as current."""
    fire_vectors(
        x, at, other, there, added, out, to, v, sent, count, unit, theta, worth, extra, number, size, cap, signed, single
    )  # fmt: skip
    for i in range(size - size % LANES, size):
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
    room = np.empty(size + LANES, np.float32)
    ahead = (-room.ctypes.data % (4 * LANES)) // 4
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
                        scatter(
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
                            scatter(
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
    if own % LANES == 0:
        fill(memory, bias, first, own, pixels)
    else:
        for i in range(pixels * own):
            memory[i] = bias[first + i % own]
