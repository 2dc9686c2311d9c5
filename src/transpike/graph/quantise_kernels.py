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
_SHORT = 256  # rows


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def quantise(z, out, tops, levels):
    """``out = clip(floor((L z + top / 2) / top), 0, L) (top / L)`` in the dtype of ``z``; z is outer x groups x inner."""
    outer, groups, inner = z.shape
    zero, halves, steps = z.dtype.type(0), tops * z.dtype.type(0.5), tops / levels
    for job in prange(_JOBS):
        for row in range(outer * job // _JOBS, outer * (job + 1) // _JOBS):
            if inner == 1:
                for g in range(groups):
                    n = np.floor((z[row, g, 0] * levels + halves[g]) / tops[g])
                    out[row, g, 0] = min(max(n, zero), levels) * steps[g]
            else:
                for g in range(groups):
                    top, half, step = tops[g], halves[g], steps[g]
                    for i in range(inner):
                        n = np.floor((z[row, g, i] * levels + half) / top)
                        out[row, g, i] = min(max(n, zero), levels) * step


@njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def straight_through(z, grad, for_z, tops, levels):
    """Gradient to ``z`` into ``for_z``; returns the gradient to the ceiling of every group. z is outer x groups x inner."""
    outer, groups, inner = z.shape
    zero, one, halves = z.dtype.type(0), z.dtype.type(1), tops * z.dtype.type(0.5)
    share, over = one / levels, one / tops
    parts = np.zeros((_JOBS, groups), np.float64)
    for job in prange(_JOBS):
        low, high = outer * job // _JOBS, outer * (job + 1) // _JOBS
        for start in range(low, high, _SHORT):  # short sums in the dtype of z, long ones in double precision
            totals = np.zeros(groups, z.dtype)
            for row in range(start, min(start + _SHORT, high)):
                if inner == 1:
                    for g in range(groups):
                        value, up = z[row, g, 0], grad[row, g, 0]
                        n = np.floor((value * levels + halves[g]) / tops[g])
                        inside = n >= zero and n <= levels
                        for_z[row, g, 0] = up if inside else zero
                        totals[g] += up * (n * share - value * over[g] if inside else (one if n > levels else zero))
                else:
                    for g in range(groups):
                        top, half, inverse, total = tops[g], halves[g], over[g], zero
                        for i in range(inner):
                            value, up = z[row, g, i], grad[row, g, i]
                            n = np.floor((value * levels + half) / top)
                            inside = n >= zero and n <= levels
                            for_z[row, g, i] = up if inside else zero
                            total += up * (n * share - value * inverse if inside else (one if n > levels else zero))
                        parts[job, g] += total
            for g in range(groups):
                parts[job, g] += totals[g]
    return parts.sum(0)
