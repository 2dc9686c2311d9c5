"""Event-driven synapses for the CPU: what is 0 costs nothing, what is not adds its weights to the outputs that it meets.

Every pixel's events (the channels that are not 0) are a bit each. A line of outputs walks along the input columns: what they have
in common with the line is added in registers, one row of weights for an event.

    I[oy, ox, :] += x[iy, ix, c] * W[ky, kx, c, :]     iy = oy stride + dilation ky - padding, likewise ix

A line takes all steps before the next one begins: potentials, counts and weights stay in the first-level cache. Its neurons fire
from the same pass and emit bits, which the next synapse reads as they are. Compiled once by numba and cached on disk. Sums are
taken in another order than a dense convolution takes them.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedFunctionDecorator=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from transpike.engines.event_vectors import SPARE, fire_vectors, line, numbers_of, occupied, word
from transpike.engines.vectors import LANES

__all__ = ["events", "looked", "numbers", "respond"]

_PARTS = 64  # of the work, at most: threads take them in turn
_LOOKS, _LOOKED = 16, 1024  # parts of an input whose density is measured, and how many numbers each has
_BLOCK = 1024  # units whose numbers are made at once
_LOOKERS = 8  # parts in which events are found: each learns anew what they are worth

# inlined: a call would copy tuples of arrays and count who uses each of them, which takes as long as a line's neurons
_inlined = njit(nogil=True, error_model="numpy", forceinline=True)


@njit(cache=True, nogil=True, error_model="numpy")
def looked(x):
    """How many numbers are not 0 in some places of ``x``, and how many were looked at."""
    found, total, apart = 0, 0, max(_LOOKED, len(x) // _LOOKS)
    for first in range(0, len(x), apart):
        part = x[first : first + _LOOKED]
        total += len(part)
        for i in range(len(part)):
            found += part[i] != 0
    return found, total


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def events(x, frames, g):
    """Which channels of ``x`` (frames NHWC, flat) are not 0: `Geometry.bytes` of bits for each pixel.

    Returns:
        The bits and `SPARE` bytes, and what an event of each channel is worth where that is the same for all, else nothing.
    """
    pixels, own = frames * g.height * g.width, g.channels // g.groups
    found = np.empty(pixels * g.bytes + SPARE, np.uint8)
    parts = min(pixels, _LOOKERS)
    worth, same = np.zeros((parts, g.channels), np.float32), np.ones(parts, np.bool_)
    for part in prange(parts):
        known = worth[part]
        for pixel in range(pixels * part // parts, pixels * (part + 1) // parts):
            for group in range(g.groups):
                begin, to = group * own, pixel * g.bytes + group * (g.bytes // g.groups)
                first = pixel * g.channels + begin
                new = occupied(x, first, known, begin, own, found, to)
                for i in range(own - own % LANES, own):
                    lit = x[first + i] != 0
                    before = 0 if i % 8 == 0 else found[to + i // 8]
                    found[to + i // 8] = before | lit << i % 8
                    new |= lit
                if new and same[part]:
                    same[part] = _learn(x, first, known, begin, own)
    for part in range(1, parts):
        if not same[part] or not _learn(worth[part], 0, worth[0], 0, g.channels):
            same[0] = False
    return found, worth[0] if same[0] else np.empty(0, np.float32)


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def numbers(bits, worth, before, summed, out, steps, samples):
    """What neurons emit, as numbers (frames NHWC, flat, steps outermost): the worth of each unit where its bit is 1.

    Args:
        before: samples, flat. summed: add up what each sample emits over the steps, from ``before`` on.
    """
    units = len(worth)
    blocks, zeros = (units + _BLOCK - 1) // _BLOCK, np.zeros(_BLOCK, np.float32)
    for job in prange(samples * blocks):
        n, low = job // blocks, (job % blocks) * _BLOCK
        size = min(_BLOCK, units - low)
        for t in range(steps):
            to = (t * samples + n) * units + low
            if not summed:
                numbers_of(bits, worth, low, zeros, 0, out, to, size)
            elif t == 0:
                numbers_of(bits, worth, low, before, n * units + low, out, to, size)
            else:
                numbers_of(bits, worth, low, out, to - samples * units, out, to, size)


@_inlined
def _learn(x, first, known, begin, size):
    """Take over what is not 0 where nothing is known; False if something else is."""
    for i in range(size):
        value = x[first + i]
        if value != 0:
            if known[begin + i] == 0:
                known[begin + i] = value
            elif known[begin + i] != value:
                return False
    return True


@_inlined
def _gather(found, frame, oy, group, g, words):
    """The words of all columns that line ``oy`` of a frame sees, row under row; what lies in the margin stays 0."""
    own, span = g.channels // g.groups, len(words) // g.words
    last = min(g.width, span - g.margin)
    for row in range(g.rows):
        y = oy * g.stride + row * g.dilation - g.padding
        inside = 0 <= y < g.height
        first = (frame * g.height + y) * g.width * g.bytes + group * (g.bytes // g.groups)
        for slot in range((own + 63) // 64):
            at = row * ((own + 63) // 64) + slot if g.packed == 0 else row // g.packed
            begins, shift = g.packed == 0 or row % g.packed == 0, 0 if g.packed == 0 else row % g.packed * own
            line = words[at * span + g.margin : at * span + g.margin + last]
            all_ones = (1 << min(64, own - 64 * slot)) - 1 if own - 64 * slot < 64 else -1
            if begins and not inside:
                line[:] = 0
            elif begins:
                for i in range(last):
                    line[i] = word(found, first + i * g.bytes + 8 * slot) & all_ones
            elif inside:
                for i in range(last):
                    line[i] |= (word(found, first + i * g.bytes + 8 * slot) & all_ones) << shift


@_inlined
def _sum(read, frame, oy, block, g, words, out, to, pitch):
    """The sums of line ``oy`` of a frame, of the channels of ``block``, to ``out[to]`` and on, pixels ``pitch`` apart."""
    group, own = block // g.blocks, g.channels // g.groups
    if block % g.blocks == g.blocks - 1 or not g.nested:
        _gather(read.bits, frame, oy, group, g, words)
    first = ((frame * g.height + oy * g.stride - g.padding) * g.width - g.margin) * g.channels
    known = len(read.worth) > 0  # then it is read instead of the input, at every pixel and row
    line(
        g.columns, g.vectors, read.folded, g.out_width, g.taps, g.hop, g.step, g.words, g.segment, 0 if known else g.channels,
        len(words) // g.words, words, read.offsets[int(known)], read.worth if known else read.numbers,
        group * own + (0 if known else first), read.weights, block * g.bank, read.bias, block * g.vectors * LANES, out, to, pitch,
    )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def _aligned(size):
    """Room for numbers that begins with a cache line: a vector on two lines takes twice as long."""
    room = np.empty(size + 16, np.float32)
    ahead = (-room.ctypes.data % 64) // 4
    return room[ahead : ahead + size]


@njit(nogil=True, error_model="numpy")
def _rooms(g):
    """A line's words and its sums."""
    columns = (g.out_width + g.columns - 2) * g.hop + (g.taps - 1) * g.step + 1
    return np.zeros(columns * g.words, np.int64), _aligned(g.out_width * g.out_channels + g.vectors * LANES)


@_inlined
def _channels(block, g):
    """First channel of a block and how many it has."""
    own = g.out_channels // g.groups
    first = (block % g.blocks) * g.vectors * LANES
    return block // g.blocks * own + first, min(g.vectors * LANES, own - first)


@_inlined
def _line(read, frame, oy, block, g, words, sums):
    """Sums of a line: of all blocks if they are nested, else of ``block``, in the place of its channels.

    The last block comes first: what it has more vectors than channels, the next pixel's first block writes over.
    """
    for one in range(g.blocks * g.groups - 1 if g.nested else block, -1 if g.nested else block - 1, -1):
        _sum(read, frame, oy, one, g, words, sums, _channels(one, g)[0], g.out_channels)


@_inlined
def _whose(job, lines, g):
    """Line, block, first channel and number of channels of a job; the lines of a block follow each other."""
    if g.nested:
        return job, 0, 0, g.out_channels
    channel, size = _channels(job // lines, g)
    return job % lines, job // lines, channel, size


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def respond(read, g, fires, beside, out, neurons, steps, samples):
    """What synapses give for ``steps`` frames of each of ``samples``, steps outermost, or what neurons behind them emit.

    Args:
        read: what the synapses read (`Reading`); ``g``: their `Geometry`.
        fires: False: currents go to ``out.numbers`` and nothing else matters; True: neurons fire, their state is updated.
        beside: what is added to the currents (`Beside`). out: where they emit (`Room`). neurons: themselves (`Neurons`).
    """
    lines, pitch = samples * g.out_height, g.out_width * g.out_channels
    jobs = lines if g.nested else lines * g.blocks * g.groups
    parts = min(jobs, _PARTS)
    for part in prange(parts):
        words, sums = _rooms(g)
        for job in range(jobs * part // parts, jobs * (part + 1) // parts):
            row, block, channel, size = _whose(job, lines, g)
            sample, oy = row // g.out_height, row % g.out_height
            pixels, size = (1, pitch) if size == g.out_channels else (g.out_width, size)
            for t in range(steps):
                frame = t * samples + sample
                _line(read, frame, oy, block, g, words, sums)
                to = (frame * g.out_height + oy) * pitch + channel
                if fires:
                    there = to if beside.kind >= 2 else row * pitch + channel
                    unit, number = row * pitch + channel, oy * pitch + channel
                    _fire(sums, channel, beside, there, out, to, neurons, unit, number, pixels, g.out_channels, size)
                else:
                    _copy(sums, channel, out, to, pixels, g.out_channels, size)


@_inlined
def _copy(x, at, out, to, pixels, pitch, size):
    """The first ``size`` numbers of each pixel, ``pitch`` apart. (In a parallel loop itself numba writes to copies of tuples.)"""
    for pixel in range(pixels):
        for i in range(pixel * pitch, pixel * pitch + size):
            out.numbers[to + i] = x[at + i]


@_inlined
def _fire(x, at, beside, there, out, to, neurons, unit, number, pixels, pitch, size):
    """One step of ``size`` neurons of each of ``pixels``, ``pitch`` apart; see `transpike.spiking.neurons.step`.

    Their current is ``x`` from ``at`` on and what is ``beside`` from ``there`` on; their state begins at ``unit``, what
    samples share at ``number``.
    """
    cap, signed = neurons.cap, neurons.signed
    fire_vectors(
        x, at, beside.numbers, there, beside.bits, beside.kind, out.numbers, to, out.bits, out.marked, neurons.v, neurons.sent,
        neurons.count, unit, neurons.theta, neurons.worth, neurons.extra, number, pixels, pitch, size, cap, signed,
        cap == 1 and not signed,
    )  # fmt: skip
    if size % LANES == 0:
        return
    for pixel in range(pixels):
        for i in range(pixel * pitch + size - size % LANES, pixel * pitch + size):
            current = x[at + i] + beside.numbers[there + i] if beside.kind > 0 else x[at + i]
            m, theta = neurons.v[unit + i] + (current + neurons.extra[number + i]), neurons.theta[number + i]
            s = np.floor(m / theta)
            s = min(max(s, -neurons.sent[unit + i] if signed else np.float32(0)), cap)
            if signed:
                neurons.sent[unit + i] += s
            out.numbers[to + i] = neurons.worth[number + i] * s
            neurons.v[unit + i] = m - theta * s
            neurons.count[unit + i] += abs(s)
