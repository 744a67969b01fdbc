"""The report of a run directory: collects what is known of its files and has the rest measured."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from boxwright import __version__
from boxwright.benchmark import Entry
from boxwright.datasets import Dataset
from boxwright.detector import Detector
from boxwright.environment import describe_environment
from boxwright.errors import SourceError
from boxwright.evidence import Evidence
from boxwright.matches_file import read_matches, write_matches
from boxwright.outcome import Listener
from boxwright.plan import hash_of
from boxwright.recipe import Recipe, text_from_recipe
from boxwright.report import SOURCE, Made, Report
from boxwright.report.choice import choose
from boxwright.report.html import html_from_report
from boxwright.resolve import Resolved
from boxwright.significance import Matches
from boxwright.store import MATCHES_FILE, PAGE_FILE, RECIPE_FILE, REPORT_FILE, Store, write_atomic
from boxwright.store import Entry as Stored
from boxwright.types import (
    Artifact,
    Image,
    ModelSpec,
    NmsSettings,
    Parity,
    Precision,
    Target,
    TensorInfo,
)

__all__ = ["known_report", "write_report"]


def known_report(folder: Path) -> Report | None:
    """Return the report that is in a run directory, or None where there is none to be read."""
    try:
        return Report.from_dict(json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_report(
    store: Store,
    recipe: Recipe,
    resolved: Resolved,
    *,
    source: Callable[[], Detector],
    dataset: Dataset | None,
    pictures: list[Path | Image],
    command: str,
    again: bool,
    listener: Listener,
) -> Report:
    """Measure what is not known yet, and write the recipe, report.json and its page.

    Args:
        store: The run directory.
        recipe, resolved: What was asked for.
        source: Opens the source; it stays open.
        dataset: Labelled pictures, or None.
        pictures: Those that were verified on.
        command: What asked for the run; "" where it was no command.
        again: Measure what is known, too.
        listener: Told what happens.

    Raises:
        BoxwrightError: Something cannot be measured or written.
    """
    files = {n: e for n, e in sorted(store.entries.items()) if e.state != "built"}
    artifacts = tuple(sorted((_made(n, e) for n, e in files.items()), key=_place))
    there = [
        a for a in artifacts if a.state == "published" and store.path(a.artifact.path.name).exists()
    ]
    known = None if again else known_report(store.folder)
    parity = {n: Parity.from_dict(e.parity) for n, e in files.items() if e.parity}
    runtime = "onnxruntime" if resolved.source.name == "onnx" else "pytorch"
    evidence = Evidence(
        recipe=recipe,
        folder=store.folder,
        files=there,
        source=source,
        source_runtime=runtime,
        source_entry=_source_entry(recipe, resolved, runtime),
        source_key=hash_of([store.source.get("sha256"), _asked_of_source(recipe)]),
        dataset=dataset,
        pictures=pictures,
        random_weights=resolved.request.path.suffix in (".yaml", ".yml"),
        known=known,
        known_matches=_known_matches(store.folder) if known else {},
        listener=listener,
    )
    accuracy = evidence.accuracy()
    timed, timed_key = evidence.latency()
    shown, shown_key = evidence.shown()
    report = Report(
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        boxwright=__version__,
        name=resolved.request.name,
        command=command or _run_command(store.folder),
        request=recipe.model_dump(mode="json"),
        source=store.source,
        environment=describe_environment(),
        artifacts=artifacts,
        parity=parity,
        accuracy=accuracy,
        benchmark=timed,
        benchmark_key=timed_key,
        pictures=shown,
        pictures_key=shown_key,
        notes=tuple(evidence.notes),
    )
    choice = choose(artifacts, parity, accuracy, timed, recipe.max_drop)
    report = dataclasses.replace(
        report,
        choice=choice,
        commands=tuple(_commands(report, store.folder, choice.file, choice.runtime)),
    )
    page = store.folder / PAGE_FILE
    if known is not None and _facts(known) == _facts(report):
        if not page.exists():
            write_atomic(page, html_from_report(known).encode())
        return known
    if evidence.matches:
        write_matches(store.folder / MATCHES_FILE, evidence.matches)
    write_atomic(store.folder / RECIPE_FILE, text_from_recipe(recipe).encode())
    write_atomic(
        store.folder / REPORT_FILE, (json.dumps(report.as_dict(), sort_keys=True) + "\n").encode()
    )
    write_atomic(page, html_from_report(report).encode())
    return report


def _known_matches(folder: Path) -> dict[tuple[str, str], Matches]:
    """Return what the known accuracies were counted from; nothing where it cannot be read."""
    try:
        return read_matches(folder / MATCHES_FILE)
    except SourceError:
        return {}


def _place(made: Made) -> tuple[int, bool, str]:
    """Return the place of a file in the report: FP32 first, raw before end-to-end."""
    target = made.artifact.target
    order = get_args(Precision).index(target.precision)
    return order, target.outputs == "end2end", made.artifact.path.name


def _facts(report: Report) -> Any:
    """Return what makes two reports differ for a reader: all but when and where it was written."""
    data = report.as_dict()
    for key in ("created_at", "environment", "command", "commands", "request"):
        del data[key]
    return json.loads(json.dumps(data))


def _asked_of_source(recipe: Recipe) -> Mapping[str, Any]:
    """Return what changes the source's own behaviour."""
    keys = {"image_size", "head", "family", "config", "labels", "seed", "trust_checkpoint"}
    return recipe.model_dump(mode="json", include=keys)


def _source_entry(recipe: Recipe, resolved: Resolved, runtime: str) -> Entry | None:
    """Return the source as it runs by itself; None where it was asked for in another way."""
    path = resolved.request.path
    changed = (
        recipe.image_size is not None
        or recipe.head != "auto"
        or recipe.trust_checkpoint
        or recipe.config is not None
    )
    if changed or not path.is_file():
        return None
    return Entry(path, runtime, SOURCE, family=recipe.family, labels=recipe.labels)


def _run_command(folder: Path) -> str:
    """Return the command line that asks for the same; the recipe holds everything."""
    words = ["boxwright", "run", str(folder / RECIPE_FILE), "--out", str(folder.parent)]
    return shlex.join(words)


def _commands(report: Report, folder: Path, file: str, runtime: str) -> list[tuple[str, str]]:
    """Return (what it does, command line) to repeat each part."""
    recipe, listed = report.request, [("make, verify and measure again", _run_command(folder))]
    if not file:
        return listed
    path = str(folder / file)
    listed.append(("verify", shlex.join(["boxwright", "verify", str(recipe["source"]), path])))
    there = [str(folder / a.artifact.path.name) for a in report.artifacts if a.state == "published"]
    data = recipe["data"]
    if data:
        words = ["boxwright", "evaluate", *there, "--data", data]
        if recipe["data_split"]:
            words += ["--split", recipe["data_split"]]
        if recipe["data_images"]:
            words += ["--images", recipe["data_images"]]
        if recipe["max_data"]:
            words += ["--pages" if data == "sample" else "--max-images", str(recipe["max_data"])]
        listed.append(("accuracy", shlex.join(words)))
    threads = ["--threads", str(recipe["threads"])] if recipe["threads"] else []
    listed.append(("latency", shlex.join(["boxwright", "benchmark", *there, *threads])))
    words = ["boxwright", "predict", path, "PICTURES", "--out", "drawn"]
    words += ["--runtime", runtime, *threads] if runtime else threads
    listed.append(("detect", shlex.join(words)))
    return listed


def _made(name: str, entry: Stored) -> Made:
    record = entry.record

    def tensors(values: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(v["name"], v["dtype"], tuple(v["shape"])) for v in values)

    artifact = Artifact(
        path=Path(name),
        sha256=entry.sha256,
        spec=ModelSpec.from_dict(record["spec"]),
        target=Target.from_dict(record["target"]),
        inputs=tensors(record["inputs"]),
        outputs=tensors(record["outputs"]),
        parent=entry.parent,
        made_with=record["made_with"],
    )
    nms = NmsSettings.from_dict(record["nms"]) if record["nms"] else None
    assert entry.state != "built", "only files in place are told of"
    return Made(artifact, entry.state, int(record["size_bytes"]), nms, record.get("budget"))
