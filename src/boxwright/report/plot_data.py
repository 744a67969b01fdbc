"""What the page's scripts draw: JSON types, rounded to what an eye can tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boxwright.measurement.records import Measured
from boxwright.measurement.statistics import median_interval, samples_by_round
from boxwright.report.records import Report
from boxwright.report.subjects import Subject, budgets, file_of, finite, front, labels, subjects
from boxwright.types import SPANS, Latency

__all__ = ["data_for_scripts", "max_drop_of", "setting_text", "tradeoff"]

_SAMPLES = 400  # of a span: more dots than these are a smear
_RESAMPLES = 500
_PER_MILLE = 1000


def data_for_scripts(report: Report) -> dict[str, Any]:
    """Return everything that plots and pictures need."""
    known = subjects(report)
    return {
        "series": [_series(s) for s in known],
        "accuracy": _accuracy(known),
        "latency": _latency(report, known),
        "tradeoff": tradeoff(known),
        "budgets": _budgets(report),
        "pictures": _pictures(report),
    }


def _series(subject: Subject) -> dict[str, Any]:
    return {
        "file": subject.file,
        "label": subject.label,
        "runtime": subject.runtime,
        "color": subject.color,
        "variant": subject.variant,
        "chosen": subject.chosen,
        "rejected": subject.rejected,
    }


def _accuracy(known: Sequence[Subject]) -> dict[str, Any] | None:
    """Return curves and figures by class; equal curves are kept once."""
    rows = [(i, s.evaluated.accuracy) for i, s in enumerate(known) if s.evaluated]
    if not rows:
        return None
    objects: dict[str, int] = {}
    for _, accuracy in rows:
        for name, value in accuracy.per_class.items():
            objects.setdefault(name, value.objects)
    curves: dict[tuple[int, ...], int] = {}
    found = []
    for index, accuracy in rows:
        places = {
            name: curves.setdefault(tuple(_per_mille(v) for v in values), len(curves))
            for name, values in accuracy.pr_curve.items()
        }
        found.append(
            {
                "series": index,
                "map": _rounded(accuracy.figure),
                "ap": [
                    _rounded(accuracy.per_class[n].ap50_95) if n in accuracy.per_class else None
                    for n in objects
                ],
                "all": places.get("all"),
                "curves": [places.get(n) for n in objects],
            }
        )
    return {
        "classes": list(objects),
        "objects": list(objects.values()),
        "curves": [list(c) for c in curves],
        "rows": found,
    }


def _per_mille(value: float) -> int:
    return round(value * _PER_MILLE) if math.isfinite(value) else 0


def _rounded(value: float | None, digits: int = 5) -> float | None:
    value = finite(value)
    return None if value is None else round(value, digits)


def _significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else 0.0


def setting_text(measured: Measured) -> str:
    """Return threads, batch and calls in flight in words."""
    threads = f"{measured.threads} threads" if measured.threads else "default threads"
    words = [threads, f"batch {measured.batch}"]
    if measured.mode == "throughput":
        words.append(f"{measured.concurrency} in flight")
    return ", ".join(words)


def _latency(report: Report, known: Sequence[Subject]) -> dict[str, Any] | None:
    if report.benchmark is None or not report.benchmark.measured:
        return None
    places = {(s.file, s.runtime): i for i, s in enumerate(known)}
    settings = list(dict.fromkeys(setting_text(m) for m in report.benchmark.measured))
    rows: list[dict[str, Any]] = [
        {
            "series": places[file_of(m, report), m.runtime],
            "setting": settings.index(setting_text(m)),
            "main": m.main_span,
            "noisy": m.noise.verdict == "noisy",
            "samples": {span: _samples(latency) for span, latency in m.latencies.items()},
            "p50": {span: _significant(latency.p50) for span, latency in m.latencies.items()},
        }
        for m in report.benchmark.measured
    ]
    rows.sort(key=lambda row: (row["series"], row["setting"]))
    spans = [s for s in SPANS if any(s in m.latencies for m in report.benchmark.measured)]
    return {"settings": settings, "spans": spans, "rows": rows}


def _samples(latency: Latency) -> list[float]:
    """Return the samples in order of size, or evenly spaced quantiles where they are too many.

    A span that took no time has none.
    """
    values = np.sort(np.asarray(latency.samples_ms, np.float64))
    if not values.any():
        return []
    if len(values) > _SAMPLES:
        values = np.quantile(values, np.linspace(0, 1, _SAMPLES))
    return [_significant(float(v)) for v in values]


def tradeoff(known: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return a point for each file and runtime that has accuracy and latency, in the first setting.

    Rejected files and the source are shown, but only what can be shipped lies on the front.
    """
    points: list[dict[str, Any]] = []
    setting = next((s.first.setting for s in known if s.first), None)
    for index, subject in enumerate(known):
        same = [m for m in subject.measured if m.setting == setting]
        accuracy = subject.evaluated.accuracy if subject.evaluated else None
        worth = finite(accuracy.figure) if accuracy else None
        if not same or accuracy is None or worth is None:
            continue
        main = same[0].main
        rounds = samples_by_round(main.samples_ms, same[0].sample_rounds)
        spread = median_interval(rounds, resamples=_RESAMPLES)
        points.append(
            {
                "series": index,
                "x": _significant(main.p50, 5),
                "x_interval": [_significant(v, 5) for v in spread] if spread else None,
                "y": _rounded(worth),
                "y_interval": [_rounded(v) for v in accuracy.interval]
                if accuracy.interval
                else None,
                "noisy": same[0].noise.verdict == "noisy",
                "span": same[0].main_span,
                "measure": accuracy.measure,
                "front": False,
            }
        )
    shippable = [p for p in points if _can_be_shipped(known[p["series"]])]
    for place in front([(p["x"], p["y"]) for p in shippable]):
        shippable[place]["front"] = True
    return points


def _can_be_shipped(subject: Subject) -> bool:
    return subject.made is not None and not subject.rejected


def max_drop_of(report: Report, budget: Mapping[str, Any]) -> float | None:
    """Return the most accuracy that was to be lost, if the report says so."""
    value = budget.get("max_drop", report.request.get("max_drop"))
    return float(value) if isinstance(value, (int, float)) else None


def _budgets(report: Report) -> list[dict[str, Any]]:
    short = labels(report)
    found = []
    for name, made in budgets(report).items():
        budget = made.budget or {}
        kept = set(budget.get("kept_float") or ())
        found.append(
            {
                "file": short[name],
                "layers": [
                    [str(layer), _significant(float(error)), layer in kept]
                    for layer, error in budget.get("sensitivities") or ()
                ],
                "tried": sorted(
                    [int(count), _rounded(float(value))] for count, value in budget.get("tried", ())
                ),
                "chosen": len(kept),
                "reference": _rounded(budget.get("reference")),
                "max_drop": max_drop_of(report, budget),
                "measure": str(budget.get("measure", "mAP50-95")),
            }
        )
    return found


def _pictures(report: Report) -> dict[str, Any] | None:
    if not report.pictures:
        return None
    short = labels(report)
    files = list(dict.fromkeys(f for p in report.pictures for f in p.found))
    classes: dict[str, int] = {}

    def box(row: Mapping[str, Any]) -> list[float]:
        return [round(float(v), 1) for v in row["xyxy"]]

    def class_number(row: Mapping[str, Any]) -> int:
        return classes.setdefault(row["class_name"], len(classes))

    items = [
        {
            "name": shown.name,
            "size": list(shown.image_size),
            "jpeg": shown.jpeg,
            "truth": None
            if shown.truth is None
            else [[*box(t), class_number(t)] for t in shown.truth],
            "found": [
                None
                if file not in shown.found
                else [
                    [*box(d), round(float(d["score"]), 4), class_number(d)]
                    for d in shown.found[file]
                ]
                for file in files
            ],
        }
        for shown in report.pictures
    ]
    chosen = report.choice.file if report.choice else ""
    return {
        "files": [short.get(f, f) for f in files],
        "chosen": files.index(chosen) if chosen in files else None,
        "classes": list(classes),
        "items": items,
    }
