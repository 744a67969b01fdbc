"""Pictures with all that any task labels, found more or less well."""

from __future__ import annotations

import cv2
import numpy as np

from boxwright.overlaps import Labelled
from boxwright.rle import rle_from_mask

H, W = 60, 80
POINTS = 17


def blob(x: float, y: float, size: float) -> np.ndarray:
    """An ellipse as a mask."""
    mask = np.zeros((H, W), np.uint8)
    axes = (max(1, round(size)), max(1, round(size * 0.7)))
    cv2.ellipse(mask, (round(x), round(y)), axes, 20, 0, 360, 1, -1)
    return mask > 0


def box_of(mask: np.ndarray) -> list[float]:
    y, x = np.nonzero(mask)
    return [float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)]


def pictures(count: int = 12, seed: int = 0, noise: float = 1.0) -> list[Labelled]:
    """Pictures with all that any task labels, found more or less well; and crowds."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        objects = int(rng.integers(1, 5))
        places = np.stack(
            [rng.uniform(15, W - 15, objects), rng.uniform(12, H - 12, objects),
             rng.uniform(6, 11, objects)], 1
        )  # fmt: skip
        ids = rng.integers(0, 2, objects)
        masks = [blob(*p) for p in places]
        points = np.concatenate(
            [rng.normal(places[:, None, :2], 5, (objects, POINTS, 2)),
             rng.integers(0, 3, (objects, POINTS, 1))], 2
        )  # fmt: skip
        points[rng.random(objects) < 0.2, :, 2] = 0
        turned = np.concatenate(
            [places[:, :2], places[:, 2:] * 2, places[:, 2:], rng.uniform(0, 1.5, (objects, 1))], 1
        )
        which = np.repeat(np.arange(objects), 2)[rng.random(2 * objects) < 0.8]
        near = places[which] + rng.normal(0, noise, (len(which), 3))
        found = [blob(*p) for p in near]
        crowd = rng.random(objects) < 0.15
        none = rng.random(objects) < 0.15
        order = np.argsort(-(scores := rng.random(len(which)).round(2)), kind="stable")
        made.append(
            Labelled(
                xyxy=np.array([box_of(m) for m in masks], np.float32),
                class_ids=ids.astype(np.int64),
                crowd=crowd,
                areas=np.array([float(m.sum()) for m in masks]),
                found_xyxy=np.array([box_of(m) for m in found], np.float32).reshape(-1, 4)[order],
                found_scores=scores[order].astype(np.float32),
                found_class_ids=ids[which][order].astype(np.int64),
                image_size=(H, W),
                masks=tuple(
                    None if b else rle_from_mask(m) for m, b in zip(masks, none, strict=True)
                ),
                found_masks=tuple(rle_from_mask(found[i]) for i in order),
                keypoints=points.astype(np.float32),
                found_keypoints=rng.normal(points[which], noise)[order].astype(np.float32),
                rotated=turned.astype(np.float32),
                found_rotated=rng.normal(turned[which], noise * 0.3)[order].astype(np.float32),
                shape_areas=np.array([float(m.sum()) for m in masks]),
            )
        )
    return made
