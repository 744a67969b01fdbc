"""Matches the detections of two detectors on one picture. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boxwright.boxes import iou_matrix
from boxwright.types import Detections

__all__ = ["Matches", "match_detections"]


@dataclass(frozen=True, slots=True)
class Matches:
    """How the detections of a candidate fit those of its reference.

    Attributes:
        pairs: Number of reference detections that found their like.
        missing: Reference detections, clear of the threshold, without one.
        extra: Candidate detections without one.
        min_iou: Smallest IoU of a pair; 1.0 without pairs.
        max_score_gap: Largest difference of scores in a pair; 0.0 without pairs.
    """

    pairs: int
    missing: int
    extra: int
    min_iou: float
    max_score_gap: float


def match_detections(
    reference: Detections, candidate: Detections, score_threshold: float, score_slack: float
) -> Matches:
    """Pair detections of the same class by IoU, best overlap first, one to one.

    A score near the threshold may fall on either side of it. So the reference is given down to
    `score_threshold - score_slack`; of it, only what scores at least `score_threshold +
    score_slack` must be found; and each candidate detection must have its like somewhere in it.

    Args:
        reference: Detections above `score_threshold - score_slack`.
        candidate: Detections above `score_threshold`.
        score_threshold: The operating threshold, 0..1.
        score_slack: How far two scores of one object may lie apart, 0..1.
    """
    overlap = iou_matrix(reference.xyxy, candidate.xyxy)
    overlap[reference.class_ids[:, None] != candidate.class_ids[None, :]] = -1.0
    partner = np.full(len(reference), -1, np.intp)
    taken = np.zeros(len(candidate), bool)
    ious: list[float] = []
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        i, j = np.unravel_index(flat, overlap.shape)
        if overlap[i, j] < 0.5:
            break
        if partner[i] < 0 and not taken[j]:
            partner[i] = j
            taken[j] = True
            ious.append(float(overlap[i, j]))
    paired = partner >= 0
    required = reference.scores >= np.float32(score_threshold + score_slack)
    gaps = np.abs(reference.scores[paired] - candidate.scores[partner[paired]])
    return Matches(
        pairs=int(paired.sum()),
        missing=int((required & ~paired).sum()),
        extra=int((~taken).sum()),
        min_iou=min(ious, default=1.0),
        max_score_gap=float(gaps.max(initial=0.0)),
    )
