"""What differs between two reports besides figures: request, source, environment, files, parity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from boxwright.comparison.records import (
    Difference,
    FileChange,
    ParityChange,
    ParityFlip,
    Worst,
)
from boxwright.report import Made, Report
from boxwright.types import Check, Parity

__all__ = ["differences", "file_changes", "parity_changes", "parity_flips"]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return the entries that differ; those of mappings inside are named with dots.

    >>> differences({"nms": {"iou": 0.7, "top": 1}}, {"nms": {"iou": 0.6, "top": 1}})
    (Difference(name='nms.iou', before=0.7, after=0.6),)
    """
    first, second = dict(_flat(before)), dict(_flat(after))
    return tuple(
        Difference(name, first.get(name), second.get(name))
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def file_changes(before: Report, after: Report) -> tuple[FileChange, ...]:
    """Return every file of either report, in the order of run B, then those that went."""
    first = {m.artifact.path.name: m for m in before.artifacts}
    second = {m.artifact.path.name: m for m in after.artifacts}
    return tuple(
        _file_change(name, first.get(name), second.get(name))
        for name in dict.fromkeys([*second, *first])
    )


def _file_change(name: str, before: Made | None, after: Made | None) -> FileChange:
    hashes = [m.artifact.sha256 if m else "" for m in (before, after)]
    sizes = [m.size_bytes if m else None for m in (before, after)]
    states = [m.state if m else "" for m in (before, after)]
    return FileChange(
        file=name,
        change="added" if before is None
        else "removed" if after is None
        else "same" if hashes[0] == hashes[1]
        else "changed",
        before_sha256=hashes[0], after_sha256=hashes[1],
        before_bytes=sizes[0], after_bytes=sizes[1],
        before_state=states[0], after_state=states[1],
    )  # fmt: skip


def parity_changes(before: Report, after: Report) -> tuple[ParityChange, ...]:
    """Return, for each check that either report measured, its worst measurement in both."""
    first, second = _worst(before.parity), _worst(after.parity)
    return tuple(
        ParityChange(check, first.get(check), second.get(check))
        for check in dict.fromkeys([*second, *first])
    )


def _worst(parity: Mapping[str, Parity]) -> dict[str, Worst]:
    """Return the worst of each check that was measured: it has the largest share of its limit."""
    found: dict[str, tuple[tuple[float, float], Worst]] = {}
    for file, verified in parity.items():
        for check in verified.checks:
            if check.passed is None:
                continue
            rank = (_share(check), check.measured)
            if check.name not in found or rank > found[check.name][0]:
                found[check.name] = rank, Worst(file, check.measured, check.limit)
    return {name: worst for name, (_, worst) in found.items()}


def _share(check: Check) -> float:
    if check.limit > 0:
        return check.measured / check.limit
    return float("inf") if check.measured > 0 else 0.0


def parity_flips(before: Report, after: Report) -> tuple[ParityFlip, ...]:
    """Return the files that both reports verified, and only one of them with success."""
    flips = []
    for file, second in after.parity.items():
        first = before.parity.get(file)
        if first is None or first.passed == second.passed:
            continue
        failed = [c.name for c in (*first.failures, *second.failures)]
        checks = tuple(dict.fromkeys(failed)) or ("nothing could be measured",)
        flips.append(ParityFlip(file, second.passed, checks))
    return tuple(flips)
