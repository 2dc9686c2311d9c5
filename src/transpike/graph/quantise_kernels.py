"""The quantising activation and its gradients for the CPU, one pass over memory each (torch needs six and nine).

Compiled once by numba and cached on disk. `quantise` rounds operation by operation as torch does (no fused multiply-add,
no reassociation), so its levels are identical to torch's; the sums in `straight_through` may be reordered.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

__all__ = ["quantise", "straight_through"]

_JOBS = 16  # parts that are summed in a fixed order: the result does not depend on the number of threads


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def quantise(z, out, top, levels):
    """``out = clip(floor((L z + top / 2) / top), 0, L) (top / L)`` in the dtype of ``z``; all flat."""
    zero, half, step = z.dtype.type(0), top * z.dtype.type(0.5), top / levels
    for job in prange(_JOBS):
        for i in range(z.size * job // _JOBS, z.size * (job + 1) // _JOBS):
            n = np.floor((z[i] * levels + half) / top)
            out[i] = min(max(n, zero), levels) * step


@njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def straight_through(z, grad, for_z, top, levels):
    """Gradient to ``z`` into ``for_z``; returns the gradient to the ceiling."""
    zero, half, share, over = z.dtype.type(0), top * z.dtype.type(0.5), 1 / levels, 1 / top
    parts = np.zeros(_JOBS, np.float64)
    for job in prange(_JOBS):
        low, high = z.size * job // _JOBS, z.size * (job + 1) // _JOBS
        for start in range(low, high, 1024):  # short sums in the dtype of z, long ones in double precision
            total = zero
            for i in range(start, min(start + 1024, high)):
                n = np.floor((z[i] * levels + half) / top)
                g = grad[i]
                inside = n >= zero and n <= levels
                for_z[i] = g if inside else zero
                total += g * (n * share - z[i] * over if inside else (z.dtype.type(1) if n > levels else zero))
            parts[job] += total
    return parts.sum()
