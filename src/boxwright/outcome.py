"""What a run tells while it goes on, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from boxwright.plan import Plan
from boxwright.report import Report
from boxwright.types import Parity

__all__ = ["Listener", "Outcome", "Row"]


class Listener:
    """Told what happens; this one keeps silent. The command line prints."""

    def note(self, text: str) -> None:
        """A step begins or ends."""

    def count(self, label: str, done: int, total: int) -> None:
        """Pictures of a verification that are done."""

    def bytes(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a download that have arrived."""


@dataclass(frozen=True, slots=True)
class Row:
    """One file of the result.

    Attributes:
        path: Where it is.
        action: What was done: `made`, `verified` or `skipped`.
        size_bytes: Of the file.
        sha256: Of its bytes.
        parity: Its verification, or None when it was not verified.
    """

    path: Path
    action: str
    size_bytes: int
    sha256: str
    parity: Parity | None


@dataclass(slots=True)
class Outcome:
    """What a run did.

    Attributes:
        folder: The run directory; None when only a download was asked for.
        plan: What was to be done.
        rows: The files that were asked for.
        downloaded: Files of a download.
        report: Everything that is known of the files; None when only a download was asked for.
    """

    folder: Path | None
    plan: Plan | None = None
    rows: list[Row] = field(default_factory=list)
    downloaded: list[Path] = field(default_factory=list)
    report: Report | None = None
