"""Runs the conformance suite over the catalog and writes the table of docs/families.md.

    python tools/make_families_table.py

The results land in benchmarks/results/; a test measures them again and compares.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["main", "newest_results", "page_with_table", "table"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families.md"
RESULTS = ROOT / "benchmarks" / "results"
_START, _END = "<!-- made by tools/make_families_table.py -->", "<!-- end of what was made -->"
_HEAD = ("family", "form", "task", "recognised", "raw", "`onnx`", "`portable`", "`efficient_nms`")
_PRECISIONS = ("fp32", "fp16", "int8")
_OUTPUTS = ("raw", "onnx", "portable", "efficient_nms")
Row = Mapping[str, Any]


def newest_results() -> Path:
    """Return the newest recorded results."""
    return sorted(RESULTS.glob("families-conformance-*.json"))[-1]


def table(
    rows: Sequence[Row], families: Iterable[str], evidence: Mapping[str, tuple[str, str]]
) -> str:
    """Return the table in Markdown.

    Args:
        rows: Results of the suite, one for each case, precision and output.
        families: Names of the catalog's entries, in its order.
        evidence: Weights behind a case: kind and words.
    """
    lines = ["| " + " | ".join((*_HEAD, "weights")) + " |", "|" + "---|" * (len(_HEAD) + 1)]
    notes: list[str] = []
    for family in families:
        for case in dict.fromkeys(r["case"] for r in rows if r["family"] == family):
            own = [r for r in rows if r["case"] == case]
            cells = [_cell([r for r in own if r["outputs"] == o], notes) for o in _OUTPUTS]
            title = case.removeprefix(f"{family} ")
            first = own[0]
            known = "yes" if first["recognised"] else "`--family`"
            kind, words = evidence.get(case, ("", ""))
            weights = f"{kind}: {words}" if kind else "built graph"
            start = [f"`{family}`", title, first["task"], known]
            lines.append("| " + " | ".join([*start, *cells, weights]) + " |")
    numbered = [f"{i}. Refused: {note}." for i, note in enumerate(notes, 1)]
    return "\n".join([*lines, "", *numbered])


def _cell(rows: Sequence[Row], notes: list[str]) -> str:
    """Return what one output of one case does: all precisions, some, or why not."""
    proven = [r["precision"] for r in rows if r["status"] == "proven"]
    if proven == list(_PRECISIONS):
        return "all"
    numbers = []
    for row in rows:
        if row["status"] != "proven":
            reason = row["status"].removeprefix("refused: ")
            if reason not in notes:
                notes.append(reason)
            numbers.append(notes.index(reason) + 1)
    why = ", ".join(f"no ({n})" for n in dict.fromkeys(numbers))
    return ", ".join([*proven, why])


def page_with_table(page: str, made: str) -> str:
    """Return the page with the table between its two marks."""
    before, _, rest = page.partition(_START)
    _, _, after = rest.partition(_END)
    return f"{before}{_START}\n\n{made}\n\n{_END}{after}"


def main() -> None:
    """Measure, record, and write the page."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    from conformance import CASES, EVIDENCE, as_dict, measure

    from boxwright import catalog

    rows: list[dict[str, Any]] = []
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows += [as_dict(result) for result in measure(name, Path(folder))]
        print(name, file=sys.stderr)
    now = datetime.now(timezone.utc)
    packages = ("onnx", "onnxruntime", "onnxslim", "numpy")
    record = {
        "command": "python tools/make_families_table.py",
        "date": now.date().isoformat(),
        "versions": {name: version(name) for name in packages},
        "rows": rows,
    }
    for old in RESULTS.glob("families-conformance-*.json"):
        old.unlink()
    path = RESULTS / f"families-conformance-{record['date']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    made = table(rows, [f.name for f in catalog.families()], EVIDENCE)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page_with_table(text, made), encoding="utf-8")


if __name__ == "__main__":
    main()
