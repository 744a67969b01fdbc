"""A row: what became of one picture, and its digest, which tells nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from boxwright.rle import rle_from_mask
from boxwright.types import Detections, FloatArray

__all__ = ["Row", "row_from_detections", "row_from_error"]


def _no_boxes() -> FloatArray:
    return np.zeros((0, 4), np.float32)


def _no_scores() -> FloatArray:
    return np.zeros(0, np.float32)


def _no_classes() -> npt.NDArray[np.int32]:
    return np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One picture of a job.

    Attributes:
        id: Its position in the listing, from 0.
        path: Its address, as listed.
        size: (height, width) in pixels; None where it could not be read.
        xyxy, scores, class_ids: (N, 4) float32, (N,) float32, (N,) int32, best score first.
        masks: Of the task `segment`: COCO's compressed run lengths in the picture's size.
        keypoints: Of the task `pose`: (N, K, 2 or 3) float32.
        rotated: Of the task `obb`: (N, 5) float32.
        error: Why there are no detections, or "".
        runs_on: Runtime, version and device that detected, in words; not part of the digest.
    """

    id: int
    path: str
    size: tuple[int, int] | None = None
    xyxy: FloatArray = field(default_factory=_no_boxes)
    scores: FloatArray = field(default_factory=_no_scores)
    class_ids: npt.NDArray[np.int32] = field(default_factory=_no_classes)
    masks: tuple[str, ...] | None = None
    keypoints: FloatArray | None = None
    rotated: FloatArray | None = None
    error: str = ""
    runs_on: str = ""

    def __len__(self) -> int:
        return len(self.scores)

    def digest(self) -> bytes:
        """Return SHA-256 over id, path, size, error and every bit of the detections."""
        head = [self.id, self.path, list(self.size) if self.size else None, self.error]
        digest = hashlib.sha256(json.dumps(head).encode())
        digest.update(np.ascontiguousarray(self.xyxy, "<f4").tobytes())
        digest.update(np.ascontiguousarray(self.scores, "<f4").tobytes())
        digest.update(np.ascontiguousarray(self.class_ids, "<i4").tobytes())
        if self.masks:
            digest.update(json.dumps(self.masks).encode())
        for part in (self.keypoints, self.rotated):
            if part is not None:
                digest.update(np.ascontiguousarray(part, "<f4").tobytes())
        return digest.digest()


def row_from_error(index: int, path: str, error: str, runs_on: str) -> Row:
    """Return the row of a picture that failed."""
    return Row(index, path, error=error or "it could not be read", runs_on=runs_on)


def row_from_detections(index: int, path: str, found: Detections, runs_on: str) -> Row:
    """Return the row of a picture that was looked at."""
    masks = None
    if found.mask_crops is not None:
        size = found.image_size
        masks = tuple(str(rle_from_mask(c.within(size))["counts"]) for c in found.mask_crops)
    return Row(
        id=index,
        path=path,
        size=found.image_size,
        xyxy=found.xyxy.astype(np.float32, copy=False),
        scores=found.scores.astype(np.float32, copy=False),
        class_ids=found.class_ids.astype(np.int32),
        masks=masks,
        keypoints=found.keypoints,
        rotated=found.rotated,
        runs_on=runs_on,
    )
