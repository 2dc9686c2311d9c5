"""Event-driven synapses for the CPU: what is 0 costs nothing, what is not adds its weights to the outputs that it meets.

First every pixel's events (the channels that are not 0) become bits of a few words. Then each line of outputs walks along the
input columns: what they have in common with the line is added in registers, one row of weights for an event.

    I[oy, ox, :] += x[iy, ix, c] * W[ky, kx, c, :]     iy = oy stride + dilation ky - padding, likewise ix

A line takes all steps before the next one begins: potentials, counts and weights stay in the first-level cache. Compiled once by
numba and cached on disk. Sums are taken in another order than a dense convolution takes them.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUntypedFunctionDecorator=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from transpike.engines.event_vectors import fire_vectors, line, occupied
from transpike.engines.vectors import LANES

__all__ = ["Geometry", "currents", "events", "looked", "spikes"]

_PARTS = 64  # of the work, at most: threads take them in turn
_LOOKS, _LOOKED = 16, 1024  # parts of an input whose density is measured, and how many numbers each has
_LOOKERS = 8  # parts in which events are found: each learns anew what they are worth


class Geometry(NamedTuple):
    """A synapse as the kernels see it; see `transpike.engines.events.Synapse`.

    Args:
        rows, stride, padding, dilation: of the kernel, vertically. margin: columns of 0s before an input's first.
        columns, vectors: what a line holds in registers; ``blocks`` times ``vectors`` vectors are all channels of a group.
        taps, hop, step, segment: input columns that an output sees one by one; their distance for neighbouring outputs and for
            neighbouring taps; weights of a tap.
        words, packed, slots: words of an input column with all rows that a line sees; rows in a word, or the words of a row if
            it takes several; words of a pixel, all groups.
        bank: weights of a block. nested: do all blocks take a line before the next one?
    """

    height: int
    width: int
    channels: int
    groups: int
    out_height: int
    out_width: int
    out_channels: int
    rows: int
    stride: int
    padding: int
    dilation: int
    margin: int
    columns: int
    vectors: int
    blocks: int
    taps: int
    hop: int
    step: int
    segment: int
    words: int
    packed: int
    slots: int
    bank: int
    nested: int


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
    """Which channels of ``x`` (frames NHWC, flat) are not 0: bits of each pixel's words, each group begins with one of its own.

    Returns:
        The words, and what an event of each channel is worth where that is the same for all, else nothing.
    """
    pixels, own, slots = frames * g.height * g.width, g.channels // g.groups, g.slots // g.groups
    found = np.empty(pixels * g.slots, np.int64)
    parts = min(pixels, _LOOKERS)
    worth, same = np.zeros((parts, g.channels), np.float32), np.ones(parts, np.bool_)
    for part in prange(parts):
        known = worth[part]
        for pixel in range(pixels * part // parts, pixels * (part + 1) // parts):
            for group in range(g.groups):
                for slot in range(slots):
                    begin, size = group * own + 64 * slot, min(64, own - 64 * slot)
                    first = pixel * g.channels + begin
                    word, new = occupied(x, first, known, begin, size)
                    for i in range(size - size % LANES, size):
                        if x[first + i] != 0:
                            word |= 1 << i
                            new |= 1 << i
                    found[pixel * g.slots + group * slots + slot] = word
                    if new != 0 and same[part]:
                        same[part] = _learn(x, first, known, begin, size)
    for part in range(1, parts):
        if not same[part] or not _learn(worth[part], 0, worth[0], 0, g.channels):
            same[0] = False
    return found, worth[0] if same[0] else np.empty(0, np.float32)


@njit(nogil=True, error_model="numpy")
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


@njit(nogil=True, error_model="numpy")
def _gather(found, frame, oy, group, g, words):
    """The words of all columns that line ``oy`` of a frame sees, row under row; what lies in the margin stays 0."""
    own, slots = g.channels // g.groups, g.slots // g.groups
    span = len(words) // g.words
    last = min(g.width, span - g.margin)
    for row in range(g.rows):
        y = oy * g.stride + row * g.dilation - g.padding
        inside = 0 <= y < g.height
        first = ((frame * g.height + y) * g.width) * g.slots + group * slots
        for slot in range(slots):
            word = row * slots + slot if g.packed == 0 else row // g.packed
            begins, shift = g.packed == 0 or row % g.packed == 0, 0 if g.packed == 0 else row % g.packed * own
            line = words[word * span + g.margin : word * span + g.margin + last]
            if begins and not inside:
                line[:] = 0
            elif inside and g.slots == 1:
                there = found[first : first + last]
                if begins:
                    for i in range(last):
                        line[i] = there[i]
                else:
                    for i in range(last):
                        line[i] |= there[i] << shift
            elif inside:
                for i in range(last):
                    more = found[first + i * g.slots + slot] << shift
                    line[i] = more if begins else line[i] | more


@njit(nogil=True, error_model="numpy")
def _sum(x, found, worth, weights, bias, offsets, frame, oy, block, g, words, out, to, pitch):
    """The sums of line ``oy`` of a frame, of the channels of ``block``, to ``out[to]`` and on, pixels ``pitch`` apart."""
    group, own = block // g.blocks, g.channels // g.groups
    if block % g.blocks == g.blocks - 1 or not g.nested:
        _gather(found, frame, oy, group, g, words)
    first = ((frame * g.height + oy * g.stride - g.padding) * g.width - g.margin) * g.channels
    known = len(worth) > 0  # then it is read instead of the input, at every pixel and row
    line(
        g.columns, g.vectors, g.out_width, g.taps, g.hop, g.step, g.words, g.segment, 0 if known else g.channels,
        len(words) // g.words, words, offsets[int(known)], worth if known else x, group * own + (0 if known else first),
        weights, block * g.bank, bias, block * g.vectors * LANES, out, to, pitch,
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


@njit(nogil=True, error_model="numpy")
def _channels(block, g):
    """First channel of a block and how many it has."""
    own = g.out_channels // g.groups
    first = (block % g.blocks) * g.vectors * LANES
    return block // g.blocks * own + first, min(g.vectors * LANES, own - first)


@njit(nogil=True, error_model="numpy")
def _line(x, found, worth, weights, bias, offsets, frame, oy, block, g, words, sums):
    """Sums of a line: of all blocks if they are nested, else of ``block``, in the place of its channels.

    The last block comes first: what it has more vectors than channels, the next pixel's first block writes over.
    """
    for one in range(g.blocks * g.groups - 1 if g.nested else block, -1 if g.nested else block - 1, -1):
        _sum(x, found, worth, weights, bias, offsets, frame, oy, one, g, words, sums, _channels(one, g)[0], g.out_channels)


@njit(nogil=True, error_model="numpy")
def _whose(job, lines, g):
    """Line, block, first channel and number of channels of a job; the lines of a block follow each other."""
    if g.nested:
        return job, 0, 0, g.out_channels
    channel, size = _channels(job // lines, g)
    return job % lines, job // lines, channel, size


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def currents(x, found, worth, weights, bias, offsets, out, frames, g):
    """Currents ``out`` (frames NHWC, flat) of the synapses for the input ``x`` (frames NHWC, flat) with its events."""
    lines, pitch = frames * g.out_height, g.out_width * g.out_channels
    jobs = lines if g.nested else lines * g.blocks * g.groups
    parts = min(jobs, _PARTS)
    for part in prange(parts):
        words, sums = _rooms(g)
        for job in range(jobs * part // parts, jobs * (part + 1) // parts):
            row, block, channel, size = _whose(job, lines, g)
            _line(x, found, worth, weights, bias, offsets, row // g.out_height, row % g.out_height, block, g, words, sums)
            if g.nested:
                out[row * pitch : (row + 1) * pitch] = sums[:pitch]
            else:
                for at in range(channel, pitch, g.out_channels):
                    for i in range(at, at + size):
                        out[row * pitch + i] = sums[i]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def spikes(
    x, found, worth, weights, bias, offsets, other, others, out, v, sent, count, theta, value, extra, steps, samples, g, cap, signed
):  # fmt: skip
    """What neurons behind the synapses emit: ``steps`` frames of each of ``samples``, steps outermost; updates their state.

    Args:
        other: another current of the same neurons (frames NHWC, flat); ``others``: 0 where there is none, 1 where it is the
            same at every step, 2 where it has a frame for each.
        v, sent, count, theta, value, extra: as for `transpike.engines.kernels.fire`.
    """
    lines, pitch = samples * g.out_height, g.out_width * g.out_channels
    jobs = lines if g.nested else lines * g.blocks * g.groups
    parts, single = min(jobs, _PARTS), cap == 1 and not signed
    for part in prange(parts):
        words, sums = _rooms(g)
        for job in range(jobs * part // parts, jobs * (part + 1) // parts):
            row, block, channel, size = _whose(job, lines, g)
            sample, oy = row // g.out_height, row % g.out_height
            pixels, size = (1, pitch) if size == g.out_channels else (g.out_width, size)
            for t in range(steps):
                frame = t * samples + sample
                _line(x, found, worth, weights, bias, offsets, frame, oy, block, g, words, sums)
                to = (frame * g.out_height + oy) * pitch + channel
                there = to if others == 2 else row * pitch + channel
                _fire(
                    sums, channel, other, there, others > 0, out, to, v, sent, count, row * pitch + channel,
                    theta, value, extra, oy * pitch + channel, pixels, g.out_channels, size, cap, signed, single,
                )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def _fire(
    x, at, other, there, added, out, to, v, sent, count, unit, theta, worth, extra, number, pixels, pitch, size, cap, signed, single
):  # fmt: skip
    """One step of ``size`` neurons of each of ``pixels``, ``pitch`` apart; see `transpike.spiking.neurons.step`.

    Their current is ``x``, and ``other`` if ``added``.
    """
    fire_vectors(
        x, at, other, there, added, out, to, v, sent, count, unit, theta, worth, extra, number, pixels, pitch, size, cap,
        signed, single,
    )  # fmt: skip
    if size % LANES == 0:
        return
    for pixel in range(pixels):
        for i in range(pixel * pitch + size - size % LANES, pixel * pitch + size):
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
