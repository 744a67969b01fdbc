"""`boxwright fleet predict`: detections of every input, once each."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.devices import devices_option
from boxwright.cli.fleet_ray import ray_options
from boxwright.cli.options import device_arguments, runtime_options

if TYPE_CHECKING:
    from boxwright.fleet.engines import Engine
    from boxwright.fleet.job import Job, Pace, Settings
    from boxwright.fleet.predict import FleetSummary

__all__ = ["predict_command"]

_MOST_DECODERS = 16


@click.command("predict")
@click.argument("artifact", metavar="ARTIFACT")
@click.argument("input", metavar="INPUT")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the results."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["parquet", "jsonl", "coco"]),
    default="parquet",
    show_default=True,
    help="Parquet needs pyarrow; JSON lines and COCO JSON need nothing more.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    help="Inputs of a file of results; what a crash can cost at most.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This machine, or a Ray cluster.",
)
@ray_options
@runtime_options
@devices_option
@click.option(
    "--workers",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Processes of the local engine. Default: one a GPU; on a CPU one for each core, or for "
    "--threads of them.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Pictures per inference.",
)
@click.option(
    "--decoders",
    type=click.IntRange(0, 256),
    metavar="N",
    help="Threads of a worker that read beside the network; 0 reads in turn with it. Default: 0 on "
    "a CPU, up to 16 on a GPU.",
)
@click.option(
    "--decode",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Where JPEG files are decoded; gpu needs --preprocess gpu.",
)
@click.option(
    "--preprocess",
    type=click.Choice(["host", "gpu"]),
    default="host",
    show_default=True,
    help="Where pictures are letterboxed; gpu is for plans.",
)
@click.option("--score-threshold", type=float, help="Default: the file's own.")
@click.option("--iou-threshold", type=float, help="Default: the file's own.")
@click.option("--classes", metavar="LIST", help="Only these: names or ids, a comma list.")
@click.option("--family", metavar="NAME", help="Family of a raw ONNX that does not say.")
@click.option("--labels", metavar="FILE", help="Class names: JSON or text, or coco.")
@click.option("--keep-listing", is_flag=True, help="Resume without listing the inputs again.")
@click.option("--redo-failed", is_flag=True, help="Do shards again in which pictures failed.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def predict_command(artifact: str, input: str, **options: Any) -> int:
    """Detect in every input; one row each, always, and none twice.

    INPUT is a folder (searched in depth), a quoted glob, a list (.txt), a Parquet file of paths or
    of bytes, the URL of one of these, or synthetic://COUNT. A picture that fails is a row with its
    error; the exit status is then 1. After a crash the same command goes on where it stopped. The
    rows are the same whatever the engine, the number of workers and the order.

    \b
    boxwright fleet predict yolo11n.fp32.onnx pictures/ --out found/
    boxwright fleet predict yolo11n.plan pictures/ --out found/ --devices 0,1 --batch 64
    """
    from boxwright.fleet.artifact import file_from_text
    from boxwright.fleet.predict import fleet_predict
    from boxwright.predict import class_ids_from_text

    def classes(names: Sequence[str]) -> Sequence[int] | None:
        found = class_ids_from_text(options["classes"], names)
        return None if found is None else sorted(set(found))

    from boxwright.cli.fleet_console import FleetConsole

    settings, pace = _settings(options)

    def places(job: Job) -> Engine:
        return _engine(job, options)

    with FleetConsole(options["quiet"]) as listener:
        summary = fleet_predict(
            file_from_text(artifact),
            input,
            options["out"],
            places,
            settings=settings,
            pace=pace,
            format=options["form"],
            shard_size=options["shard_size"],
            labels=options["labels"],
            classes=classes,
            keep_listing=options["keep_listing"],
            redo_failed=options["redo_failed"],
            listener=listener,
        )
    _print(summary, options["as_json"])
    return 1 if summary.failed else 0


def _on_gpu(options: dict[str, Any]) -> bool:
    """Whether workers are meant to run on GPUs."""
    from boxwright.devices import device_from_text

    return bool(options["devices"]) or device_from_text(options["device"]).insists_on_gpu


def _settings(options: dict[str, Any]) -> tuple[Settings, Pace]:
    """Return what decides the numbers, and what decides how fast.

    Raises:
        RequestError: Options do not go together.
    """
    from boxwright.devices import device_from_text
    from boxwright.errors import RequestError
    from boxwright.fleet.job import Pace, Settings
    from boxwright.machine import usable_cores

    device = device_arguments(options)
    choice = device_from_text(options["device"])
    if options["devices"] and choice.index:
        raise RequestError(
            f"--device {options['device']} --devices", "both number GPUs", "drop the number"
        )
    kind = "cuda" if options["devices"] and choice.kind == "auto" else options["device"]
    settings = Settings(
        runtime=options["runtime"],
        device=kind,
        batch=options["batch"],
        decode=options["decode"],
        preprocess=options["preprocess"],
        score_threshold=options["score_threshold"],
        iou_threshold=options["iou_threshold"],
        family=options["family"],
        cuda_graph=device["cuda_graph"],
        provider_options=tuple(device["provider_options"].items()),
    )
    if options["num_gpus"] and choice.kind == "auto":
        settings = dataclasses.replace(settings, device="cuda")
    gpu = (
        _on_gpu(options)
        or bool(options["num_gpus"])
        or "gpu" in (options["decode"], options["preprocess"])
    )
    decoders, threads = options["decoders"], options["threads"]
    if decoders is None:
        shared = len(options["devices"].split(",")) if options["devices"] else 1
        decoders = max(1, min(_MOST_DECODERS, usable_cores() // shared)) if gpu else 0
    if threads is None and not gpu and options["workers"] != 1:
        threads = int(options["num_cpus"] or 1)
    cache = device["engine_cache"]
    pace = Pace(threads, decoders, str(cache) if cache else None, device["profile_batch"])
    return settings, pace


def _engine(job: Job, options: dict[str, Any]) -> Engine:
    """Return the engine that was asked for.

    Raises:
        RequestError: Options do not go together.
    """
    from boxwright.cli.fleet_ray import engine_on_ray, refuse_without_ray
    from boxwright.errors import RequestError
    from boxwright.fleet.local import HERE, InProcess, Processes
    from boxwright.gpus import device_numbers
    from boxwright.machine import usable_cores

    if options["engine"] == "ray":
        return engine_on_ray(options)
    refuse_without_ray(options)
    if options["devices"]:
        places = [visible for _, visible in device_numbers(options["devices"], os.environ)]
        if options["workers"]:
            if options["workers"] % len(places):
                raise RequestError(
                    f"--workers {options['workers']}",
                    f"it is no multiple of {len(places)} GPUs",
                    "drop it for one worker a GPU",
                )
            places *= options["workers"] // len(places)
        return Processes(places)
    cores = max(1, usable_cores() // (options["threads"] or 1))
    plan = Path(job.artifact).suffix.lower() in (".plan", ".engine")
    workers = options["workers"] or (1 if plan or _on_gpu(options) else cores)
    workers = min(workers, job.shards)
    return InProcess() if workers == 1 else Processes([HERE] * workers)


def _print(summary: FleetSummary, as_json: bool) -> None:
    check = summary.batch_check
    if check.differ:
        print(
            f"boxwright: note: of {check.pictures} pictures {check.differ} give other bits in a "
            f"batch than alone (scores by up to {check.score:.2g}) on this runtime: these results "
            "are those of this --batch",
            file=sys.stderr,
        )
    if len(summary.runs_on) > 1:
        kinds = "; ".join(f"{n} rows on {d}" for d, n in summary.runs_on.items())
        print(f"boxwright: note: the rows were made by several runtimes: {kinds}", file=sys.stderr)
    if as_json:
        click.echo(json.dumps(summary.as_dict(), indent=1, ensure_ascii=False))
        return
    fresh = summary.rows - summary.done_before
    rate = f", {fresh / summary.seconds:.0f} a second" if summary.seconds and fresh else ""
    click.echo(f"{summary.rows} rows, {summary.detections} detections, {summary.failed} failed")
    click.echo(f"{fresh} done now{rate}; {summary.done_before} were there")
    click.echo(f"results {summary.results_sha256}")
    for name in summary.files:
        click.echo(str(summary.out / name))
