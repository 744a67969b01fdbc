"""Parity: what a file computes against what its source computes.

The tolerances below are the ones that docs/verification.md prints; a test keeps the two equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright import boxes
from boxwright.detector import Detector
from boxwright.errors import ImageError
from boxwright.matching import Matches, match_detections
from boxwright.preprocess import Placement
from boxwright.types import (
    Check,
    Detections,
    FloatArray,
    Image,
    NmsSettings,
    Parity,
    Precision,
)

__all__ = ["TOLERANCES", "Tolerance", "choose_threshold", "generated_pictures", "verify"]

_MATRIX_ROWS = 50  # detections that generated pictures should yield, when nothing else does


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a file of some precision may be from its source.

    Attributes:
        raw_box_px: Largest difference of a decoded raw box coordinate, in input pixels, over the
            anchors whose score in the source is at least `raw_floor`.
        raw_score: Largest difference of a raw score, over all anchors.
        raw_floor: Anchors below this score are background, whose boxes mean nothing.
        min_iou: Smallest IoU of a matched pair of detections.
        score: Largest difference of scores in a pair.
    """

    raw_box_px: float
    raw_score: float
    raw_floor: float
    min_iou: float
    score: float


TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(raw_box_px=0.05, raw_score=1e-4, raw_floor=0.0, min_iou=0.99, score=1e-3),
    "fp16": Tolerance(raw_box_px=4.0, raw_score=0.02, raw_floor=0.25, min_iou=0.95, score=0.02),
}


@dataclass(slots=True)
class _Tally:
    """Worst values met so far."""

    box_px: float = 0.0
    box_relative: float = 0.0
    score: float = 0.0
    score_relative: float = 0.0
    anchors: int = 0
    not_finite: int = 0
    pairs: int = 0
    missing: int = 0
    extra: int = 0
    found: int = 0
    min_iou: float = 1.0
    score_gap: float = 0.0
    batch_differences: int = 0
    batches: int = 0

    def add(self, matches: Matches, found: int) -> None:
        self.pairs += matches.pairs
        self.missing += matches.missing
        self.extra += matches.extra
        self.found += found
        self.min_iou = min(self.min_iou, matches.min_iou)
        self.score_gap = max(self.score_gap, matches.max_score_gap)


def generated_pictures(size: tuple[int, int], count: int = 4, seed: int = 0) -> list[Image]:
    """Return pictures of coloured shapes on noise: input that excites a network, not objects.

    Args:
        size: (height, width) in pixels; the pictures vary around it.
        count: How many.
        seed: The same seed gives the same pictures.
    """
    import cv2

    rng = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        height = int(size[0] * (0.75 + 0.25 * index))
        width = int(size[1] * (1.25 - 0.15 * index))
        low = rng.integers(0, 256, (max(height // 16, 1), max(width // 16, 1), 3), np.uint8)
        canvas = cv2.resize(low, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(24):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
            reach = int(rng.integers(8, max(9, min(height, width) // 3)))
            color = tuple(int(c) for c in rng.integers(0, 256, 3))
            if rng.random() < 0.5:
                cv2.circle(canvas, (x, y), reach, color, -1 if rng.random() < 0.7 else 5)
            else:
                cv2.rectangle(canvas, (x, y), (x + reach, y + 2 * reach), color, -1)
        pictures.append(np.asarray(canvas, np.uint8))
    return pictures


def verify(
    reference: Detector,
    candidate: Detector,
    pictures: Sequence[Path | Image],
    precision: Precision,
    *,
    environment: Mapping[str, str] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Parity:
    """Compare a candidate with its reference on pictures, tensor by tensor and box by box.

    Both see the very same input tensor. Raw outputs are compared where the candidate has them;
    detections always, at the candidate's operating thresholds. Then a batch of three pictures is
    compared with the same pictures one by one, where the candidate's batch is free.

    Args:
        reference: The source, with a raw head.
        candidate: The file to prove.
        pictures: Paths or (H, W, 3) uint8 BGR arrays.
        precision: Whose tolerances hold.
        environment: Recorded in the result.
        advance: Called with the number of pictures done.

    Raises:
        ImageError: A picture cannot be read.
    """
    limits = TOLERANCES[precision]
    settings = candidate.nms
    strict = dataclasses.replace(
        settings, score_threshold=max(0.0, settings.score_threshold - limits.score)
    )
    tally = _Tally()
    kept: list[tuple[Image, Detections]] = []
    count = 0
    for picture in _images(pictures):
        batch, places = reference.preprocess([picture])
        wanted = reference.infer(batch)
        got = candidate.infer(_padded(candidate, batch), settings)
        tally.not_finite += sum(_count_not_finite(v) for v in got.values())
        if not candidate.end2end:
            _compare_raw(reference, wanted, got, limits, tally)
        found = _detections(candidate, got, places, settings)
        expected = _detections(reference, wanted, places, strict)
        matches = match_detections(expected, found, settings.score_threshold, limits.score)
        tally.add(matches, int((expected.scores > settings.score_threshold).sum()))
        if len(kept) < 3:
            kept.append((picture, found))
        count += 1
        advance(1)
    if len(kept) == 3 and candidate.batch_is_free:
        _compare_batch(candidate, kept, settings, limits, tally)
    if count == 0:
        raise ImageError("verification", "there are no pictures to compare on", "give --images")
    return Parity(
        reference=reference.description,
        candidate=candidate.description,
        checks=tuple(_checks(tally, limits, candidate)),
        pictures=count,
        detections=tally.found,
        environment=dict(environment or {}),
    )


def _images(pictures: Sequence[Path | Image]) -> Iterator[Image]:
    for picture in pictures:
        yield Detector.read(picture)


def _padded(candidate: Detector, batch: FloatArray) -> FloatArray:
    """Repeat a batch of one up to the candidate's fixed batch."""
    if candidate.batch_is_free or candidate.fixed_batch == len(batch):
        return batch
    return np.repeat(batch, candidate.fixed_batch or 1, axis=0)


def _detections(
    detector: Detector,
    outputs: dict[str, npt.NDArray[Any]],
    places: list[Placement],
    settings: NmsSettings,
) -> Detections:
    return detector.postprocess(outputs, places[:1], settings)[0]


def _count_not_finite(values: npt.NDArray[Any]) -> int:
    if values.dtype.kind != "f":
        return 0
    return int(values.size - np.isfinite(values).sum())


def _compare_raw(
    reference: Detector,
    wanted: dict[str, npt.NDArray[Any]],
    got: dict[str, npt.NDArray[Any]],
    limits: Tolerance,
    tally: _Tally,
) -> None:
    """Compare decoded boxes and scores of the raw heads."""
    layout, size = reference.spec.layout, reference.spec.input_size
    first, second = (
        boxes.decode(next(iter(o.values()))[:1].astype(np.float32, copy=False), layout, size)
        for o in (wanted, got)
    )
    if first[0].shape != second[0].shape or first[1].shape != second[1].shape:
        tally.not_finite += 1
        return
    if layout.nms_free:
        first, second = _aligned_rows(first, second)
    box_gap, score_gap = np.abs(first[0] - second[0]), np.abs(first[1] - second[1])
    best = first[1][..., 0] if layout.nms_free else first[1].max(axis=-1)
    chosen = best >= limits.raw_floor
    tally.anchors += int(chosen.sum())
    if chosen.any():
        tally.box_px = max(tally.box_px, float(box_gap[chosen].max()))
        extent = np.maximum(np.abs(first[0][chosen]), 1.0)
        tally.box_relative = max(tally.box_relative, float((box_gap[chosen] / extent).max()))
    tally.score = max(tally.score, float(score_gap.max(initial=0.0)))
    relative = score_gap / np.maximum(np.abs(first[1]), 1e-3)
    tally.score_relative = max(tally.score_relative, float(relative.max(initial=0.0)))


def _aligned_rows(
    first: tuple[FloatArray, FloatArray], second: tuple[FloatArray, FloatArray]
) -> tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]:
    """Bring the rows of two NMS-free heads into one order, and drop the ambiguous tail.

    Rows are sorted by score, so two rows of nearly equal score may change places, and the last
    rows may be others of nearly equal score altogether. Each row of the first is paired with the
    nearest unused row of the second; rows within the score gap of the last one are left out when
    they have no near partner.
    """
    boxes_a, rest_a = first[0][0], first[1][0]
    boxes_b, rest_b = second[0][0], second[1][0]
    free = np.ones(len(boxes_b), bool)
    left, right = [], []
    edge = max(float(rest_a[-1, 0]), float(rest_b[-1, 0])) + 1e-3
    for i in range(len(boxes_a)):
        gap = np.abs(boxes_b - boxes_a[i]).max(axis=1) + 1e4 * np.abs(rest_b[:, 1] - rest_a[i, 1])
        gap[~free] = np.inf
        j = int(gap.argmin())
        if rest_a[i, 0] <= edge and gap[j] > 1.0:
            continue
        free[j] = False
        left.append(i)
        right.append(j)
    scores_a, scores_b = rest_a[left, :1], rest_b[right, :1]
    return (boxes_a[left][None], scores_a[None]), (boxes_b[right][None], scores_b[None])


def _compare_batch(
    candidate: Detector,
    kept: list[tuple[Image, Detections]],
    settings: NmsSettings,
    limits: Tolerance,
    tally: _Tally,
) -> None:
    """Count detections that a batch of three gives and single pictures do not, or the reverse."""
    batch, places = candidate.preprocess([image for image, _ in kept])
    together = candidate.postprocess(candidate.infer(batch, settings), places, settings)
    tally.batches += 1
    for (_, alone), joint in zip(kept, together, strict=True):
        matches = match_detections(alone, joint, settings.score_threshold, limits.score)
        close = matches.min_iou >= limits.min_iou and matches.max_score_gap <= limits.score
        tally.batch_differences += matches.missing + matches.extra + int(not close)


def _checks(tally: _Tally, limits: Tolerance, candidate: Detector) -> Iterator[Check]:
    def at_most(name: str, measured: float, limit: float, note: str = "") -> Check:
        return Check(name, measured, limit, measured <= limit, note)

    yield at_most("values that are not finite", tally.not_finite, 0)
    if not candidate.end2end:
        note = f"relative {tally.box_relative:.1e}, {tally.anchors} anchors"
        if tally.anchors:
            yield at_most("raw boxes, px", tally.box_px, limits.raw_box_px, note)
        else:
            yield Check("raw boxes, px", 0.0, limits.raw_box_px, None, "no anchor scores enough")
        relative = f"relative {tally.score_relative:.1e}"
        yield at_most("raw scores", tally.score, limits.raw_score, relative)
    if tally.found == 0 and tally.extra == 0:
        note = "the source detects nothing on these pictures"
        yield Check("detections missing", 0, 0, None, note)
        return
    silent = tally.found > 0 and tally.pairs == 0
    note = "it detects nothing that the source detects" if silent else f"of {tally.found}"
    yield at_most("detections missing", tally.missing, 0, note)
    yield at_most("detections too many", tally.extra, 0)
    yield at_most("1 - IoU of matched boxes", 1 - tally.min_iou, 1 - limits.min_iou)
    yield at_most("scores of matched boxes", tally.score_gap, limits.score)
    if tally.batches:
        yield at_most("differences of a batch of 3", tally.batch_differences, 0)


def choose_threshold(
    reference: Detector, pictures: Sequence[Path | Image], settings: NmsSettings
) -> float:
    """Return a score threshold at which the pictures yield detections to compare.

    The operating threshold wherever the source detects something; otherwise (random weights,
    generated pictures) a lower one that yields a few dozen.
    """
    scores: list[FloatArray] = []
    for picture in _images(pictures[:4]):
        batch, places = reference.preprocess([picture])
        every = dataclasses.replace(settings, score_threshold=0.0)
        scores.append(_detections(reference, reference.infer(batch), places, every).scores)
    ranked = np.sort(np.concatenate(scores))[::-1] if scores else np.zeros(0, np.float32)
    if not len(ranked) or ranked[0] > settings.score_threshold:
        return settings.score_threshold
    position = min(_MATRIX_ROWS, len(ranked) - 1)
    return float(max(ranked[position] - 1e-6, 0.0))
