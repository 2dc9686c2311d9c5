"""Fused neuron kernel for the CPU: all steps of a block of neurons while their state is in the first-level cache.

Compiled once by numba and cached on disk. It computes what `transpike.spiking.neurons.step` defines, operation
by operation (no fused multiply-add, no reassociation), so its spikes are identical.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import get_num_threads, njit, prange, set_num_threads

__all__ = ["Halves", "count_levels", "fire", "threads_for"]

_BLOCK = 1024  # units
_WORTH_THREADS = 1 << 17  # elements


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """Run kernels on torch's number of threads, or on one where there is little to do.

    On a busy machine waiting for a second thread takes milliseconds.
    """
    before = get_num_threads()
    set_num_threads(max(1, min(before, torch.get_num_threads())) if elements >= _WORTH_THREADS else 1)
    try:
        yield
    finally:
        set_num_threads(before)


class Halves(NamedTuple):
    """Currents in parts, ``sums + bias + beside + worth counts``, and where spikes go: numbers of bfloat16 as bits of int16.

    Attributes:
        sums: what low precision multiplies, flat in the order steps, samples, units; empty where there are none.
        bias: of each unit.
        beside: what is added in the format of the currents, flat as ``sums``, or empty; alone where those are numbers.
        counts: spikes of others, flat as ``sums``, or empty. worth: what one of them is worth, of each unit.
        spikes: room for those that are sent, flat as ``sums``, in the place of their worth; or empty.
    """

    sums: Any = np.empty(0, np.int16)
    bias: Any = np.empty(0, np.float32)
    beside: Any = np.empty(0, np.float32)
    counts: Any = np.empty(0, np.int16)
    worth: Any = np.empty(0, np.float32)
    spikes: Any = np.empty(0, np.int16)


@njit(inline="always")
def _widen(row, halves, low, first, wide):
    """The currents of one row, summed in the order of their parts; ``wide`` is room for the bits of a float32 each."""
    size, values = len(row), wide.view(np.float32)
    sums, bias = halves.sums[first : first + size], halves.bias[low : low + size]
    for i in range(size):
        wide[i] = np.int32(sums[i]) << 16
    for i in range(size):
        row[i] = values[i] + bias[i]
    if halves.beside.size:
        beside = halves.beside[first : first + size]
        for i in range(size):
            row[i] += beside[i]
    if halves.counts.size:
        counts, worth = halves.counts[first : first + size], halves.worth[low : low + size]
        for i in range(size):
            wide[i] = np.int32(counts[i]) << 16
        for i in range(size):
            row[i] += worth[i] * values[i]


@njit(inline="always")
def _narrow(row, to):
    """Spike counts to bfloat16: exact to 256, the nearest beyond."""
    bits = row.view(np.int32)
    for i in range(len(to)):
        to[i] = (bits[i] + 0x7FFF + ((bits[i] >> 16) & 1)) >> 16


@njit(inline="always")
def _fire_once(row, vv, th, ex, cc, to):
    """A step of neurons that fire once at most: their spikes as bfloat16, without going through numbers."""
    zero, one, mark = row.dtype.type(0), row.dtype.type(1), np.int16(0x3F80)
    for i in range(len(to)):
        m = vv[i] + (row[i] + ex[i])
        s = one if m >= th[i] else zero
        vv[i] = m - th[i] * s
        cc[i] += s
        to[i] = mark if m >= th[i] else np.int16(0)


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def fire(x, constant, halves, v, sent, count, theta, worth, extra, steps, samples, units, cap, signed):
    """Currents ``x`` become ``worth * spikes`` in place; state arrays are updated.

    Args:
        x: currents of all steps, flat in the order steps, samples, units.
        constant: current of one step (samples, units) if it is the same at every step, else empty.
        halves: `Halves` that the currents are made of in the place of ``x``; or, with no sums, what is added to ``x``; else
            empty ones. If there is room in them for spikes, that is where they go, ``worth`` is 1 for all, and ``x`` is empty.
        v, sent, count: potential, net spikes and spikes of either sign (samples, units), flat;
            ``sent`` is empty for unsigned neurons, whose net spikes are ``count``.
        theta, worth, extra: threshold, value of a spike and per-step current of each unit.
        cap: most spikes in a step, in the dtype of ``x`` (infinity for no limit).
    """
    blocks = (units + _BLOCK - 1) // _BLOCK
    zero, one, counted = x.dtype.type(0), x.dtype.type(1), halves.spikes.size > 0
    for job in prange(samples * blocks):
        n, low = job // blocks, (job % blocks) * _BLOCK
        size = min(_BLOCK, units - low)
        start = n * units + low
        th, vv, ex = np.empty(size, x.dtype), np.empty(size, x.dtype), np.empty(size, x.dtype)
        out = worth[low : low + size]
        cc, net = np.zeros(size, x.dtype), np.zeros(size, x.dtype)
        wide, own = np.empty(size, np.int32), np.empty(size, x.dtype)
        for i in range(size):
            th[i], vv[i], ex[i] = theta[low + i], v[start + i], extra[low + i]
        if signed:
            for i in range(size):
                net[i] = sent[start + i]
        for t in range(steps):
            first = (t * samples + n) * units + low
            row = own if counted else x[first : first + size]
            if constant.size:
                for i in range(size):
                    row[i] = constant[start + i]
            elif halves.sums.size:
                _widen(row, halves, low, first, wide)
            elif halves.beside.size:
                beside = halves.beside[first : first + size]
                for i in range(size):
                    row[i] += beside[i]
            if signed:
                for i in range(size):
                    m = vv[i] + (row[i] + ex[i])
                    s = min(max(np.floor(m / th[i]), -net[i]), cap)
                    row[i] = out[i] * s
                    vv[i] = m - th[i] * s
                    net[i] += s
                    cc[i] += abs(s)
            elif cap == one and counted:
                _fire_once(row, vv, th, ex, cc, halves.spikes[first : first + size])
            elif cap == one:
                for i in range(size):
                    m = vv[i] + (row[i] + ex[i])
                    s = one if m >= th[i] else zero
                    row[i] = out[i] * s
                    vv[i] = m - th[i] * s
                    cc[i] += s
            else:
                for i in range(size):
                    m = vv[i] + (row[i] + ex[i])
                    s = min(max(np.floor(m / th[i]), zero), cap)
                    row[i] = out[i] * s
                    vv[i] = m - th[i] * s
                    cc[i] += s
            if counted and (signed or cap != one):
                _narrow(row, halves.spikes[first : first + size])
        for i in range(size):
            v[start + i] = vv[i]
            count[start + i] += cc[i]
        if signed:
            for i in range(size):
                sent[start + i] = net[i]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def count_levels(z, theta, share, extra, v, steps, most, counts, limit):
    """Mean currents ``z`` (samples, units) become mean outputs in place; what `parallel_count` counts, times ``share``.

    Args:
        theta, share, extra, v: threshold, what one spike adds to the mean output, per-step current and initial potential of
            each unit, or of the first ones if those after them repeat them.
        most: of spikes in all, in the dtype of ``z`` (infinity for no limit).
        counts: the spikes themselves are written there (samples, units), unless empty. limit: the largest number it holds.

    Returns:
        How many units have more spikes than ``counts`` holds: those are not what was written.
    """
    zero, samples, units = z.dtype.type(0), z.shape[0], z.shape[1]
    size = len(theta) if len(theta) < units else min(_BLOCK, units)
    blocks = (units + size - 1) // size
    lost = np.zeros(samples * blocks, np.int64)
    for job in prange(samples * blocks):
        n, low = job // blocks, (job % blocks) * size
        high, own = min(low + size, units), 0 if len(theta) < units else low
        row, width = z[n, low:high], high - low
        th, sh, ex, vv = theta[own : own + width], share[own : own + width], extra[own : own + width], v[own : own + width]
        if counts.size:
            kept, over = counts[n, low:high], 0
            for i in range(width):
                spikes = min(max(np.floor(((row[i] + ex[i]) * steps + vv[i]) / th[i]), zero), most)
                kept[i] = spikes
                over += spikes > limit
                row[i] = spikes * sh[i]
            lost[job] = over
        else:
            for i in range(width):
                row[i] = min(max(np.floor(((row[i] + ex[i]) * steps + vv[i]) / th[i]), zero), most) * sh[i]
    return lost.sum()
