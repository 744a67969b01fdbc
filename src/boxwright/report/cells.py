"""Figures as the page writes them: one place for digits, signs and units."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import PurePath

from boxwright.types import Change

__all__ = [
    "FILTERS",
    "moment",
    "number",
    "range_of",
    "score",
    "short_source",
    "signed",
    "size",
    "times",
]

NONE = "–"
_MINUS = "−"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def score(value: float | None) -> str:
    """Return a figure between 0 and 1.

    >>> score(0.71234), score(None)
    ('0.7123', '–')
    """
    return f"{value:.4f}" if value is not None and _is_number(value) else NONE


def signed(value: float | None) -> str:
    """Return a difference with its sign.

    >>> signed(-0.00612), signed(0.0), signed(0.01)
    ('−0.0061', '0.0000', '+0.0100')
    """
    if value is None or not _is_number(value):
        return NONE
    text = f"{abs(value):.4f}"
    if float(text) == 0:
        return text
    return f"{_MINUS if value < 0 else '+'}{text}"


def range_of(low: float | None, high: float | None) -> str:
    """Return an interval of figures between 0 and 1.

    >>> range_of(0.70121, 0.72)
    '0.7012 to 0.7200'
    """
    return f"{score(low)} to {score(high)}" if low is not None and high is not None else ""


def signed_range(change: Change) -> str:
    """Return the interval of a change; "" where there is none."""
    if change.low is None or change.high is None:
        return ""
    return f"{signed(change.low)} to {signed(change.high)}"


def milliseconds(value: float | None) -> str:
    """Return a duration in ms, without its unit.

    >>> milliseconds(0.0123), milliseconds(12.345), milliseconds(123.45)
    ('0.012', '12.35', '123.5')
    """
    if value is None or not _is_number(value):
        return NONE
    if value >= 100:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 or value == 0 else f"{value:.3f}"


def times(value: float | None) -> str:
    """Return a ratio.

    >>> times(0.507)
    '0.51 ×'
    """
    return f"{value:.2f} ×" if value is not None and _is_number(value) else NONE


def size(value: int) -> str:
    """Return a file's size; MB are 10^6 bytes.

    >>> size(10_690_000), size(21_500), size(12)
    ('10.69 MB', '21.5 kB', '12 B')
    """
    if value >= 1_000_000:
        return f"{value / 1e6:.2f} MB"
    return f"{value / 1e3:.1f} kB" if value >= 1000 else f"{value} B"


def number(value: float | None) -> str:
    """Return any figure in three digits.

    >>> number(0.000123), number(3), number(1234.6)
    ('0.000123', '3', '1235')
    """
    if value is None or not _is_number(value):
        return NONE if value is None or math.isnan(value) else ("∞" if value > 0 else f"{_MINUS}∞")
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}".replace("e-0", "e-").replace("-", _MINUS)


def share(measured: float, limit: float) -> float | None:
    """Return how much of a limit is used up, 0..1 and more; None where the limit is 0.

    >>> share(1, 4)
    0.25
    """
    if not _is_number(measured) or not _is_number(limit) or limit <= 0:
        return None
    return max(measured / limit, 0.0)


def percent(value: float | None) -> str:
    """Return a share as a percentage.

    >>> percent(0.256), percent(0.0004)
    ('26 %', '<1 %')
    """
    if value is None:
        return NONE
    return "<1 %" if 0 < value < 0.01 else f"{100 * value:.0f} %"


def short_source(text: str) -> str:
    """Return a source as a headline has it: a file without its folders, an address in full.

    >>> short_source("/models/a/yolo11n.pt"), short_source("hf://owner/repo/a.pt")
    ('yolo11n.pt', 'hf://owner/repo/a.pt')
    """
    return text if "://" in text else PurePath(text).name or text


def moment(text: str) -> str:
    """Return a moment as readers write it, or the text itself.

    >>> moment("2026-11-21T18:04:11+00:00"), moment("soon")
    ('21 November 2026, 18:04 UTC', 'soon')
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = when.tzname() or ""
    months = (
        "January", "February", "March", "April", "May", "June", "July", "August", "September",
        "October", "November", "December",
    )  # fmt: skip
    return f"{when.day} {months[when.month - 1]} {when.year}, {when:%H:%M} {zone}".strip()


_MEASURED_BY = {
    "box mAP50-95": "of the boxes alone",
    "mask mAP50-95": "of the masks, by their IoU",
    "OKS mAP50-95": "of the keypoints, by object keypoint similarity",
    "rotated mAP50-95": "of rotated boxes, by probabilistic IoU",
}


def measured_by(measure: str) -> str:
    """Return what an average precision compares, in words.

    >>> measured_by("mask mAP50-95")
    'of the masks, by their IoU'
    """
    return _MEASURED_BY.get(measure, f"by {measure}")


def with_iou(measure: str, iou: str) -> str:
    """Return the name of an average precision at one IoU.

    >>> with_iou("OKS mAP50-95", "75")
    'OKS mAP75'
    """
    return measure.replace("50-95", iou)


FILTERS = {
    "measured_by": measured_by,
    "with_iou": with_iou,
    "moment": moment,
    "short_source": short_source,
    "ms": milliseconds,
    "number": number,
    "percent": percent,
    "score": score,
    "signed": signed,
    "signed_range": signed_range,
    "size": size,
    "times": times,
}
