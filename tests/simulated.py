"""Pictures with objects, and detectors that find them as well as they are told: made of chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boxwright.scoring import Labelled

Scene = tuple[np.ndarray, np.ndarray, np.ndarray]  # xyxy (N, 4), class ids (N,), crowd (N,)


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner, size = rng.random((count, 2)) * 400, rng.random((count, 2)) * 150 + 40
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def scenes(
    rng: np.random.Generator, count: int, classes: int = 1, crowd: float = 0.0, fewest: int = 1
) -> list[Scene]:
    """Scenes of up to five objects."""
    found = []
    for _ in range(count):
        objects = int(rng.integers(fewest, 6))
        ids = rng.integers(0, classes, objects)
        found.append((boxes(rng, objects), ids, rng.random(objects) < crowd))
    return found


def detected(
    truth: Sequence[Scene],
    rng: np.random.Generator,
    classes: int = 1,
    noise_px: float = 8.0,
    copies: int = 1,
    wrong: int = 3,
    levels: int | None = None,
) -> list[Labelled]:
    """What a detector finds: most objects, a little beside them, and some that are not there.

    Args:
        truth: The scenes.
        rng: Of the noise.
        classes: How many there are.
        noise_px: Of each coordinate.
        copies: How often each object may be found.
        wrong: Most detections of nothing in a picture.
        levels: Scores are whole shares of this, so that many are equal.
    """
    pictures = []
    for objects, ids, crowd in truth:
        found = np.repeat(np.arange(len(ids)), copies)[rng.random(len(ids) * copies) < 0.85]
        near = objects[found] + rng.normal(0, noise_px, (len(found), 4)).astype(np.float32)
        extra = int(rng.integers(0, wrong + 1))
        xyxy = np.concatenate([near, boxes(rng, extra)])
        class_ids = np.concatenate([ids[found], rng.integers(0, classes, extra)]).astype(np.int64)
        scores = np.concatenate([rng.beta(4, 2, len(found)), rng.beta(2, 4, extra)])
        if levels:
            scores = np.round(scores * levels) / levels
        order = np.argsort(-scores, kind="stable")
        pictures.append(
            Labelled(
                objects,
                ids.astype(np.int64),
                crowd,
                (objects[:, 2:] - objects[:, :2]).prod(axis=1).astype(np.float64),
                xyxy[order],
                scores[order].astype(np.float32),
                class_ids[order],
            )
        )
    return pictures
