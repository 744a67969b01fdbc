"""Pictures of rotated boxes that are known, and a raw head that proposes them among many copies."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from boxwright.rotated import corners_from_rotated, probiou_matrix
from boxwright.types import FloatArray

SIDE = 256  # of a picture; a network of 128 sees it at half the size
CLASSES = 3


def known_boxes(seed: int, count: int = 6) -> tuple[FloatArray, np.ndarray]:
    """Return (N, 5) rotated boxes that hardly overlap, inside the picture, and their classes."""
    rng, kept = np.random.default_rng(seed), np.zeros((0, 5), np.float32)
    while len(kept) < count:
        long = rng.uniform(30, 70)
        box = [*rng.uniform(45, SIDE - 45, 2), long, long * rng.uniform(0.3, 0.6)]
        one = np.array([[*box, rng.uniform(-math.pi / 4, 3 * math.pi / 4 - 0.01)]], np.float32)
        if not len(kept) or probiou_matrix(one, kept).max() < 0.05:
            kept = np.concatenate([kept, one])
    return kept, np.arange(count) % CLASSES


def raw_head(boxes: FloatArray, class_ids: np.ndarray, scale: float, copies: int = 5) -> FloatArray:
    """Return (1, 4 + classes + 1, A): each box and worse copies of it, a little beside it."""
    rng = np.random.default_rng(len(boxes))
    columns = []
    for box, class_id in zip(boxes, class_ids, strict=True):
        for copy in range(copies):
            near = box.copy()
            if copy:
                near[:2] += rng.uniform(-0.6, 0.6, 2)
                near[2:4] *= rng.uniform(0.96, 1.04, 2)
                near[4] += rng.uniform(-0.03, 0.03)
            scores = np.full(CLASSES, 0.01)
            scores[class_id] = 0.9 - 0.02 * class_id - 0.1 * copy
            columns.append([*(near[:4] * scale), *scores, near[4]])
    noise = np.zeros((40, 4 + CLASSES + 1))  # of nothing
    noise[:, :4] = rng.uniform(10, 60, (40, 4))
    return np.concatenate([columns, noise]).T[None].astype(np.float32)


def write_scene(folder: Path, name: str, boxes: FloatArray, class_ids: np.ndarray) -> Path:
    """Write the picture and its label file: class and four corners, in fractions."""
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    corners = corners_from_rotated(boxes)
    lines = []
    for points, class_id in zip(corners, class_ids, strict=True):
        cv2.fillPoly(image, [np.round(points).astype(np.int32)], (40, 80 * int(class_id), 220))
        numbers = " ".join(f"{v / SIDE:.8f}" for v in points.ravel())
        lines.append(f"{class_id} {numbers}")
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "images" / f"{name}.png"), image)
    (folder / "labels" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder
