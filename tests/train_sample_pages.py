"""A quick stand-in for the page generator: paper, grey drawings and blocks of dark stripes."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np


def generate_page(seed: int) -> SimpleNamespace:
    """Draw a page with up to eight blocks that do not overlap; every 50th seed cannot be drawn."""
    if seed % 50 == 49:
        raise ValueError("this page cannot be drawn")
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(900, 1400)), int(rng.integers(600, 1000))
    image = np.full((height, width, 3), int(rng.integers(200, 256)), np.uint8)
    for _ in range(6):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        cv2.circle(image, (x, y), int(rng.integers(20, 120)), (150, 160, 170), -1)
    blocks = []
    for row in range(4):
        for column in range(2):
            if rng.random() < 0.4:
                continue
            x = column * width // 2 + int(rng.integers(10, 60))
            y = row * height // 4 + int(rng.integers(10, 40))
            w, h = int(rng.integers(100, width // 2 - 80)), int(rng.integers(40, height // 4 - 60))
            image[y : y + h, x : x + w] = 250
            for line in range(y, y + h - 6, 14):
                image[line : line + 8, x : x + w : 6] = 20
                image[line : line + 8, x + 1 : x + w : 6] = 20
            blocks.append(SimpleNamespace(xyxy=(x, y, x + w, y + h)))
    return SimpleNamespace(image=image, blocks=tuple(blocks))
