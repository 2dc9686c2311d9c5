"""One pass over what a site emitted: weighted sums per step and sample, and spikes per unit."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

__all__ = ["weigh"]

_BLOCK = 1024


@njit(parallel=True, cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def weigh(x, fan_out, totals, steps, samples, units):
    """Sum ``|x|`` weighted by ``fan_out``, ``|x|`` where it is not 0, over units, for every step and sample.

    Args:
        x: emitted activation, flat in the order steps, samples, units.
        fan_out: 3 x units: per unit of activation its synaptic operations, its spikes; per event its operations.
        totals: units; the sum of ``|x|`` over steps and samples is added.

    Returns:
        3 x steps x samples.
    """
    blocks = (units + _BLOCK - 1) // _BLOCK
    parts = np.zeros((blocks, 3, steps, samples), np.float64)
    zero = x.dtype.type(0)
    half = x.dtype.type(0.5)  # of a spike: differences of sums (max pooling) may leave a rounding error where nothing came
    for b in prange(blocks):
        low = b * _BLOCK
        size = min(_BLOCK, units - low)
        w0, w1, w2 = fan_out[0, low : low + size], fan_out[1, low : low + size], fan_out[2, low : low + size]
        sums = np.zeros(size, np.float64)
        for t in range(steps):
            for n in range(samples):
                first = (t * samples + n) * units + low
                row = x[first : first + size]
                a, s, e = zero, zero, zero
                for i in range(size):
                    y = abs(row[i])
                    a += y * w0[i]
                    s += y * w1[i]
                    e += w2[i] if y * w1[i] > half else zero
                    sums[i] += y
                parts[b, 0, t, n] += a
                parts[b, 1, t, n] += s
                parts[b, 2, t, n] += e
        for i in range(size):
            totals[low + i] += sums[i]
    total = np.zeros((3, steps, samples), np.float64)
    for b in range(blocks):
        total += parts[b]
    return total
