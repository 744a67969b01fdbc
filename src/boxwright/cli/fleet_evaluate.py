"""`boxwright fleet evaluate`: mAP over a large data set, in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.options import device_arguments, runtime_options

if TYPE_CHECKING:
    from boxwright.types import Accuracy

__all__ = ["evaluate_command"]


@click.command("evaluate")
@click.argument("artifact", metavar="ARTIFACT")
@click.option("--data", required=True, metavar="PATH", help="As of boxwright evaluate.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of a COCO file's pictures.")
@click.option("--split", metavar="NAME", help="Part of a data.yaml or folder. Default: val.")
@click.option("--pages", type=int, help="Pages that --data sample generates. Default: 200.")
@click.option("--max-images", type=click.IntRange(1), help="At most so many, evenly spaced.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of parts and result."
)
@click.option(
    "--part-size",
    type=click.IntRange(1, 1_000_000),
    default=500,
    show_default=True,
    help="Pictures of a part; what a crash can cost at most.",
)
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
@click.option("--family", metavar="NAME", help="Family of a raw ONNX that does not say.")
@click.option("--labels", metavar="FILE", help="Class names: JSON or text, or coco.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This machine, or a Ray cluster whose nodes share all folders.",
)
@click.option("--workers", type=click.IntRange(1, 4096), help="At a time. Default: cores.")
@click.option("--ray-address", metavar="ADDRESS", help="As of fleet predict.")
@click.option("--num-cpus", type=float, help="CPUs of a worker on Ray. Default: 1.")
@click.option("--num-gpus", type=float, help="GPUs of a worker on Ray.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
def evaluate_command(artifact: str, **options: Any) -> int:
    """Measure mAP in parts, spread over processes or a cluster.

    The figures are those of `boxwright evaluate`, to the last bit, of each task its own: of masks,
    keypoints, rotated boxes and classes, too. After a crash the same command goes on where it
    stopped. Exit status 1 when a picture could not be measured.

    \b
    boxwright fleet evaluate yolo11n.fp32.onnx --data coco/data.yaml --out measured/ --workers 8
    """
    from boxwright.cli.fleet_console import FleetConsole
    from boxwright.datasets.records import UNREADABLE, WRONG_SIZE
    from boxwright.environment import describe_environment, package_versions
    from boxwright.errors import RequestError
    from boxwright.fleet.evaluate import fleet_evaluate
    from boxwright.fleet.executors import LocalExecutor, RayExecutor
    from boxwright.machine import usable_cores

    wanted = _wanted(artifact, options)
    if options["engine"] == "ray":
        executor: Any = RayExecutor(
            options["ray_address"], options["num_cpus"] or 1.0, options["num_gpus"] or 0.0
        )
        workers = options["workers"] or executor.room()
    else:
        for name in ("ray_address", "num_cpus", "num_gpus"):
            if options[name]:
                option = f"--{name.replace('_', '-')}"
                raise RequestError(option, "it is of the engine ray", "add --engine ray")
        workers = options["workers"] or max(1, usable_cores() // (options["threads"] or 1))
        executor = LocalExecutor(workers)
    with FleetConsole(quiet=False) as listener:
        accuracy = fleet_evaluate(
            wanted,
            options["out"],
            executor,
            workers,
            environment={**describe_environment(), **package_versions(("faster-coco-eval",))},
            listener=listener,
        )
    _print(accuracy, options)
    return 1 if {UNREADABLE, WRONG_SIZE} & set(accuracy.problems) else 0


def _wanted(artifact: str, options: dict[str, Any]) -> Any:
    """Return what is wanted; the runtime is chosen here, once for all workers."""
    from boxwright.datasets import wanted_of
    from boxwright.fleet.artifact import file_from_text, spec_from_file
    from boxwright.fleet.evaluate_node import Wanted
    from boxwright.fleet.job import Pace, Settings
    from boxwright.loading import choose_runtime
    from boxwright.store import sha256_of_file

    path = file_from_text(artifact)
    spec = spec_from_file(path, options["family"], options["labels"])
    labels = wanted_of(spec)
    device = device_arguments(options)
    runtime = options["runtime"]
    if runtime == "auto":
        runtime = choose_runtime(path.suffix.lower(), options["device"])
    settings = Settings(
        runtime=runtime,
        device=options["device"],
        batch=options["batch"],
        family=options["family"],
        cuda_graph=device["cuda_graph"],
        provider_options=tuple(device["provider_options"].items()),
    )
    cache = device["engine_cache"]
    threads = options["threads"] or (1 if options["workers"] != 1 else None)
    return Wanted(
        artifact=str(path.resolve()),
        artifact_sha256=sha256_of_file(path),
        settings=settings,
        pace=Pace(threads, 0, str(cache) if cache else None, device["profile_batch"]),
        data=options["data"],
        split=options["split"],
        images=str(options["images"]) if options["images"] else None,
        pages=options["pages"],
        class_names=tuple(spec.class_names),
        task=labels.task,
        keypoints=labels.keypoints,
        fingerprint="",
        max_images=options["max_images"],
        part_size=options["part_size"],
        score_threshold=options["score_threshold"],
        iou_threshold=options["iou_threshold"],
        max_detections=options["max_detections"],
    )


def _print(accuracy: Accuracy, options: dict[str, Any]) -> None:
    import sys

    from boxwright.coco_matches import TOP1

    for warning in accuracy.warnings:
        print(f"boxwright: warning: {accuracy.candidate}: {warning}", file=sys.stderr)
    for what, count in accuracy.problems.items():
        print(f"boxwright: {accuracy.dataset}: {count} {what}", file=sys.stderr)
    if options["as_json"]:
        click.echo(json.dumps(accuracy.as_dict(), indent=1, ensure_ascii=False))
        return
    click.echo(f"{accuracy.dataset}: {accuracy.pictures} pictures, {accuracy.objects} objects")
    rows = {accuracy.measure: accuracy.figure}
    if accuracy.measure != TOP1:
        rows[accuracy.measure.replace("50-95", "50")] = accuracy.map50
        rows[accuracy.measure.replace("50-95", "75")] = accuracy.map75
    rows |= accuracy.beside
    if accuracy.measure != TOP1:
        rows |= {"precision": accuracy.precision, "recall": accuracy.recall, "F1": accuracy.f1}
    width = max(10, *map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:{width}} {'-' if value is None else f'{value:.4f}'}")
    click.echo(f"{options['out']}/accuracy.json")
