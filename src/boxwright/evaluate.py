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
import numpy.typing as npt

from boxwright.coco_matches import TOP1
from boxwright.curve_plan import (
    MAX_DETECTIONS,
    PRE_TOPK,
    SCORE_THRESHOLD,
    CurvePlan,
    plan_curve,
)
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
from boxwright.overlaps import Labelled, Overlap
from boxwright.scoring import (
    Counts,
    Precisions,
    average_precision,
    count_matches,
    count_top,
)
from boxwright.significance import Matches, interval
from boxwright.types import Accuracy, ClassAccuracy, Detections, Image

__all__ = [
    "MAX_DETECTIONS",
    "PRE_TOPK",
    "SCORE_THRESHOLD",
    "CurvePlan",
    "Measured",
    "Totals",
    "accuracy_from_table",
    "check_classes",
    "evaluate",
    "measure_items",
    "plan_curve",
]


@dataclass(slots=True)
class Measured:
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
        check_classes(name, detector, dataset)
        measure = measure_for(detector.spec, dataset)
        plans[name] = plan_curve(detector, score_threshold, iou_threshold, max_detections, measure)
    _check_tasks(detectors)
    measured = {name: Measured() for name in detectors}
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


def check_classes(name: str, detector: Detector, dataset: Dataset) -> None:
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
    detector: Detector, plan: CurvePlan, chunk: Sequence[_Loaded], measured: Measured
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


def measure_items(
    detector: Detector,
    plan: CurvePlan,
    dataset: Dataset,
    batch: int,
    problems: dict[str, int],
    advance: Callable[[], None] = lambda: None,
    report: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Measure one file on the items of a data set, which may be a part of one.

    Args:
        detector: The file.
        plan: How it is measured.
        dataset: Labelled pictures.
        batch: Pictures per inference; a file with a fixed batch keeps its own.
        problems: Counts up what cannot be measured.
        advance: Called after each picture.
        report: Told of each picture that cannot be measured.

    Raises:
        BackendError: The runtime fails.
    """
    measured = Measured()
    for chunk in _chunks(dataset, detector.fixed_batch or batch, problems, advance, report):
        _measure(detector, plan, chunk, measured)
        for _ in chunk:
            advance()
    return measured


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """What the pictures of a data set add up to, beside the curve.

    Attributes:
        pictures: That were measured.
        objects: (classes,) how many they show, crowd regions left out.
        crowded: Pictures that show more objects than can be found.
        counts: At the operating point.
        top: Of a classifier: pictures whose class is the best one, and among the best five.
    """

    pictures: int
    objects: npt.NDArray[np.int64]
    crowded: int
    counts: Counts
    top: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, measured: Measured, class_count: int, limit: int, measure: Measure) -> Totals:
        """Count pictures and objects."""
        ranked = measured.pictures if measure.name == TOP1 else []
        single = [p.class_ids[~p.crowd] for p in measured.pictures]
        ids = np.concatenate([np.zeros(0, np.int64), *single])
        return cls(
            len(measured.pictures),
            np.bincount(ids, minlength=class_count),
            sum(len(s) > limit for s in single),
            measured.counts,
            (count_top(ranked, 1), count_top(ranked, 5)),
        )


def _accuracy(
    name: str,
    detector: Detector,
    dataset: Dataset,
    plan: CurvePlan,
    measured: Measured,
    problems: Mapping[str, int],
    environment: Mapping[str, str] | None,
) -> Accuracy:
    """Sum up one file."""
    limit, count = plan.evaluation.keep_topk, len(dataset.class_names)
    tables = {
        by: average_precision(measured.pictures, count, limit, by) for by in plan.measure.compared
    }
    totals = Totals.of(measured, count, limit, plan.measure)
    runs_on = detector.description
    return accuracy_from_table(name, runs_on, dataset, plan, totals, tables, problems, environment)


def accuracy_from_table(
    name: str,
    runs_on: str,
    dataset: Dataset,
    plan: CurvePlan,
    totals: Totals,
    tables: Mapping[Overlap, Precisions],
    problems: Mapping[str, int],
    environment: Mapping[str, str] | None,
) -> Accuracy:
    """Return the record of one file's accuracy.

    Args:
        name: Of the file.
        runs_on: Runtime, version and device, in words.
        dataset: What it was measured on.
        plan: How.
        totals, tables: What came of it; the tables by what they compare.
        problems: How many pictures could not be measured, by reason.
        environment: Recorded in the result.
    """
    limit, objects, measure = plan.evaluation.keep_topk, totals.objects, plan.measure
    table = tables[measure.by] if measure.compared else _no_curve(len(dataset.class_names))
    warnings = list(plan.warnings)
    if totals.crowded:
        warnings.append(
            f"{totals.crowded} pictures show more than {limit} objects, and no more can be found"
        )
    if not objects.sum():
        warnings.append("the pictures show no object of the model's classes: there is no mAP")
    of_best = measure.name == TOP1 and totals.pictures
    top1, top5 = (n / totals.pictures if of_best else None for n in totals.top)
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
        runs_on=runs_on,
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        pictures=totals.pictures,
        objects=int(objects.sum()),
        map50_95=_known(table.mean),
        map50=_known(table.mean_50),
        map75=_known(table.mean_75),
        map_small=_known(table.by_area[0]),
        map_medium=_known(table.by_area[1]),
        map_large=_known(table.by_area[2]),
        per_class=per_class,
        precision=totals.counts.precision,
        recall=totals.counts.recall,
        f1=totals.counts.f1,
        operating=plan.operating,
        evaluation=plan.evaluation,
        pr_curve=_curves(table, [names[c] for c in shown], shown),
        warnings=tuple(warnings),
        problems=dict(sorted(problems.items())),
        environment=dict(environment or {}),
        measure=measure.name,
        top1=top1,
        beside=figures_beside(measure, tables, top5),
    )


def _no_curve(class_count: int) -> Precisions:
    """Return the average precisions of a classifier: none."""
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
