"""Sets a server's Python process up to handle pictures, turn after turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boxwright.freed_memory import keep_freed_memory

__all__ = ["settle_process"]


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
    keep_freed_memory()
