"""One self-contained HTML page made of a report: no network, no server, nothing beside it.

Everything that comes from outside (names of files, classes, pictures) is text: Jinja escapes it in
the page, `_json_for_script` in the scripts' data, and a content security policy lets no script run
but the page's own, which it names by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxwright.report.cells import FILTERS, range_of, share
from boxwright.report.plot_data import data_for_scripts, max_drop_of, setting_text
from boxwright.report.records import SOURCE, Report
from boxwright.report.subjects import (
    Subject,
    budgets,
    in_order,
    labels,
    lineage,
    size_ratios,
    subjects,
)
from boxwright.types import SPANS, Parity

__all__ = ["html_from_report"]

_FOLDER = Path(__file__).parent
_STYLES = ("page.css", "parts.css")
_FIRST_SCRIPT = "first.js"  # before anything is painted
_SCRIPTS = (
    "common.js",
    "tables.js",
    "plots.js",
    "accuracy.js",
    "latency.js",
    "layers.js",
    "pictures.js",
    "start.js",
)
# Why a part is missing is looked for among the report's notes by these words.
_WORDS = {
    "parity": ("parity", "verif"),
    "accuracy": ("accuracy", "map50", "labelled", "evaluat"),
    "latency": ("latency", "benchmark", "speed", "throughput"),
    "layers": ("int8", "budget", "sensitiv", "quantis"),
    "pictures": ("picture",),
}


def html_from_report(report: Report) -> str:
    """Return the page: it works offline and from a file, plots and pictures need JavaScript.

    The same report gives the same page.
    """
    import jinja2

    data = data_for_scripts(report)
    has_plots = any(data[k] for k in ("accuracy", "latency", "budgets"))
    first = _page_file(_FIRST_SCRIPT)
    scripts = ["(function () {\n'use strict';\n" + "\n".join(map(_page_file, _SCRIPTS)) + "}());\n"]
    if has_plots:
        from plotly.offline import get_plotlyjs

        scripts.insert(0, _inert(get_plotlyjs()))
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(FILTERS)
    markup = templates.filters["safe"]  # of our own files alone
    page = templates.get_template("page.html.j2").render(
        _facts(report),
        data=markup(_json_for_script(data)),
        has_tradeoff=bool(data["tradeoff"]),
        first=markup(first),
        policy=_policy([first, *scripts]),
        scripts=[markup(s) for s in scripts],
        styles=markup("\n".join(map(_page_file, _STYLES))),
    )
    return page.encode("utf-8", "replace").decode()  # halves of letters, which no file can hold


def _facts(report: Report) -> dict[str, Any]:
    """Return what the templates read."""
    known = subjects(report)
    benchmark = report.benchmark
    recipe = json.dumps(_plain(dict(report.request)), indent=2, ensure_ascii=False)
    return {
        "SOURCE": SOURCE,
        "SPANS": SPANS,
        "budgets": budgets(report),
        "chosen": next((s for s in known if s.chosen and s.runtime), None)
        or next((s for s in known if s.chosen), None),
        "labels": labels(report),
        "lineage": lineage(report),
        "machine": _machine(report),
        "max_drop_of": max_drop_of,
        "measure": report.accuracy[0].accuracy.measure if report.accuracy else "mAP50-95",
        "measured": [(s, m) for s in known for m in s.measured if benchmark is not None],
        "parities": _parities(report),
        "range_of": range_of,
        "ratios": size_ratios(report),
        "recipe": recipe,
        "report": report,
        "setting_text": setting_text,
        "share": share,
        "spec": report.artifacts[0].artifact.spec if report.artifacts else None,
        "subjects": known,
        "tightest": _tightest,
        "unverified": [a for a in report.artifacts if a.artifact.path.name not in report.parity],
        "warnings": _warnings(known),
        "why": {part: _why(report, words) for part, words in _WORDS.items()},
    }


def _parities(report: Report) -> list[tuple[str, Parity]]:
    """Return each verified file with its parity, in the order of the other parts."""
    names = dict.fromkeys([*(a.artifact.path.name for a in in_order(report.artifacts))])
    order = [
        *(n for n in names if n in report.parity),
        *(n for n in report.parity if n not in names),
    ]
    return [(n, report.parity[n]) for n in order]


def _warnings(known: Sequence[Subject]) -> dict[str, list[str]]:
    """Return what makes figures less comparable, each with the files that it is said of."""
    found: dict[str, list[str]] = {}
    for subject in known:
        for warning in subject.evaluated.accuracy.warnings if subject.evaluated else ():
            found.setdefault(warning, []).append(subject.title)
    return found


def _tightest(parity: Parity) -> tuple[str, float] | None:
    """Return the check that uses up most of its limit, and how much; None where none has one."""
    used = [(c.name, share(c.measured, c.limit)) for c in parity.checks if c.passed is not None]
    known = [(name, value) for name, value in used if value is not None]
    return max(known, key=lambda k: k[1], default=None)


def _why(report: Report, words: Sequence[str]) -> str:
    """Return the notes that speak of a part."""
    return " ".join(n for n in report.notes if any(w in n.lower() for w in words))


def _machine(report: Report) -> dict[str, str]:
    """Return the environment, and what the benchmark saw besides or otherwise."""
    facts = dict(report.environment)
    for key, value in (report.benchmark.environment if report.benchmark else {}).items():
        if facts.get(key) != value:
            facts[key if key not in facts else f"{key}, at the benchmark"] = value
    return facts


def _page_file(name: str) -> str:
    return _inert((_FOLDER / "page" / name).read_text(encoding="utf-8"))


def _inert(text: str) -> str:
    """Return a script or style that the parser takes whole, with the line ends that it would make.

    Raises:
        ValueError: It would end its element.
    """
    if "</script" in text.lower() or "</style" in text.lower() or "<!--" in text:
        raise ValueError("the text would end the element that it stands in")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _policy(scripts: Sequence[str]) -> str:
    """Return the content security policy: no network, and no scripts but these."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    return (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )


def _json_for_script(data: Any) -> str:
    """Return JSON that no HTML parser takes for markup, whatever the texts in it.

    >>> _json_for_script(["</script>&"])
    '["\\\\u003c/script\\\\u003e\\\\u0026"]'
    """
    text = json.dumps(_plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _plain(value: Any) -> Any:
    """Return JSON types; numbers that JSON does not know become null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
