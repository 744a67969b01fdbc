"""The settings that a file's precision-recall curve is measured with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from boxwright import catalog
from boxwright.coco_matches import TOP1
from boxwright.detector import Detector
from boxwright.errors import RequestError
from boxwright.measures import Measure
from boxwright.types import NmsSettings

__all__ = ["MAX_DETECTIONS", "PRE_TOPK", "SCORE_THRESHOLD", "CurvePlan", "plan_curve"]

SCORE_THRESHOLD = 0.001  # Ultralytics 8.4.190 and YOLOv5 v7.0 in `val.py`
MAX_DETECTIONS = 300  # the same; COCO's own 100 a class cuts crowded pictures
PRE_TOPK = 30_000  # the same: max_nms
# Where no candidate under such a score counts, no picture has as many as `pre_topk` ever keeps.
_MANY_CANDIDATES = 0.05


@dataclass(frozen=True, slots=True)
class CurvePlan:
    """How a file is measured.

    Attributes:
        evaluation, operating: Settings.
        twice: The thresholds act inside the graph and differ in more than a rising score, so that
            the operating point needs an inference of its own.
        warnings: What a file's baked settings do to the figures.
        measure: What is compared.
    """

    evaluation: NmsSettings
    operating: NmsSettings
    twice: bool
    warnings: tuple[str, ...]
    measure: Measure


def plan_curve(
    detector: Detector,
    score: float | None,
    iou: float | None,
    max_detections: int,
    measure: Measure,
) -> CurvePlan:
    """Choose the settings of the curve, and say what a file's baked ones do to it.

    Raises:
        RequestError: A threshold that was asked for is baked into the file, or means nothing.
    """
    spec, operating = detector.spec, detector.nms
    said = (measure.warning,) if measure.warning else ()
    if measure.name == TOP1:
        if score is not None or iou is not None:
            option = "--score-threshold" if score is not None else "--iou-threshold"
            raise RequestError(option, "a classifier has no curve and no NMS", f"drop {option}")
        return CurvePlan(detector.settings(0.0), operating, False, said, measure)
    nms_free = spec.layout.nms_free
    wanted_iou = catalog.family(spec.family).evaluation_iou if iou is None else iou
    wanted_score = SCORE_THRESHOLD if score is None else score
    if not detector.end2end:
        settings = dataclasses.replace(
            detector.settings(wanted_score, operating.iou_threshold if nms_free else wanted_iou),
            pre_topk=PRE_TOPK,
            keep_topk=max_detections,
            multi_label=len(spec.class_names) > 1 and not nms_free,
        )
        return CurvePlan(settings, operating, False, said, measure)
    free = detector.target.dynamic_thresholds
    if score is None and not free:
        wanted_score = max(wanted_score, operating.score_threshold)
    if nms_free or (iou is None and not free):
        wanted_iou = operating.iou_threshold
    settings = detector.settings(wanted_score, wanted_iou)
    warnings = (
        *said,
        *_warnings(detector, settings, max_detections, score, iou),
    )
    limit = min(settings.keep_topk, max_detections)
    rises = settings.score_threshold <= operating.score_threshold
    twice = free and (settings.iou_threshold != operating.iou_threshold or not rises)
    settings = dataclasses.replace(settings, keep_topk=limit)
    return CurvePlan(settings, operating, twice, warnings, measure)


def _warnings(
    detector: Detector,
    settings: NmsSettings,
    max_detections: int,
    score: float | None,
    iou: float | None,
) -> Iterator[str]:
    """Say what is baked into an end-to-end file and makes its figures others than a raw file's."""
    spec, nms_free = detector.spec, detector.spec.layout.nms_free
    usual_iou = catalog.family(spec.family).evaluation_iou
    if score is None and settings.score_threshold > SCORE_THRESHOLD:
        yield (
            f"score threshold {settings.score_threshold:g} is baked in: the curve ends there, and "
            "mAP is lower than the raw file's; export with --score-threshold 0.001 or "
            "--dynamic-thresholds to compare"
        )
    if settings.keep_topk < max_detections:
        yield f"at most {settings.keep_topk} detections a picture are baked in"
    if nms_free:
        return
    if settings.pre_topk < PRE_TOPK and settings.score_threshold < _MANY_CANDIDATES:
        yield (
            f"at most {settings.pre_topk} candidates before NMS are baked in: in crowded pictures "
            "the curve ends early"
        )
    if iou is None and settings.iou_threshold != usual_iou:
        baked = f"{settings.iou_threshold:g}"
        yield f"NMS IoU {baked} is baked in; the project measures at {usual_iou:g}"
    if not settings.multi_label and len(spec.class_names) > 1:
        yield "one class a box is baked in; the projects measure with several"
