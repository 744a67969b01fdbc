"""Reads what a run left: its report, and the matches beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from boxwright.errors import SourceError
from boxwright.matches_file import MATCHES_FILE, read_matches
from boxwright.report import Report
from boxwright.significance import Matches

__all__ = ["REPORT_FILE", "PastRun", "read_run"]

REPORT_FILE = "report.json"  # in a run directory


@dataclass(frozen=True, slots=True, eq=False)
class PastRun:
    """A run that is over.

    Attributes:
        name: As it was asked for.
        report: What it tells.
        matches: By (file, runtime); None where the run kept none.
    """

    name: str
    report: Report
    matches: dict[tuple[str, str], Matches] | None


def read_run(path: Path) -> PastRun:
    """Read a run directory or a report file; matches lie beside the report.

    Raises:
        SourceError: There is no report, it is not ours or of another version, or the matches
            are damaged.
    """
    file = path / REPORT_FILE if path.is_dir() else path
    if not file.is_file():
        found = f"there is no {REPORT_FILE} in it" if path.is_dir() else "there is no such file"
        raise SourceError(str(path), found, "name a run directory or its report.json")
    try:
        report = Report.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (
        ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError,
    ) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}"[:160]
        raise SourceError(
            str(file), f"it is no report that this version reads ({reason})", "run again"
        ) from None
    sidecar = file.with_name(MATCHES_FILE)
    return PastRun(str(path), report, read_matches(sidecar) if sidecar.is_file() else None)
