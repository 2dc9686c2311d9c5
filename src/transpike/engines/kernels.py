"""Fused neuron kernel for the CPU: all steps of a block of neurons while their state is in the first-level cache.

Compiled once by numba and cached on disk. It computes what `transpike.spiking.neurons.step` defines, operation
by operation (no fused multiply-add, no reassociation), so its spikes are identical.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numba import get_num_threads, njit, prange, set_num_threads

__all__ = ["count_levels", "fire", "threads_for"]

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


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def fire(x, constant, v, sent, count, theta, worth, extra, steps, samples, units, cap, signed):
    """Currents ``x`` become ``worth * spikes`` in place; state arrays are updated.

    Args:
        x: currents of all steps, flat in the order steps, samples, units.
        constant: current of one step (samples, units) if it is the same at every step, else empty.
        v, sent, count: potential, net spikes and spikes of either sign (samples, units), flat;
            ``sent`` is empty for unsigned neurons, whose net spikes are ``count``.
        theta, worth, extra: threshold, value of a spike and per-step current of each unit.
        cap: most spikes in a step, in the dtype of ``x`` (infinity for no limit).
    """
    blocks = (units + _BLOCK - 1) // _BLOCK
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for job in prange(samples * blocks):
        n, low = job // blocks, (job % blocks) * _BLOCK
        size = min(_BLOCK, units - low)
        start = n * units + low
        th, vv, ex = np.empty(size, x.dtype), np.empty(size, x.dtype), np.empty(size, x.dtype)
        out = worth[low : low + size]
        cc, net = np.zeros(size, x.dtype), np.zeros(size, x.dtype)
        for i in range(size):
            th[i], vv[i], ex[i] = theta[low + i], v[start + i], extra[low + i]
        if signed:
            for i in range(size):
                net[i] = sent[start + i]
        for t in range(steps):
            first = (t * samples + n) * units + low
            row = x[first : first + size]
            if constant.size:
                for i in range(size):
                    row[i] = constant[start + i]
            if signed:
                for i in range(size):
                    m = vv[i] + (row[i] + ex[i])
                    s = min(max(np.floor(m / th[i]), -net[i]), cap)
                    row[i] = out[i] * s
                    vv[i] = m - th[i] * s
                    net[i] += s
                    cc[i] += abs(s)
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
        for i in range(size):
            v[start + i] = vv[i]
            count[start + i] += cc[i]
        if signed:
            for i in range(size):
                sent[start + i] = net[i]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def count_levels(z, theta, share, extra, v, steps, most, counts):
    """Mean currents ``z`` (samples, units) become mean outputs in place; what `parallel_count` counts, times ``share``.

    Args:
        theta, share, extra, v: threshold, what one spike adds to the mean output, per-step current and initial potential of
            each unit, or of the first ones if those after them repeat them.
        most: of spikes in all, in the dtype of ``z`` (infinity for no limit).
        counts: the spikes themselves are written there (samples, units), unless it is empty.
    """
    zero, samples, units = z.dtype.type(0), z.shape[0], z.shape[1]
    size = len(theta) if len(theta) < units else min(_BLOCK, units)
    blocks = (units + size - 1) // size
    for job in prange(samples * blocks):
        n, low = job // blocks, (job % blocks) * size
        high, own = min(low + size, units), 0 if len(theta) < units else low
        row, width = z[n, low:high], high - low
        th, sh, ex, vv = theta[own : own + width], share[own : own + width], extra[own : own + width], v[own : own + width]
        if counts.size:
            kept = counts[n, low:high]
            for i in range(width):
                spikes = min(max(np.floor(((row[i] + ex[i]) * steps + vv[i]) / th[i]), zero), most)
                kept[i] = spikes
                row[i] = spikes * sh[i]
        else:
            for i in range(width):
                row[i] = min(max(np.floor(((row[i] + ex[i]) * steps + vv[i]) / th[i]), zero), most) * sh[i]
