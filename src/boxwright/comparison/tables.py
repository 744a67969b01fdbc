"""A comparison as text: the tables that a terminal shows, and Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from boxwright.comparison.records import (
    AccuracyChange,
    Comparison,
    Difference,
    LatencyChange,
    Worst,
)
from boxwright.measurement.tables import Table

__all__ = ["head_lines", "markdown_from_comparison", "note_lines", "summary_lines", "tables_of"]

_WIDEST = 48  # characters of a setting that a table shows
_SHORT_HASH = 12
_MARKS = {"worse": "WORSE", "slower": "SLOWER"}


def head_lines(comparison: Comparison) -> list[str]:
    """Return a line for each run."""
    sides = (("A", comparison.before), ("B", comparison.after))
    return [f"{x}: {s.name}, {s.created_at}, boxwright {s.boxwright}" for x, s in sides]


def tables_of(comparison: Comparison) -> list[Table]:
    """Return the tables that have something to tell."""
    tables = [
        _settings_table(comparison),
        _files_table(comparison),
        _parity_table(comparison),
        _accuracy_table(comparison),
        _classes_table(comparison),
        _latency_table(comparison),
    ]
    return [t for t in tables if t.rows]


def note_lines(comparison: Comparison) -> list[str]:
    """Return what could not be compared, and what a verdict leaves open; each once."""
    lines = [f"parity: {f.file} {'passes now' if f.passed else 'FAILS now'}: {', '.join(f.checks)}"
             for f in comparison.flips]  # fmt: skip
    lines += [line for notes in comparison.notes.values() for line in notes]
    remarks: dict[str, list[str]] = {}
    details: dict[str, str] = {}
    for a in comparison.accuracy:
        if a.note:
            remarks.setdefault(f"accuracy: {a.note}", []).append(f"{a.file} in {a.runtime}")
    for m in comparison.latency:
        for reason in m.reasons:
            what, _, detail = reason.partition(": ")
            text = f"latency undecided: {what}"
            remarks.setdefault(text, []).append(f"{m.file} in {m.runtime}")
            details.setdefault(text, f": {detail}" if detail else "")
    return lines + [f"{t} ({_named(p)}){details.get(t, '')}" for t, p in remarks.items()]


def _named(places: list[str]) -> str:
    distinct = list(dict.fromkeys(places))
    return "; ".join(distinct) if len(distinct) <= 3 else f"{len(distinct)} rows"


def summary_lines(comparison: Comparison) -> list[str]:
    """Return one line for each respect: how many rows have which verdict."""
    files = Counter(f.change for f in comparison.files)
    lines = [f"files: {_counted(files)}"]
    failing = sum(not f.passed for f in comparison.flips)
    if any(p.before and p.after for p in comparison.parity):
        passing = len(comparison.flips) - failing
        lines.append(f"parity: {failing} from passed to failed, {passing} from failed to passed")
    for name, verdicts in (
        ("accuracy", Counter(a.verdict for a in comparison.accuracy)),
        ("latency", Counter(m.verdict for m in comparison.latency)),
    ):
        if verdicts:
            lines.append(f"{name}: {_counted(verdicts)}")
    return lines


def _counted(counts: Counter[Any]) -> str:
    return ", ".join(f"{n} {word}" for word, n in counts.items()) or "none"


def markdown_from_comparison(comparison: Comparison) -> str:
    """Return everything in Markdown."""
    parts = ["\n".join(f"- {line}" for line in head_lines(comparison))]
    parts += [table.as_markdown() for table in tables_of(comparison)]
    notes = note_lines(comparison)
    if notes:
        parts.append("\n".join(f"> {line}  " for line in notes))
    parts.append("\n".join(f"- {line}" for line in summary_lines(comparison)))
    return "\n\n".join(parts) + "\n"


def _settings_table(comparison: Comparison) -> Table:
    groups: tuple[tuple[str, Iterable[Difference]], ...] = (
        ("request", comparison.request),
        ("source", comparison.source),
        ("environment", comparison.environment),
    )
    rows = [
        (f"{group}: {d.name}", _value(d.before), _value(d.after))
        for group, found in groups
        for d in found
    ]
    return Table("asked and found otherwise", ("what", "A", "B"), tuple(rows))


def _value(value: Any) -> str:
    """Return a setting as short text; of a long one the beginning."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _files_table(comparison: Comparison) -> Table:
    head = ("file", "bytes", "size A", "size B", "B / A", "SHA-256 A", "SHA-256 B", "state")
    rows = []
    for f in comparison.files:
        sizes = (f.before_bytes, f.after_bytes)
        both = f.before_bytes and f.after_bytes
        states = [s for s in dict.fromkeys([f.before_state, f.after_state]) if s]
        rows.append(
            (
                f.file,
                f.change,
                *("-" if s is None else f"{s / 1e6:.2f} MB" for s in sizes),
                f"{f.after_bytes / f.before_bytes:.3f}" if both else "-",  # type: ignore[operator]
                f.before_sha256[:_SHORT_HASH] or "-",
                f.after_sha256[:_SHORT_HASH] or "-",
                " to ".join(states),
            )
        )
    return Table("files", head, tuple(rows))


def _parity_table(comparison: Comparison) -> Table:
    head = ("check, worst of all files", "A", "of", "B", "of")
    rows = [(p.check, *_worst(p.before), *_worst(p.after)) for p in comparison.parity]
    return Table("parity with the source", head, tuple(rows))


def _worst(worst: Worst | None) -> tuple[str, str]:
    if worst is None:
        return "-", "-"
    mark = " FAILED" if worst.measured > worst.limit else ""
    return f"{worst.measured:.3g} (limit {worst.limit:.3g}){mark}", worst.file


def _accuracy_table(comparison: Comparison) -> Table:
    measures = dict.fromkeys(a.measure for a in comparison.accuracy)
    named = next(iter(measures)) if len(measures) == 1 else "accuracy"
    head = ("file", "runtime", f"{named} A", "B", "change [95 %]", "verdict")
    rows = [
        (
            a.file,
            a.runtime,
            f"{a.before:.4f}",
            f"{a.after:.4f}",
            _change(a),
            _MARKS.get(a.verdict, a.verdict),
            *(_pair(p) for p in (a.precision, a.recall, a.f1)),
        )
        for a in comparison.accuracy
    ]
    return Table("accuracy", (*head, "precision", "recall", "F1"), tuple(rows))


def _change(change: AccuracyChange) -> str:
    text = f"{change.difference:+.4f}"
    if change.low is None or change.high is None:
        return text
    return f"{text} [{change.low:+.4f}, {change.high:+.4f}]"


def _pair(pair: tuple[float | None, float | None]) -> str:
    before, after = ("-" if v is None else f"{v:.3f}" for v in pair)
    return f"{before} to {after}" if before != after else after


def _classes_table(comparison: Comparison) -> Table:
    head = ("file", "runtime", "class", "objects", "AP50-95 A", "B", "change")
    rows = [
        (a.file, a.runtime, c.name, str(c.objects), f"{c.before:.4f}", f"{c.after:.4f}",
         f"{c.after - c.before:+.4f}")
        for a in comparison.accuracy
        for c in a.classes
    ]  # fmt: skip
    return Table("classes that changed most", head, tuple(rows))


def _latency_table(comparison: Comparison) -> Table:
    head = ("file", "runtime", "threads", "batch", "span", "median ms A", "B")
    rows = [
        (
            m.file,
            m.runtime,
            str(m.threads or "default"),
            str(m.batch),
            m.span if m.mode == "latency" else f"a picture, {m.concurrency} in flight",
            f"{m.before_ms:.2f}",
            f"{m.after_ms:.2f}",
            _ratio(m),
            _MARKS.get(m.verdict, m.verdict),
        )
        for m in comparison.latency
    ]
    return Table("latency", (*head, "B / A [95 %]", "verdict"), tuple(rows))


def _ratio(change: LatencyChange) -> str:
    if change.low is None or change.high is None:
        return f"{change.ratio:.3f}"
    return f"{change.ratio:.3f} [{change.low:.3f}, {change.high:.3f}]"
