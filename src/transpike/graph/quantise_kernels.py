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
    """``out = clip(floor((L z + top / 2) / top), 0, L) (top / L)`` in the dtype of ``z``.

    Args:
        z, out: outer x groups x inner; or rows x line without an inner axis, where ``tops`` is one for each place of a line.
    """
    rows, zero = z.shape[0], z.dtype.type(0)
    halves, steps = tops * z.dtype.type(0.5), tops / levels
    for job in prange(_JOBS):
        for row in range(rows * job // _JOBS, rows * (job + 1) // _JOBS):
            if z.ndim == 2:
                line, to = z[row], out[row]
                for i in range(len(line)):
                    n = np.floor((line[i] * levels + halves[i]) / tops[i])
                    to[i] = min(max(n, zero), levels) * steps[i]
            else:
                for g in range(z.shape[1]):
                    line, to, top, half, step = z[row, g], out[row, g], tops[g], halves[g], steps[g]
                    for i in range(len(line)):
                        n = np.floor((line[i] * levels + half) / top)
                        to[i] = min(max(n, zero), levels) * step


@njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def straight_through(z, grad, for_z, tops, levels):
    """Gradient to ``z`` into ``for_z``; returns the gradient to every ceiling in ``tops``. Shapes as for `quantise`."""
    rows, zero, one = z.shape[0], z.dtype.type(0), z.dtype.type(1)
    halves, share, over = tops * z.dtype.type(0.5), one / levels, one / tops
    parts = np.zeros((_JOBS, len(tops)), np.float64)
    for job in prange(_JOBS):
        low, high = rows * job // _JOBS, rows * (job + 1) // _JOBS
        for start in range(low, high, _SHORT):  # short sums in the dtype of z, long ones in double precision
            totals = np.zeros(len(tops), z.dtype)
            for row in range(start, min(start + _SHORT, high)):
                if z.ndim == 2:
                    line, ups, to = z[row], grad[row], for_z[row]
                    for i in range(len(line)):
                        value, up = line[i], ups[i]
                        n = np.floor((value * levels + halves[i]) / tops[i])
                        inside = n >= zero and n <= levels
                        to[i] = up if inside else zero
                        totals[i] += up * (n * share - value * over[i] if inside else (one if n > levels else zero))
                else:
                    for g in range(z.shape[1]):
                        line, ups, to = z[row, g], grad[row, g], for_z[row, g]
                        top, half, inverse, total = tops[g], halves[g], over[g], zero
                        for i in range(len(line)):
                            value, up = line[i], ups[i]
                            n = np.floor((value * levels + half) / top)
                            inside = n >= zero and n <= levels
                            to[i] = up if inside else zero
                            total += up * (n * share - value * inverse if inside else (one if n > levels else zero))
                        parts[job, g] += total
            for g in range(len(tops)):
                parts[job, g] += totals[g]
    return parts.sum(0)
