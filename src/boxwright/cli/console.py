"""What the verbs print: progress and notes on stderr, tables on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from boxwright.measurement.records import Measured
from boxwright.measurement.tables import noise_lines
from boxwright.pipeline import Listener, Outcome, Row
from boxwright.report import SOURCE, Evaluated, Report
from boxwright.store import PAGE_FILE
from boxwright.types import Check, Parity

if TYPE_CHECKING:
    from boxwright.measurement.tables import Table as TextTable

__all__ = [
    "ConsoleListener",
    "outcome_as_dict",
    "print_evidence",
    "print_outcome",
    "print_parity",
    "print_table",
    "size_text",
]


class ConsoleListener(Listener):
    """Shows notes and progress bars on stderr; bars only on a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ConsoleListener:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        print(f"boxwright: {text}", file=sys.stderr)

    def count(self, label: str, done: int, total: int) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total)
        self._bars.update(self._tasks[label], completed=done, total=total, visible=done < total)

    def bytes(self, name: str, done: int, total: int | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(f"download {name}", total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)


def size_text(size_bytes: int) -> str:
    """Return a size in MB or KB.

    >>> size_text(10_500_000), size_text(2048)
    ('10.5 MB', '2.0 kB')
    """
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def _check(parity: Parity, name: str) -> Check | None:
    return next((c for c in parity.checks if c.name == name and c.passed is not None), None)


def _cell(parity: Parity | None, name: str, form: str = ".1e") -> str:
    check = _check(parity, name) if parity else None
    return format(check.measured, form) if check else "-"


def _verdict(row: Row) -> str:
    if row.parity is None:
        return "not verified"
    if not row.parity.passed:
        return "FAILED"
    if row.parity.detections:
        return "ok"
    compared = any(c.passed and c.name.startswith("raw ") for c in row.parity.checks)
    return "ok (tensors only)" if compared else "ok (only runs)"


def _overlap_cell(check: Check | None) -> str:
    """The worst pair's IoU; of INT8, whose limit is one of the mean, the mean."""
    if check is None:
        return "-"
    return f"{'mean ' if check.note.startswith('mean') else ''}{1 - check.measured:.4f}"


def print_outcome(outcome: Outcome) -> None:
    """Print the summary table of a run."""
    table = Table(title=f"{outcome.folder}", title_justify="left")
    table.add_column("file", no_wrap=True)
    for title in ("size", "done", "parity", "raw box px", "raw score", "matched", "IoU"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in outcome.rows:
        parity = row.parity
        missing = _check(parity, "detections missing") if parity else None
        overlap = _check(parity, "1 - IoU of matched boxes") if parity else None
        matched = "-"
        if parity and missing:
            matched = f"{parity.detections - int(missing.measured)}/{parity.detections}"
        table.add_row(
            row.path.name,
            size_text(row.size_bytes),
            row.action,
            _verdict(row),
            _cell(parity, "raw boxes, px"),
            _cell(parity, "raw scores"),
            matched,
            _overlap_cell(overlap),
        )
    console = _console()
    console.print(table)


def print_evidence(outcome: Outcome) -> None:
    """Print accuracy and latency of each file and runtime, and which file to ship."""
    report = outcome.report
    if report is None:
        return
    if report.accuracy or report.benchmark:
        _console().print(_evidence_table(report))
    if report.benchmark is not None:
        for line in noise_lines(report.benchmark):
            print(line)
    for note in report.notes:
        print(f"note: {note}")
    if report.choice is not None:
        choice = report.choice
        where = f" in {choice.runtime}" if choice.runtime else ""
        print(f"ship {choice.file}{where}: {choice.reason}" if choice.file else choice.reason)
        for caution in report.choice.cautions:
            print(f"  caution: {caution}")
    print(f"report: {outcome.folder}/{PAGE_FILE}")


def _evidence_table(report: Report) -> Table:
    data = report.accuracy[0].accuracy if report.accuracy else None
    measure = data.measure if data else "mAP50-95"
    title = f"{measure} on {data.dataset}: {data.pictures} pictures" if data else "latency"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("runtime", no_wrap=True)
    for head in (measure, "change", "p50 ms", "p95 ms", "images/s", "speed-up"):
        table.add_column(head, justify="right", no_wrap=True)
    measured = {
        (SOURCE if m.name == SOURCE else Path(m.file).name, m.runtime): m
        for m in (report.benchmark.measured if report.benchmark else ())
    }
    evaluated = {(e.file, e.runtime): e for e in report.accuracy}
    for key in dict.fromkeys([*evaluated, *measured]):
        row, timed = evaluated.get(key), measured.get(key)
        table.add_row(escape(key[0]), key[1], *_accuracy_cells(row), *_latency_cells(timed))
    return table


def _accuracy_cells(row: Evaluated | None) -> tuple[str, str]:
    if row is None or row.accuracy.figure is None:
        return "-", "-"
    ends = row.accuracy.interval
    value = f"{row.accuracy.figure:.4f}"
    value += f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    if row.change is None:
        return value, "-"
    change = f"{row.change.difference:+.4f}"
    if row.change.low is not None and row.change.high is not None:
        change += f" [{row.change.low:+.3f}, {row.change.high:+.3f}]"
    return value, change


def _latency_cells(measured: Measured | None) -> tuple[str, str, str, str]:
    if measured is None:
        return "-", "-", "-", "-"
    faster = "-" if measured.speed_up is None else f"{measured.speed_up.ratio:.2f}x"
    main = measured.main
    return f"{main.p50:.1f}", f"{main.p95:.1f}", f"{measured.images_per_s:.1f}", faster


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def print_parity(parity: Parity, name: str = "") -> None:
    """Print every check of a verification."""
    title = f"{name or parity.candidate} against {parity.reference}"
    table = Table(title=title, title_justify="left")
    for title in ("check", "measured", "limit", "result", "note"):
        table.add_column(title)
    for check in parity.checks:
        result = {True: "ok", False: "FAILED", None: "not measured"}[check.passed]
        table.add_row(check.name, f"{check.measured:.3g}", f"{check.limit:.3g}", result, check.note)
    console = _console()
    console.print(table)
    console.print(f"{parity.pictures} pictures, {parity.detections} detections in the reference")


def print_table(table: TextTable) -> None:
    """Print a table of text: the first column left-aligned, the others right."""
    shown = Table(title=table.title, title_justify="left")
    for index, title in enumerate(table.head):
        shown.add_column(title, justify="right" if index else "left", no_wrap=index == 0)
    for row in table.rows:
        shown.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=200)
    console.print(shown)


def outcome_as_dict(outcome: Outcome) -> dict[str, object]:
    """Return what a run did in JSON types; accuracy and latency as the report has them."""
    report = outcome.report.as_dict() if outcome.report else {}
    return {
        **{key: report.get(key) for key in ("accuracy", "benchmark", "choice", "notes")},
        "folder": str(outcome.folder) if outcome.folder else None,
        "downloaded": [str(p) for p in outcome.downloaded],
        "files": [
            {
                "path": str(r.path),
                "action": r.action,
                "size_bytes": r.size_bytes,
                "sha256": r.sha256,
                "parity": {**r.parity.as_dict(), "passed": r.parity.passed} if r.parity else None,
            }
            for r in outcome.rows
        ],
    }
