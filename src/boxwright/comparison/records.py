"""The records of a comparison of two runs: what was before, what is after, and what to think of it.

`before` is run A, `after` is run B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = [
    "SCHEMA",
    "AccuracyChange",
    "AccuracyVerdict",
    "ClassChange",
    "Comparison",
    "Difference",
    "FileChange",
    "LatencyChange",
    "LatencyVerdict",
    "ParityChange",
    "ParityFlip",
    "Respect",
    "Side",
    "Worst",
]

SCHEMA = 1
Respect: TypeAlias = Literal["accuracy", "latency", "parity"]
AccuracyVerdict: TypeAlias = Literal["better", "worse", "no significant change", "unknown"]
LatencyVerdict: TypeAlias = Literal["faster", "slower", "no significant change", "undecided"]


@dataclass(frozen=True, slots=True)
class Side:
    """A run: what its report says of itself."""

    name: str
    created_at: str
    boxwright: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting or fact that is not the same; None where a run does not have it."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file of the runs.

    Attributes:
        file: Its name.
        change: What happened to its bytes.
        before_sha256, after_sha256: "" where a run does not have it.
        before_bytes, after_bytes: Its size; None where a run does not have it.
        before_state, after_state: `published` or `rejected`; "" where a run does not have it.
    """

    file: str
    change: Literal["same", "changed", "added", "removed"]
    before_sha256: str
    after_sha256: str
    before_bytes: int | None
    after_bytes: int | None
    before_state: str
    after_state: str


@dataclass(frozen=True, slots=True)
class Worst:
    """The measurement of a check that comes nearest to its limit, or is furthest beyond it."""

    file: str
    measured: float
    limit: float


@dataclass(frozen=True, slots=True)
class ParityChange:
    """A parity check over all files of a run; None where a run did not measure it."""

    check: str
    before: Worst | None
    after: Worst | None


@dataclass(frozen=True, slots=True)
class ParityFlip:
    """A file whose verification ends otherwise.

    Attributes:
        file: Its name.
        passed: In run B.
        checks: Names of the checks that fail in one of the runs.
    """

    file: str
    passed: bool
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClassChange:
    """AP50-95 of one class, and how many objects it was measured on."""

    name: str
    objects: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class AccuracyChange:
    """Accuracy of a file in a runtime.

    Attributes:
        file, runtime: What was measured.
        before, after: The figure.
        low, high: Paired 95 % interval of the difference; None where there is none.
        verdict: `unknown` where there is no interval.
        note: What a reader needs to know besides.
        precision, recall, f1: Before and after, at the operating thresholds.
        classes: Those that changed most, the largest change first.
        measure: Name of the figure: `mAP50-95`, or the task's own.
    """

    file: str
    runtime: str
    before: float
    after: float
    low: float | None
    high: float | None
    verdict: AccuracyVerdict
    note: str
    precision: tuple[float | None, float | None]
    recall: tuple[float | None, float | None]
    f1: tuple[float | None, float | None]
    classes: tuple[ClassChange, ...]
    measure: str = "mAP50-95"

    @property
    def difference(self) -> float:
        """The figure after minus before: negative is worse."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class LatencyChange:
    """Latency of a file in a runtime and setting.

    Attributes:
        file, runtime, threads, batch, mode, concurrency: What was measured, and how.
        span: What was timed.
        before_ms, after_ms: Medians: of a call, under load of the time of one picture.
        ratio: `after_ms` over `before_ms`: over 1 is slower.
        low, high: Its 95 % interval; None with fewer than five rounds.
        verdict: `undecided` where the two cannot be held against each other; `slower` and `faster`
            from 5 % on, since less may be drift.
        reasons: Why, in words.
    """

    file: str
    runtime: str
    threads: int | None
    batch: int
    mode: str
    concurrency: int
    span: str
    before_ms: float
    after_ms: float
    ratio: float
    low: float | None
    high: float | None
    verdict: LatencyVerdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from one run to another.

    Attributes:
        before, after: The runs.
        request, source, environment: Settings and facts that differ.
        files: Every file of either run.
        parity: Every check that either run measured.
        flips: Files that pass in one run alone.
        accuracy, latency: What both runs measured.
        notes: What could not be compared and why, by respect.
    """

    before: Side
    after: Side
    request: tuple[Difference, ...]
    source: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    files: tuple[FileChange, ...]
    parity: tuple[ParityChange, ...]
    flips: tuple[ParityFlip, ...]
    accuracy: tuple[AccuracyChange, ...]
    latency: tuple[LatencyChange, ...]
    notes: Mapping[Respect, tuple[str, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        data = dataclasses.asdict(self)
        for row, change in zip(data["accuracy"], self.accuracy, strict=True):
            row["difference"] = change.difference
        return {"schema": SCHEMA, **data}

    def failures(
        self, respect: Respect, max_drop: float = 0.0, max_slowdown: float = 0.0
    ) -> list[str]:
        """Return what is significantly worse in one respect, in words.

        Args:
            respect: What is looked at.
            max_drop: Loss of the figure that is accepted, 0..1.
            max_slowdown: Share of the time by which a call may take longer.
        """
        if respect == "parity":
            return [f"{f.file} ({', '.join(f.checks)})" for f in self.flips if not f.passed]
        if respect == "accuracy":
            return [
                f"{a.file} in {a.runtime} ({a.difference:+.4f} {a.measure})"
                for a in self.accuracy
                if a.verdict == "worse" and -a.difference > max_drop
            ]
        return [
            f"{m.file} in {m.runtime}, batch {m.batch} ({m.ratio:.2f} times as long)"
            for m in self.latency
            if m.verdict == "slower" and m.ratio > 1.0 + max_slowdown
        ]

    def unjudged(self, respect: Respect) -> str:
        """Return why nothing at all can be said in one respect, or ""."""
        notes = self.notes.get(respect, ())
        said = notes[0] if notes else f"the runs have no {respect} in common"
        if respect == "parity":
            return "" if any(p.before and p.after for p in self.parity) else said
        if respect == "accuracy":
            judged = any(a.verdict != "unknown" for a in self.accuracy)
            said = next((a.note for a in self.accuracy if a.note), said)
            return "" if judged else said
        return "" if self.latency else said
