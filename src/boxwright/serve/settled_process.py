"""Sets a server's Python process up to handle pictures, turn after turn."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

__all__ = ["KEPT_BLOCK_BYTES", "KEPT_BYTES", "settle_process"]

# glibc maps blocks beyond a threshold anew each time, and gives the end of its heap back: a page
# fault for every 4 KiB of every picture. 32 MiB is the most that it takes as that threshold.
KEPT_BLOCK_BYTES = 32 * 2**20
KEPT_BYTES = 512 * 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_TOLD = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def settle_process(config: Mapping[str, Any]) -> None:
    """Keep freed memory, unless the environment says how; and let OpenCV not start threads.

    A model with several processes would have as many threads for every core, which wait for each
    other.

    Args:
        config: Of the model, as Triton tells it.
    """
    import cv2

    if sum(int(group.get("count", 1)) for group in config.get("instance_group", [])) > 1:
        cv2.setNumThreads(1)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    if mallopt is not None and not any(name in os.environ for name in _TOLD):
        mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
