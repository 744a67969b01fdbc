"""Accuracy: how well files detect, measured on labelled pictures.

Two settings are kept apart. The evaluation settings, with their low score threshold, trace the
whole precision-recall curve; the operating settings are the file's own, as `predict` uses them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from boxwright import catalog
from boxwright.coco_matches import TOP1
from boxwright.datasets import Dataset, Truth
from boxwright.datasets.records import UNREADABLE, WRONG_SIZE, plain_name
from boxwright.detector import Detector
from boxwright.errors import ImageError, RequestError, SourceError
from boxwright.measures import (
    Measure,
    figures_beside,
    labelled_from_detections,
    matches_by,
    measure_for,
)
from boxwright.scoring import (
    Counts,
    Labelled,
    Precisions,
    average_precision,
    count_matches,
    count_top,
)
from boxwright.significance import Matches, interval
from boxwright.types import Accuracy, ClassAccuracy, Detections, Image, NmsSettings

__all__ = ["MAX_DETECTIONS", "PRE_TOPK", "SCORE_THRESHOLD", "evaluate"]

SCORE_THRESHOLD = 0.001  # Ultralytics 8.4.190 and YOLOv5 v7.0 in `val.py`
MAX_DETECTIONS = 300  # the same; COCO's own 100 a class cuts crowded pictures
PRE_TOPK = 30_000  # the same: max_nms
# Where no candidate under such a score counts, no picture has as many as `pre_topk` ever keeps.
_MANY_CANDIDATES = 0.05


@dataclass(frozen=True, slots=True)
class _Plan:
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


@dataclass(slots=True)
class _Measured:
    """What was seen of one file so far."""

    pictures: list[Labelled] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A picture that was read, and its truth."""

    image: Image
    truth: Truth


def evaluate(
    detectors: Mapping[str, Detector],
    dataset: Dataset,
    *,
    batch: int = 1,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int = MAX_DETECTIONS,
    environment: Mapping[str, str] | None = None,
    advance: Callable[[], None] = lambda: None,
    report: Callable[[str], None] = lambda _: None,
    matches: MutableMapping[str, Matches] | None = None,
    resamples: int = 0,
) -> dict[str, Accuracy]:
    """Measure files on a data set; each picture is read and decoded once for all of them.

    Args:
        detectors: The files, by name; their classes are those that the data set was opened with.
        dataset: Labelled pictures.
        batch: Pictures per inference; a file with a fixed batch keeps its own.
        score_threshold: Of the curve; None takes 0.001, or what an end-to-end file has baked in.
        iou_threshold: NMS of the curve; None takes what the family's own project measures with, or
            what is baked in.
        max_detections: Most detections of a picture, and of a class in it, that count.
        environment: Recorded in the results.
        advance: Called after each picture.
        report: Told of each picture that cannot be measured.
        matches: Filled, by name, with what intervals and comparisons are made from.
        resamples: Draws of the bootstrap that gives `Accuracy.interval`; 0 leaves it out.

    Returns:
        What was measured, by name.

    Raises:
        RequestError: A threshold is baked into a file, an option is out of range, the classes or
            tasks differ, or the data was opened for another task.
        SourceError: No picture can be read.
        BackendError: A runtime fails.
    """
    if batch < 1 or max_detections < 1:
        name, value = ("batch", batch) if batch < 1 else ("max-detections", max_detections)
        raise RequestError(f"--{name} {value}", "it is not a positive number", "use e.g. 1")
    if resamples < 0:
        raise RequestError(f"--resamples {resamples}", "it is negative", "use e.g. 1000, or 0")
    plans = {}
    for name, detector in detectors.items():
        _check_classes(name, detector, dataset)
        measure = measure_for(detector.spec, dataset)
        plans[name] = _plan(detector, score_threshold, iou_threshold, max_detections, measure)
    _check_tasks(detectors)
    measured = {name: _Measured() for name in detectors}
    problems = dict(dataset.problems)
    largest = max([batch, *(d.fixed_batch or 1 for d in detectors.values())])
    for chunk in _chunks(dataset, largest, problems, advance, report):
        for name, detector in detectors.items():
            step = detector.fixed_batch or batch
            for start in range(0, len(chunk), step):
                _measure(detector, plans[name], chunk[start : start + step], measured[name])
        for _ in chunk:
            advance()
    if not any(m.pictures for m in measured.values()):
        found = f"not one of its {len(dataset.items)} pictures can be measured"
        raise SourceError(dataset.name, found, "check the pictures")
    results = {}
    for name, detector in detectors.items():
        seen, plan = measured[name], plans[name]
        results[name] = _accuracy(name, detector, dataset, plan, seen, problems, environment)
        if matches is not None or resamples:
            limit = plan.evaluation.keep_topk
            classes = len(dataset.class_names)
            matched = matches_by(seen.pictures, classes, limit, dataset, plan.measure)
            if matches is not None:
                matches[name] = matched
            if resamples:
                ends = interval(matched, resamples=resamples)
                results[name] = dataclasses.replace(results[name], interval=ends)
    return results


def _check_classes(name: str, detector: Detector, dataset: Dataset) -> None:
    """Refuse a file whose class ids mean something else than the data set's."""
    own = [plain_name(n) for n in detector.spec.class_names]
    if own != [plain_name(n) for n in dataset.class_names]:
        raise RequestError(
            f"{name} on {dataset.name}",
            f"its {len(own)} classes are not the {len(dataset.class_names)} that the data was "
            "opened for",
            "evaluate models of different classes one by one",
        )


def _check_tasks(detectors: Mapping[str, Detector]) -> None:
    """Refuse files whose figures are of different things."""
    tasks = {name: d.spec.task for name, d in detectors.items()}
    if len(set(tasks.values())) > 1:
        raise RequestError(
            ", ".join(tasks),
            f"their tasks are {', '.join(dict.fromkeys(tasks.values()))}",
            "evaluate models of different tasks one by one",
        )


def _plan(
    detector: Detector,
    score: float | None,
    iou: float | None,
    max_detections: int,
    measure: Measure,
) -> _Plan:
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
        return _Plan(detector.settings(0.0), operating, False, said, measure)
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
        return _Plan(settings, operating, False, said, measure)
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
    return _Plan(settings, operating, twice, warnings, measure)


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


def _chunks(
    dataset: Dataset,
    size: int,
    problems: dict[str, int],
    advance: Callable[[], None],
    report: Callable[[str], None],
) -> Iterator[list[_Loaded]]:
    """Read the pictures in groups; those that cannot be measured are counted and reported."""
    waiting: list[_Loaded] = []
    for item in dataset.items:
        try:
            image = item.read()
        except ImageError as error:
            problems[UNREADABLE] = problems.get(UNREADABLE, 0) + 1
            report(str(error))
            advance()
            continue
        height, width = image.shape[:2]
        if item.size not in (None, (height, width)):
            assert item.size is not None
            problems[WRONG_SIZE] = problems.get(WRONG_SIZE, 0) + 1
            said = f"{item.size[1]}x{item.size[0]}"
            report(f"{item.name}: it is {width}x{height}, the labels say {said}; mend them")
            advance()
            continue
        waiting.append(_Loaded(image, item.truth((height, width))))
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _measure(
    detector: Detector, plan: _Plan, chunk: Sequence[_Loaded], measured: _Measured
) -> None:
    """Detect in one batch, at both settings from one inference wherever that is exact.

    It is for raw outputs, and for detections where only the score threshold rises: greedy NMS
    handles the better boxes first, so that a higher threshold cuts nothing but the tail.
    """
    low: dict[int, Detections] = {}
    own: dict[int, Detections] = {}
    for positions in detector.batches([c.image for c in chunk]):
        batch, places = detector.preprocess([chunk[p].image for p in positions])
        outputs = detector.infer(batch, plan.evaluation)
        found = detector.postprocess(outputs, places, plan.evaluation)
        low |= zip(positions, found, strict=True)
        if plan.twice:
            outputs = detector.infer(batch, plan.operating)
        found = detector.postprocess(outputs, places, plan.operating)
        own |= zip(positions, found, strict=True)
    for position, loaded in enumerate(chunk):  # in order: files are compared picture by picture
        curve, point = low[position], own[position]
        truth, limit = loaded.truth, plan.evaluation.keep_topk
        if plan.measure.name != TOP1:
            at_point = dataclasses.replace(plan.measure, by=plan.measure.counted_by)
            labelled = labelled_from_detections(truth, point, None, at_point)
            count_matches(labelled, measured.counts, at_point.by)
        measured.pictures.append(labelled_from_detections(truth, curve, limit, plan.measure))


def _accuracy(
    name: str,
    detector: Detector,
    dataset: Dataset,
    plan: _Plan,
    measured: _Measured,
    problems: Mapping[str, int],
    environment: Mapping[str, str] | None,
) -> Accuracy:
    """Sum up one file."""
    limit, measure = plan.evaluation.keep_topk, plan.measure
    table = _table(measured.pictures, len(dataset.class_names), limit, measure)
    beside = figures_beside(measured.pictures, len(dataset.class_names), limit, measure)
    single = [p.class_ids[~p.crowd] for p in measured.pictures]
    objects = np.bincount(np.concatenate(single), minlength=len(dataset.class_names))
    warnings = list(plan.warnings)
    crowded = sum(len(s) > limit for s in single)
    if crowded:
        warnings.append(
            f"{crowded} pictures show more than {limit} objects, and no more can be found"
        )
    if not objects.sum():
        warnings.append("the pictures show no object of the model's classes: there is no mAP")
    names = _distinct(dataset.class_names)
    shown = [c for c in range(len(names)) if not math.isnan(table.by_class[c])]
    per_class = {
        names[c]: ClassAccuracy(
            float(table.by_class[c]), float(table.by_class_50[c]), int(objects[c])
        )
        for c in shown
    }
    return Accuracy(
        candidate=name,
        runs_on=detector.description,
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        pictures=len(measured.pictures),
        objects=int(objects.sum()),
        map50_95=_known(table.mean),
        map50=_known(table.mean_50),
        map75=_known(table.mean_75),
        map_small=_known(table.by_area[0]),
        map_medium=_known(table.by_area[1]),
        map_large=_known(table.by_area[2]),
        per_class=per_class,
        precision=measured.counts.precision,
        recall=measured.counts.recall,
        f1=measured.counts.f1,
        operating=plan.operating,
        evaluation=plan.evaluation,
        pr_curve=_curves(table, [names[c] for c in shown], shown),
        warnings=tuple(warnings),
        problems=dict(sorted(problems.items())),
        environment=dict(environment or {}),
        measure=measure.name,
        top1=_known(count_top(measured.pictures, 1)) if measure.name == TOP1 else None,
        beside=beside,
    )


def _table(
    pictures: Sequence[Labelled], class_count: int, limit: int, measure: Measure
) -> Precisions:
    """Return the average precisions; a classifier has none."""
    if measure.name != TOP1:
        return average_precision(pictures, class_count, limit, measure.by)
    none = np.full(class_count, np.nan)
    no_areas = (math.nan, math.nan, math.nan)
    curves = np.full((class_count, 101), np.nan)
    return Precisions(none, none, math.nan, math.nan, math.nan, no_areas, curves)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _distinct(class_names: Sequence[str]) -> list[str]:
    """Return the names, with the class id behind those that occur twice."""
    return [n if class_names.count(n) == 1 else f"{n} ({i})" for i, n in enumerate(class_names)]


def _curves(
    table: Precisions, names: Sequence[str], shown: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """Return the curves of the classes that have objects, and their mean as `all`."""
    if not shown:
        return {}
    curves = {n: table.curves[c] for n, c in zip(names, shown, strict=True)}
    curves["all"] = table.curves[list(shown)].mean(axis=0)
    return {n: tuple(round(float(v), 5) for v in curve) for n, curve in curves.items()}
