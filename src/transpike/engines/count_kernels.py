"""From what neurons emit to whole spikes in the number format that a synapse takes, and back: one pass over memory each.

Compiled once by numba and cached on disk.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from transpike.engines.kernels import threads_for

__all__ = ["counts", "marks", "numbers"]

_LINE = 512  # numbers that a vector loop runs over, at least


def counts(x: torch.Tensor, worth: torch.Tensor, axis: int, dtype: torch.dtype) -> torch.Tensor:
    """``s = round(x / worth)`` with ``worth`` by channel: exact for what neurons emit, ``x = worth s`` but for rounding.

    Args:
        x: float32, channels on ``axis``.
        dtype: float32, uint8 (``s`` from 0 to 255) or bfloat16 (exact to 256, the nearest beyond).

    Returns:
        The shape of ``x``, channels innermost in memory.
    """
    last = x.movedim(axis, -1)
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return torch.mul(last, 1 / worth).round_().to(dtype).movedim(-1, axis)
    flat = last.contiguous()
    out = torch.empty(flat.shape, dtype=dtype)
    line = (1 / worth).repeat(max(1, _LINE // len(worth))).numpy()
    halves = dtype == torch.bfloat16
    with threads_for(flat.numel()):
        _whole(flat.view(-1).numpy(), line, (out.view(torch.int16) if halves else out).view(-1).numpy(), halves)
    return out.movedim(-1, axis)


def numbers(spikes: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
    """``worth s`` in float32.

    Args:
        spikes: ``s`` in bfloat16, frames x units. worth: of each unit.
    """
    if spikes.device.type != "cpu":
        return spikes.float().mul_(worth)
    out = torch.empty(spikes.shape)
    with threads_for(out.numel()):
        _worth_of(spikes.view(torch.int16).numpy(), worth.numpy(), out.numpy())
    return out


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def marks(bits, out):
    """The bits of bfloat16's 1 where a bit is 1, flat; eight numbers a byte."""
    one = np.int16(0x3F80)
    parts = min(len(out) // 8 + 1, 64)
    for part in prange(parts):
        for byte in range(len(out) // 8 * part // parts, len(out) // 8 * (part + 1) // parts):
            lit, to = bits[byte], out[8 * byte : 8 * byte + 8]
            for i in range(8):
                to[i] = one * np.int16((lit >> i) & 1)


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _worth_of(spikes, worth, out):
    """``out = worth spikes``, the spikes as the bits of bfloat16."""
    frames, units = spikes.shape
    blocks = (units + _LINE - 1) // _LINE
    for job in prange(frames * blocks):
        n, low = job // blocks, (job % blocks) * _LINE
        size = min(_LINE, units - low)
        line, to = spikes[n, low : low + size], out[n, low : low + size]
        wide, each = np.empty(size, np.int32), worth[low : low + size]
        for i in range(size):
            wide[i] = np.int32(line[i]) << 16
        values = wide.view(np.float32)
        for i in range(size):
            to[i] = each[i] * values[i]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _whole(x, inverse, out, halves):
    """``out = round(x inverse)``, where ``inverse`` repeats; ``halves``: the nearest upper half of the float32 instead."""
    size = len(inverse)
    lines = (len(x) + size - 1) // size
    parts = min(lines, 64)
    for part in prange(parts):
        line = np.empty(size, np.float32)
        bits = line.view(np.int32)
        for k in range(lines * part // parts, lines * (part + 1) // parts):
            first = k * size
            count = min(size, len(x) - first)
            row, to = x[first : first + count], out[first : first + count]
            for i in range(count):
                line[i] = np.rint(row[i] * inverse[i])
            if halves:
                for i in range(count):
                    to[i] = (bits[i] + 0x7FFF + ((bits[i] >> 16) & 1)) >> 16
            else:
                for i in range(count):
                    to[i] = line[i]
