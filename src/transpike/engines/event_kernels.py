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

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from transpike.engines.event_vectors import fire_vectors, line, numbers_of, occupied, word
from transpike.engines.vectors import LANES

__all__ = ["SPARE", "Geometry", "events", "looked", "numbers", "respond"]

_PARTS = 64  # of the work, at most: threads take them in turn
_LOOKS, _LOOKED = 16, 1024  # parts of an input whose density is measured, and how many numbers each has
SPARE = 8  # bytes behind the last pixel's bits: a word is read wherever one begins
_BLOCK = 1024  # units whose numbers are made at once
_LOOKERS = 8  # parts in which events are found: each learns anew what they are worth


class Geometry(NamedTuple):
    """A synapse as the kernels see it; see `transpike.engines.events.Synapse`.

    Args:
        rows, stride, padding, dilation: of the kernel, vertically. margin: columns of 0s before an input's first.
        columns, vectors: what a line holds in registers; ``blocks`` times ``vectors`` vectors are all channels of a group.
        taps, hop, step, segment: input columns that an output sees one by one; their distance for neighbouring outputs and for
            neighbouring taps; weights of a tap.
        words, packed: words of an input column with all rows that a line sees; rows in a word, 0 where a row takes several.
        bytes: of an input pixel's bits; each group begins with one of its own.
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
    bytes: int
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


@njit(nogil=True, error_model="numpy")
def _sum(x, found, worth, weights, folded, bias, offsets, frame, oy, block, g, words, out, to, pitch):
    """The sums of line ``oy`` of a frame, of the channels of ``block``, to ``out[to]`` and on, pixels ``pitch`` apart."""
    group, own = block // g.blocks, g.channels // g.groups
    if block % g.blocks == g.blocks - 1 or not g.nested:
        _gather(found, frame, oy, group, g, words)
    first = ((frame * g.height + oy * g.stride - g.padding) * g.width - g.margin) * g.channels
    known = len(worth) > 0  # then it is read instead of the input, at every pixel and row
    line(
        g.columns, g.vectors, folded, g.out_width, g.taps, g.hop, g.step, g.words, g.segment, 0 if known else g.channels,
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
def _line(x, found, worth, weights, folded, bias, offsets, frame, oy, block, g, words, sums):
    """Sums of a line: of all blocks if they are nested, else of ``block``, in the place of its channels.

    The last block comes first: what it has more vectors than channels, the next pixel's first block writes over.
    """
    for one in range(g.blocks * g.groups - 1 if g.nested else block, -1 if g.nested else block - 1, -1):
        _sum(x, found, worth, weights, folded, bias, offsets, frame, oy, one, g, words, sums, _channels(one, g)[0], g.out_channels)


@njit(nogil=True, error_model="numpy")
def _whose(job, lines, g):
    """Line, block, first channel and number of channels of a job; the lines of a block follow each other."""
    if g.nested:
        return job, 0, 0, g.out_channels
    channel, size = _channels(job // lines, g)
    return job % lines, job // lines, channel, size


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def respond(
    x, found, worth, weights, folded, bias, offsets, fires, other, beside, others, out, bits, marked, v, sent, count, theta, value,
    extra, steps, samples, g, cap, signed,
):  # fmt: skip
    """What synapses give for ``steps`` frames of each of ``samples``, steps outermost, or what neurons behind them emit.

    Args:
        x, found, worth: the input's frames (NHWC, flat), their bits, and what an event of each channel is worth; see `events`.
        folded: are the weights multiplied by that already? Then nothing else than the bits is read.
        fires: False: currents go to ``out`` and nothing below matters; True: neurons fire, their state is updated.
        other: another current of the same neurons (frames NHWC, flat); ``others``: 0 where there is none, 1 where it is the
            same at every step, 2 where it has a frame for each, 3 where it is spikes: ``beside`` are their bits, ``other`` is
            what one of each unit is worth.
        out: is written, but where ``marked`` neurons fire once at most: then their bits say it all.
        bits: where neurons emit something (frames NHWC), if they are ``marked``: 1, else 0.
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
                _line(x, found, worth, weights, folded, bias, offsets, frame, oy, block, g, words, sums)
                to = (frame * g.out_height + oy) * pitch + channel
                if not fires:
                    for at in range(0, pixels * g.out_channels, g.out_channels):
                        for i in range(at, at + size):
                            out[to + i] = sums[channel + i]
                    continue
                there = to if others >= 2 else row * pitch + channel
                _fire(
                    sums, channel, other, there, beside, others, out, to, bits, marked, v, sent, count, row * pitch + channel,
                    theta, value, extra, oy * pitch + channel, pixels, g.out_channels, size, cap, signed, single,
                )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def _fire(
    x, at, other, there, beside, others, out, to, bits, marked, v, sent, count, unit, theta, worth, extra, number, pixels, pitch,
    size, cap, signed, single,
):  # fmt: skip
    """One step of ``size`` neurons of each of ``pixels``, ``pitch`` apart; see `transpike.spiking.neurons.step`.

    Their current is ``x``, and what the other synapses give, see `respond`.
    """
    fire_vectors(
        x, at, other, there, beside, others, out, to, bits, marked, v, sent, count, unit, theta, worth, extra, number, pixels,
        pitch, size, cap, signed, single,
    )  # fmt: skip
    if size % LANES == 0:
        return
    for pixel in range(pixels):
        for i in range(pixel * pitch + size - size % LANES, pixel * pitch + size):
            current = x[at + i] + other[there + i] if others > 0 else x[at + i]
            m = v[unit + i] + (current + extra[number + i])
            s = np.floor(m / theta[number + i])
            s = min(max(s, -sent[unit + i] if signed else np.float32(0)), cap)
            if signed:
                sent[unit + i] += s
            out[to + i] = worth[number + i] * s
            v[unit + i] = m - theta[number + i] * s
            count[unit + i] += abs(s)
