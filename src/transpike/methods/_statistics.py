"""Fused statistics of activations on the CPU, for arrays laid out as outer x groups x inner (see `collapse`)."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

__all__ = ["clip", "histogram", "match_sums", "mean_overflow", "quantisation_errors"]

_JOBS = 16  # parts that are summed in a fixed order: the result does not depend on the number of threads


@njit(parallel=True, cache=True, nogil=True)
def mean_overflow(z, theta):
    """Per group the mean of ``(z - theta)+`` and of ``z+`` over outer and inner."""
    outer, groups, inner = z.shape
    parts = np.zeros((_JOBS, 2, groups), np.float64)
    for job in prange(_JOBS):
        low, high = outer * job // _JOBS, outer * (job + 1) // _JOBS
        over, full = np.zeros(groups, z.dtype), np.zeros(groups, z.dtype)
        for o in range(low, high):
            if inner == 1:
                row = z[o, :, 0]
                for g in range(groups):
                    over[g] += max(row[g] - theta[g], z.dtype.type(0))
                    full[g] += max(row[g], z.dtype.type(0))
            else:
                for g in range(groups):
                    a, b = z.dtype.type(0), z.dtype.type(0)
                    row = z[o, g]
                    for i in range(inner):
                        a += max(row[i] - theta[g], z.dtype.type(0))
                        b += max(row[i], z.dtype.type(0))
                    over[g] += a
                    full[g] += b
            if (o - low) % 256 == 255:  # short float sums, long double sums
                parts[job, 0] += over
                parts[job, 1] += full
                over[:] = 0
                full[:] = 0
        parts[job, 0] += over
        parts[job, 1] += full
    total = np.zeros((2, groups), np.float64)
    for job in range(_JOBS):
        total += parts[job]
    return total / (outer * inner)


@njit(parallel=True, cache=True, nogil=True)
def clip(z, theta):
    """``min(max(z, 0), theta)`` in place."""
    outer, groups, inner = z.shape
    for o in prange(outer):
        for g in range(groups):
            for i in range(inner):
                z[o, g, i] = min(max(z[o, g, i], z.dtype.type(0)), theta[g])


@njit(cache=True, nogil=True)
def histogram(bits, counts, shift, base):
    """Add positive floats, given by their ``bits``, to ``counts[group, bin]``; bin 0 is zero and below."""
    outer, groups, inner = bits.shape
    last = counts.shape[1] - 1
    for o in range(outer):
        for g in range(groups):
            for i in range(inner):
                b = bits[o, g, i]
                k = 0 if b <= 0 else min(max((b >> shift) - base, 1), last)
                counts[g, k] += 1


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def quantisation_errors(x, grid, levels, cap, shift):
    """Sum over outer and inner of ``(Q(x; V) - x)^2`` for every group and candidate ``V = grid[group, k]``.

    ``Q(x; V) = V / T floor(clip(x / V, 0, cap) T + shift)``; values that are not positive add nothing.
    """
    outer, groups, inner = x.shape
    candidates = grid.shape[1]
    parts = np.zeros((_JOBS, groups, candidates), np.float64)
    for job in prange(_JOBS):
        for o in range(outer * job // _JOBS, outer * (job + 1) // _JOBS):
            for g in range(groups):
                for i in range(inner):
                    value = x[o, g, i]
                    if value > 0:
                        row, errors = grid[g], parts[job, g]
                        for k in range(candidates):
                            q = np.floor(min(value / row[k], cap) * levels + shift)
                            d = min(q, cap * levels) * (row[k] / levels) - value
                            errors[k] += d * d
    total = np.zeros((groups, candidates), np.float64)
    for job in range(_JOBS):
        total += parts[job]
    return total


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def match_sums(z, a, grid, steps, most):
    """Sums over outer and inner of ``q a`` and of ``q^2`` for every group and threshold ``V = grid[group, k]``.

    ``q = clip(floor(z T / V + 1/2), 0, most) / T`` is the rate of a neuron with mean current ``z``, ``a`` what it should be.

    Returns:
        2 x groups x candidates.
    """
    outer, groups, inner = z.shape
    candidates = grid.shape[1]
    parts = np.zeros((_JOBS, 2, groups, candidates), np.float64)
    half, zero = z.dtype.type(0.5), z.dtype.type(0)
    for job in prange(_JOBS):
        levels = np.empty((groups, candidates), z.dtype)
        for g in range(groups):
            for k in range(candidates):
                levels[g, k] = steps / grid[g, k]
        for o in range(outer * job // _JOBS, outer * (job + 1) // _JOBS):
            for g in range(groups):
                row, qa, qq = levels[g], parts[job, 0, g], parts[job, 1, g]
                for i in range(inner):
                    value, wanted = z[o, g, i], a[o, g, i]
                    if value > zero:  # floor(x + 1/2) is 0 or less for what is not
                        for k in range(candidates):
                            q = min(np.floor(value * row[k] + half), most)
                            qa[k] += q * wanted
                            qq[k] += q * q
    total = np.zeros((2, groups, candidates), np.float64)
    for job in range(_JOBS):
        total += parts[job]
    total[0] /= steps
    total[1] /= steps * steps
    return total
