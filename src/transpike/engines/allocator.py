"""Freed memory is kept for reuse instead of being handed back to the system between two operations.

glibc returns the few megabytes of every intermediate result to the system and asks for them again at once, unless a larger
block happens to have been freed before; page faults then cost up to half of a simulation. The first threshold is the one
that glibc arrives at by itself once a block of 32 MiB has been freed (mallopt(3), M_MMAP_THRESHOLD); the second lets
the process keep up to 256 MiB for the next operation.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST, _KEPT = 32 << 20, 256 << 20


@cache
def keep_freed_memory() -> bool:
    """Set the thresholds, once per process; False where the C library is not glibc and nothing was done."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
