"""Reads report.json back, and refuses what is no report before anything is made of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxwright.errors import SourceError
from boxwright.report.records import SCHEMA, Report

__all__ = ["REPORT_FILE", "report_file", "report_from_file"]

REPORT_FILE = "report.json"
_MADE_AGAIN = "make it again with boxwright run"
_BOX_VALUES = 4


def report_file(run: Path) -> Path:
    """Return the report.json that a run directory or a file's own path means.

    Raises:
        SourceError: There is none.
    """
    if run.is_dir():
        if not (run / REPORT_FILE).is_file():
            raise SourceError(
                str(run), f"it holds no {REPORT_FILE}", "name the directory of a run, or the file"
            )
        return run / REPORT_FILE
    if not run.is_file():
        raise SourceError(str(run), "there is no such file", "check the path")
    return run


def report_from_file(path: Path) -> Report:
    """Read a report.json.

    Raises:
        SourceError: It cannot be read, is no report, or is of another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = f"it cannot be read ({error.strerror})"
        raise SourceError(str(path), found, "check the path") from None
    except (ValueError, RecursionError):
        raise SourceError(str(path), "it is no JSON", f"name a {REPORT_FILE}") from None
    if not isinstance(data, Mapping) or "schema" not in data or "artifacts" not in data:
        raise SourceError(str(path), "it is no report of Boxwright", f"name a {REPORT_FILE}")
    if data["schema"] != SCHEMA:
        found = f"it is of schema {data['schema']}, and this version knows {SCHEMA}"
        raise SourceError(str(path), found, _MADE_AGAIN)
    try:
        report = Report.from_dict(data)
        _check(report)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(str(path), f"it is damaged ({_reason(error)})", _MADE_AGAIN) from None
    return report


def _check(report: Report) -> None:
    """Refuse values of wrong types, which the records themselves do not look at.

    Raises:
        ValueError: There is one.
    """
    from pydantic import TypeAdapter

    TypeAdapter(Report).validate_python(dataclasses.asdict(report))
    for shown in report.pictures:
        for row in shown.truth or ():
            _check_row(shown.name, row)
        for rows in shown.found.values():
            for row in rows:
                _check_row(shown.name, row)
                float(row["score"])


def _check_row(picture: str, row: Mapping[str, Any]) -> None:
    if len([float(v) for v in row["xyxy"]]) != _BOX_VALUES:
        raise ValueError(f"{picture}: a box has four values")
    if not isinstance(row["class_name"], str):
        raise ValueError(f"{picture}: a class name is text")


def _reason(error: Exception) -> str:
    """Return what is wrong in one short line."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
