"""Generated pictures, for when a user gives none: input that excites a network."""

from __future__ import annotations

import cv2
import numpy as np

from boxwright.types import Image

__all__ = ["generated_pictures"]


def generated_pictures(size: tuple[int, int], count: int = 4, seed: int = 0) -> list[Image]:
    """Return pictures of coloured shapes on smooth noise; they show no objects.

    Args:
        size: (height, width) in pixels; the pictures vary around it.
        count: How many.
        seed: The same seed gives the same pictures.
    """
    rng = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        height = max(8, int(size[0] * (0.75 + 0.25 * index)))
        width = max(8, int(size[1] * max(0.3, 1.25 - 0.15 * index)))
        low = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
        canvas = cv2.resize(low, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(24):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
            reach = int(rng.integers(4, max(5, min(height, width) // 3)))
            color = tuple(int(c) for c in rng.integers(0, 256, 3))
            if rng.random() < 0.5:
                cv2.circle(canvas, (x, y), reach, color, -1 if rng.random() < 0.7 else 5)
            else:
                cv2.rectangle(canvas, (x, y), (x + reach, y + 2 * reach), color, -1)
        pictures.append(np.asarray(canvas, np.uint8))
    return pictures
