"""`boxwright evaluate`: how well files detect, on labelled pictures."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from boxwright.cli.options import ARTIFACT, device_arguments, runtime_options

if TYPE_CHECKING:
    from boxwright.datasets import Dataset
    from boxwright.detector import Detector
    from boxwright.significance import Matches
    from boxwright.types import Accuracy, Change

    Row: TypeAlias = tuple[Accuracy, Change | None]

__all__ = ["command"]


@click.command("evaluate")
@click.argument("artifacts", nargs=-1, required=True, type=ARTIFACT, metavar="ARTIFACT...")
@click.option(
    "--data",
    required=True,
    metavar="PATH",
    help="COCO .json, data.yaml, folder with images/ and labels/ or of classes, list .txt, sample.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of a COCO file's pictures.")
@click.option("--split", metavar="NAME", help="Part of a data.yaml or folder. Default: val.")
@click.option("--pages", type=int, help="Pages that --data sample generates. Default: 200.")
@click.option("--max-images", type=click.IntRange(1), help="At most so many, evenly spaced.")
@runtime_options
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Pictures per inference.",
)
@click.option("--score-threshold", type=float, help="Of the curve. Default: 0.001.")
@click.option("--iou-threshold", type=float, help="NMS of the curve. Default: the project's own.")
@click.option(
    "--max-detections",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="Of a picture, and of a class in it.",
)
@click.option(
    "--resamples",
    type=click.IntRange(0, 100_000),
    metavar="N",
    help="Draws for the 95 % intervals; 0 leaves them out. Default: 2000, fewer on large data.",
)
@click.option("--family", metavar="NAME", help="Family of a raw ONNX that does not say.")
@click.option("--labels", metavar="FILE", help="Class names: JSON or text, or coco.")
@click.option("--save-json", type=click.Path(path_type=Path), help="Every figure in one file.")
@click.option("--force", is_flag=True, help="Replace a result file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
@click.option("--verbose", is_flag=True, help="Print each class, too.")
def command(artifacts: tuple[Path | str, ...], **options: Any) -> int:
    """Measure mAP, precision and recall of one or more files of a model.

    Of segmenters it is mask mAP, of poses OKS mAP, each beside that of the boxes; of rotated boxes
    rotated mAP; of classifiers top-1 and top-5.

    mAP is COCO's, from the whole curve down to a score of 0.001; precision, recall and F1 are
    those of the file's own thresholds. How sure an mAP is, and whether a file differs from the
    first, is told by bootstrap over the pictures; see docs/accuracy.md. What is wrong with the data
    is counted and printed. Exit status 1 when a picture could not be measured. --data sample
    generates labelled pages for the embedded detector. A model on a server is named
    triton://host:port/model.

    \b
    boxwright evaluate runs/yolo11n/*.onnx --data coco128/data.yaml --split val
    """
    from boxwright.cli.console import ConsoleListener
    from boxwright.datasets import open_dataset, wanted_of
    from boxwright.environment import describe_environment, package_versions
    from boxwright.evaluate import evaluate
    from boxwright.predict import Wishes

    Wishes(json_file=options["save_json"], force=options["force"]).check()
    unmeasured: list[str] = []
    matches: dict[str, Matches] = {}
    with ExitStack() as open_files, ConsoleListener() as listener:
        detectors = _open(artifacts, options, open_files)
        spec = next(iter(detectors.values())).spec
        dataset = open_dataset(
            options["data"],
            class_names=spec.class_names,
            split=options["split"],
            images=options["images"],
            pages=options["pages"],
            wanted=wanted_of(spec),
            count=lambda done, total: listener.count("pages", done, total),
        )
        _print_problems(dataset)
        if options["max_images"]:
            dataset = dataset.limited(options["max_images"])
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            listener.count("pictures", done, len(dataset.items))

        def report(text: str) -> None:
            unmeasured.append(text)
            _say(text)

        results = evaluate(
            detectors,
            dataset,
            batch=options["batch"],
            score_threshold=options["score_threshold"],
            iou_threshold=options["iou_threshold"],
            max_detections=options["max_detections"],
            environment={**describe_environment(), **package_versions(("faster-coco-eval",))},
            advance=advance,
            report=report,
            matches=matches,
        )
        rows, draws = _with_intervals(results, matches, options["resamples"])
    _finish(rows, draws, options)
    return 1 if unmeasured else 0


def _say(text: str) -> None:
    print(f"boxwright: {text}", file=sys.stderr)


def _open(
    artifacts: Sequence[Path | str], options: dict[str, Any], open_files: ExitStack
) -> dict[str, Detector]:
    """Open every file; files of one name are told apart by their folders."""
    from boxwright.errors import RequestError
    from boxwright.loading import load
    from boxwright.triton_address import artifact_name

    detectors: dict[str, Detector] = {}
    for path in artifacts:
        alike = [p for p in artifacts if artifact_name(p) == artifact_name(path)]
        name = artifact_name(path) if len(alike) == 1 else str(path)
        if name in detectors:
            raise RequestError(str(path), "it is named twice", "name each file once")
        detectors[name] = open_files.enter_context(
            load(
                path,
                options["runtime"],
                threads=options["threads"],
                **device_arguments(options),
                family=options["family"],
                labels=options["labels"],
            )
        )
    return detectors


def _print_problems(dataset: Dataset) -> None:
    """Say what is wrong with the data, and where each was first met."""
    for what, count in dataset.problems.items():
        _say(f"{dataset.name}: {count} {what} (first: {dataset.first[what]})")


def _with_intervals(
    results: dict[str, Accuracy], matches: dict[str, Matches], asked: int | None
) -> tuple[list[Row], int]:
    """Return each accuracy with its interval and its change against the first, and the draws."""
    from boxwright.significance import change, default_resamples, interval

    draws = default_resamples(*matches.values()) if asked is None else asked
    first = next(iter(results))
    rows: list[Row] = []
    for name, accuracy in results.items():
        if not draws or accuracy.figure is None:
            rows.append((accuracy, None))
            continue
        ends = interval(matches[name], resamples=draws)
        difference = None
        if name != first:
            difference = change(matches[name], matches[first], first, resamples=draws)
        rows.append((dataclasses.replace(accuracy, interval=ends), difference))
    return rows, draws


def _finish(rows: list[Row], draws: int, options: dict[str, Any]) -> None:
    """Save and print."""
    from boxwright.store import write_atomic

    results = [accuracy for accuracy, _ in rows]
    for accuracy in results:
        for warning in accuracy.warnings:
            _say(f"warning: {accuracy.candidate}: {warning}")
    data = [{**a.as_dict(), "change": dataclasses.asdict(c) if c else None} for a, c in rows]
    text = json.dumps(data, indent=1, ensure_ascii=False)
    if options["save_json"]:
        file: Path = options["save_json"]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, (text + "\n").encode())
    if options["as_json"]:
        click.echo(text)
        return
    _print_table(rows)
    if draws:
        _print_draws(rows, draws)
    if options["verbose"]:
        _print_classes(results)


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from boxwright.coco_matches import TOP1

    first = rows[0][0]
    title = escape(f"{first.dataset}: {first.pictures} pictures, {first.objects} objects")
    table = Table(title=title, title_justify="left")
    table.add_column("file", overflow="fold")
    compared = any(change for _, change in rows)
    for name in (first.measure, *(["change"] if compared else [])):
        table.add_column(name, justify="right")
    at_one = [first.measure.replace("50-95", iou) for iou in ("50", "75")]
    mean = (*at_one, "small", "medium", "large")
    counted = ("at score", "precision", "recall", "F1")
    by_curve = first.measure != TOP1
    for name in (*first.beside, *((*mean, *counted) if by_curve else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for a, change in rows:
        table.add_row(
            escape(a.candidate),
            escape(_with_ends(_cell(a.figure), a.interval, ".3f")),
            *([escape(_change_cell(change))] if compared else []),
            *(_cell(a.beside.get(name)) for name in first.beside),
            *(_curve_cells(a) if by_curve else ()),
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=180 if not first.beside else 220)
    console.print(table)


def _curve_cells(a: Accuracy) -> list[str]:
    means = (a.map50, a.map75, a.map_small, a.map_medium, a.map_large)
    threshold = f"{a.operating.score_threshold:g}"
    counted = (a.precision, a.recall, a.f1)
    return [*(_cell(v) for v in means), threshold, *(_cell(v) for v in counted)]


def _with_ends(text: str, ends: tuple[float, float] | None, form: str) -> str:
    return f"{text} [{ends[0]:{form}}, {ends[1]:{form}}]" if ends else text


def _change_cell(change: Change | None) -> str:
    """Return the difference and its interval, `*` behind one that is told from none."""
    if change is None:
        return ""
    low, high = change.low, change.high
    ends = None if low is None or high is None else (low, high)
    star = "" if change.within_noise else " *"
    return _with_ends(f"{change.difference:+.4f}", ends, "+.3f") + star


def _print_draws(rows: list[Row], draws: int) -> None:
    """Say what the intervals are, or why there are none."""
    from boxwright.significance import LEAST_PICTURES

    if not any(a.interval for a, _ in rows):
        click.echo(f"no 95 % intervals: under {LEAST_PICTURES} pictures show objects")
        return
    text = f"[ ]: 95 % interval, {draws} draws of the pictures"
    if any(change for _, change in rows):
        text += f"; change: against {rows[0][0].candidate}, * where the interval leaves out 0"
    click.echo(text)


def _print_classes(results: list[Accuracy]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"AP50-95 / AP50 by class ({results[0].measure})", title_justify="left")
    if not results[0].per_class:
        return
    table.add_column("class", overflow="fold")
    table.add_column("objects", justify="right")
    for a in results:
        table.add_column(escape(a.candidate), justify="right", overflow="fold")
    for name, own in results[0].per_class.items():
        cells = [a.per_class[name] for a in results]
        table.add_row(
            escape(name),
            str(own.objects),
            *(f"{_cell(c.ap50_95)} / {_cell(c.ap50)}" for c in cells),
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    console.print(table)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
