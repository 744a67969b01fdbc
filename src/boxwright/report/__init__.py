"""What a run leaves to read: report.json, and one HTML page made of it."""

from __future__ import annotations

from boxwright.report.records import SCHEMA, SOURCE, Choice, Evaluated, Made, Report, Shown

__all__ = ["SCHEMA", "SOURCE", "Choice", "Evaluated", "Made", "Report", "Shown"]
