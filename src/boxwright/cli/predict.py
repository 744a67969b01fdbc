"""`boxwright predict`: detect in pictures, folders, globs, videos and cameras."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.options import ARTIFACT, device_arguments, runtime_options

if TYPE_CHECKING:
    from boxwright.predict import Threads

__all__ = ["command"]


@click.command("predict")
@click.argument("artifact", type=ARTIFACT)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@runtime_options
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Pictures per inference.",
)
@click.option(
    "--decoders",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Threads that read and decode picture files while the network runs. "
    "Default: up to 4 for more than 50 files, else none.",
)
@click.option(
    "--decode",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Where JPEG files are decoded; gpu needs --preprocess gpu and other pixels come out.",
)
@click.option(
    "--preprocess",
    type=click.Choice(["host", "gpu"]),
    default="host",
    show_default=True,
    help="Where pictures are letterboxed; gpu is for plans, within one grey level of host.",
)
@click.option("--score-threshold", type=float, help="Default: the file's own.")
@click.option("--iou-threshold", type=float, help="Default: the file's own.")
@click.option("--classes", metavar="LIST", help="Only these: names or ids, a comma list.")
@click.option("--family", metavar="NAME", help="Family of a raw ONNX that does not say.")
@click.option(
    "--labels",
    metavar="FILE",
    help="Class names, with #rrggbb colours or a palette: JSON or text, or coco.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for drawings. Default: none.")
@click.option("--save-json", type=click.Path(path_type=Path), help="All detections in one file.")
@click.option("--save-coco", type=click.Path(path_type=Path), help="COCO results in one file.")
@click.option("--save-txt", type=click.Path(path_type=Path), help="Folder for YOLO text files.")
@click.option("--save-conf", is_flag=True, help="Scores as sixth column of the YOLO text.")
@click.option("--max-frames", type=click.IntRange(1), help="Stop a video or camera after these.")
@click.option("--force", is_flag=True, help="Replace result files that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print the detections as JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(artifact: Path | str, inputs: tuple[str, ...], **options: Any) -> int:
    """Detect objects and save drawings and records.

    ARTIFACT is a file, or a model on a server, triton://host:port/model. INPUT is a picture,
    a folder (searched in depth), a glob, a video, or the number of a camera.
    A picture that cannot be read is reported and the others go on; the exit status is then 1.

    \b
    boxwright predict runs/yolo11n/yolo11n.fp32.onnx bus.jpg --out drawn/ --save-json bus.json
    """
    from boxwright.loading import load
    from boxwright.predict import Wishes, class_ids_from_text, open_inputs, predict

    wishes = Wishes(
        drawings=options["out"],
        json_file=options["save_json"],
        coco_file=options["save_coco"],
        text_folder=options["save_txt"],
        text_scores=options["save_conf"],
        force=options["force"],
    )
    wishes.check()
    pictures = open_inputs(inputs, options["max_frames"])
    with load(
        artifact,
        options["runtime"],
        threads=options["threads"],
        **device_arguments(options),
        score_threshold=options["score_threshold"],
        iou_threshold=options["iou_threshold"],
        family=options["family"],
        labels=options["labels"],
        pictures=pictures.total,
    ) as detector:
        wanted = class_ids_from_text(options["classes"], detector.spec.class_names)
        with _progress(pictures.total, options["quiet"]) as advance:
            summary = predict(
                detector,
                pictures,
                wishes,
                batch=options["batch"],
                class_ids=wanted,
                threads=_threads(pictures.total, options),
                advance=advance,
                report=_report,
            )
    if options["as_json"]:
        click.echo(json.dumps(summary.records, indent=1, ensure_ascii=False))
    else:
        for record in summary.records[:200]:
            click.echo(f"{record['image']}: {_counts(record['detections'])}")
        if len(summary.records) > 200:
            click.echo(f"... and {len(summary.records) - 200} more")
    click.echo(
        f"boxwright: {summary.read} pictures, {summary.detections} detections, "
        f"{summary.failed} unreadable",
        err=True,
    )
    return 1 if summary.failed else 0


_FEW_FILES = 50  # threads that start and end cost more than they save below
_MOST_DECODERS = 4


def _threads(total: int | None, options: dict[str, Any]) -> Threads | None:
    """Return how pictures are read ahead, or None when they are not."""
    from boxwright.freed_memory import keep_freed_memory
    from boxwright.predict import Threads

    decoders, decode, preprocess = (options[n] for n in ("decoders", "decode", "preprocess"))
    asked = decoders is not None or "gpu" in (decode, preprocess)
    if not asked and (total is None or total <= _FEW_FILES):
        return None
    keep_freed_memory()  # many pictures come and go
    return Threads(decoders or min(_MOST_DECODERS, os.cpu_count() or 1), decode, preprocess)


@contextmanager
def _progress(total: int | None, quiet: bool) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each picture; a terminal shows a bar on stderr."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    # Here, not above: rich costs a script that pipes stderr a tenth of its start.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("pictures", total=total)
        yield lambda: bar.advance(task)


def _report(text: str) -> None:
    """Print why a picture was left out."""
    print(f"boxwright: {text}", file=sys.stderr)


def _counts(detections: list[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for detection in detections:
        counts[detection["class_name"]] = counts.get(detection["class_name"], 0) + 1
    return ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing"
