"""Keeps freed memory in a process that handles one picture after the other."""

from __future__ import annotations

import ctypes
import os

__all__ = ["KEPT_BLOCK_BYTES", "KEPT_BYTES", "keep_freed_memory"]

# glibc maps blocks beyond a threshold anew each time, and gives the end of its heap back: a page
# fault for every 4 KiB of every picture. 32 MiB is the most that it takes as that threshold.
KEPT_BLOCK_BYTES = 32 * 2**20
KEPT_BYTES = 512 * 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_TOLD = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, unless the environment says how it is to be.

    It holds for the whole process, so that only processes of our own are told. What comes from the
    system anew is cleared page by page, and at every page given back the threads of the process
    wait for each other: the more of them decode, the more that costs.

    Returns:
        Whether it was told.
    """
    if os.name != "posix":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    if mallopt is None or any(name in os.environ for name in _TOLD):
        return False
    mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    return True
