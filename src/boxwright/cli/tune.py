"""`boxwright tune`: the fastest artefact within budgets, and the Pareto front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.options import (
    conversion_options,
    counts_from_text,
    recipe_data_from_options,
    words_from_text,
)
from boxwright.errors import CheckFailedError, RequestError

if TYPE_CHECKING:
    from boxwright.recipe import Recipe
    from boxwright.tune import Request, Sweep, TuneResult

__all__ = ["command"]

_PRECISIONS = ("fp32", "fp16", "int8")
_RUNTIMES = ("onnxruntime", "openvino", "pytorch")
_FORMS = ("onnx", "portable", "efficient_nms")
# Conversion options that mean the same here; the others are worded for this verb below.
_SHARED = (
    "data_split", "data_images", "max_data",
    "calib_images", "calib_count", "calib_batch", "calib_method", "calib_cache",
    "allow_calibration_overlap", "opset", "image_size", "pre_topk", "keep_topk", "iou_threshold",
    "score_threshold", "class_agnostic", "multi_label", "dynamic_thresholds", "nms_iterations",
    "head", "family", "config", "labels", "name", "no_simplify", "trust_checkpoint", "seed", "out",
    "models", "force_download", "force_convert", "force_all", "dry_run", "as_json",
)  # fmt: skip


@click.command("tune")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--data", metavar="PATH", help="Labelled pictures for accuracy, as evaluate takes them."
)
@click.option(
    "--max-drop",
    type=float,
    metavar="X",
    help="Most mAP50-95 (or the task's own figure) that a winner may lose against FP32, e.g. "
    "0.005; needs --data.",
)
@click.option(
    "--max-latency-ms", type=float, metavar="MS", help="Most that the p95 of a call may take."
)
@click.option(
    "--max-memory-mb",
    type=float,
    metavar="MB",
    help="Most peak memory of a process, in 10^6 bytes.",
)
@click.option(
    "--precision",
    metavar="LIST",
    help="fp32, fp16, int8; a comma list. Default: all; int8 with --calib-images and --data.",
)
@click.option("--outputs", metavar="LIST", help="raw, end2end; a comma list. Default: both.")
@click.option(
    "--nms", metavar="LIST", help="NMS of end-to-end files: onnx (the default), portable."
)
@click.option(
    "--runtimes",
    metavar="LIST",
    help="onnxruntime, openvino, pytorch (the source, as a baseline). Default: the installed.",
)
@click.option(
    "--threads",
    metavar="LIST",
    help="CPU threads of one inference. Default: 1, 2, 4, ... and the usable cores.",
)
@click.option(
    "--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="Pictures per call."
)
@click.option("--fixed-batch", is_flag=True, help="Bake --batch into the files.")
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="Time of a call, or pictures per second with several calls in flight.",
)
@click.option(
    "--concurrency",
    type=int,
    metavar="N",
    help="Calls in flight, of throughput. Default: usable cores over threads.",
)
@click.option("--iterations", type=int, help="Samples of each in the final round. Default: 50.")
@click.option("--seconds", type=float, help="Measure each at least so long there instead.")
@click.option(
    "--images",
    multiple=True,
    metavar="PATH",
    help="Pictures to verify and time on. Default: those of --data, or generated ones.",
)
@click.option(
    "--max-images",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="At most so many of them, evenly spaced.",
)
@click.option("--no-memory", is_flag=True, help="Do not measure the finalists' peak memory.")
@click.option("--allow-unmeasured-int8", is_flag=True, help="Let INT8 take part without --data.")
@click.option("--verbose", is_flag=True, help="Print why each other candidate was dropped.")
def command(source: str, **options: Any) -> int:
    """Find the fastest file, runtime and threads within budgets.

    Makes and proves the files as run does, measures each body's accuracy and every combination's
    speed on this processor, in turns, drops what cannot win, and writes all of it to
    OUT/NAME/tuned.json, with the commands that make the winner again. Exit status 1 when nothing
    is within the budgets; see docs/tune.md.

    \b
    boxwright tune yolo11n.pt --data coco.yaml --calib-images pictures/ --max-drop 0.005
    """
    from boxwright.cli.console import ConsoleListener
    from boxwright.tune import check_request, tune
    from boxwright.tune.records import Budgets
    from boxwright.tune.words import why_none

    budgets = Budgets(options["max_drop"], options["max_latency_ms"], options["max_memory_mb"])
    sweep, (recipe, notes) = _sweep(options), _recipe(source, options)
    force_download = options["force_download"] or options["force_all"]
    force_convert = options["force_convert"] or options["force_all"]
    with ConsoleListener() as listener:
        for note in notes:
            listener.note(note)
        if options["dry_run"]:
            request = check_request(
                recipe,
                options["out"],
                budgets,
                sweep,
                models=options["models"],
                force_download=force_download,
                force_convert=force_convert,
                listener=listener,
            )
        else:
            result = tune(
                recipe,
                options["out"],
                budgets=budgets,
                sweep=sweep,
                models=options["models"],
                force_download=force_download,
                force_convert=force_convert,
                listener=listener,
            )
    if options["dry_run"]:
        _print_plan(request, options["as_json"])
        return 0
    _print(result, options)
    if result.winner is None:
        raise CheckFailedError(*why_none(result.candidates, result.budgets))
    return 0


def _add_shared_options() -> dict[str, Any]:
    """Add the conversion options that this verb shares; return the defaults of all of them."""

    @click.command("conversion")
    @conversion_options
    def conversion(**_: Any) -> None:
        """Hold the options."""

    command.params += [p for p in conversion.params if p.name in _SHARED]
    return dict(conversion.make_context("conversion", []).params)


_DEFAULTS = _add_shared_options()


def _recipe(source: str, options: dict[str, Any]) -> tuple[Recipe, list[str]]:
    """Return the recipe, and what was decided about INT8.

    Raises:
        RequestError: An option is wrong.
    """
    from boxwright.recipe import recipe_from_mapping

    path = Path(source)
    if path.suffix in (".yaml", ".yml") and path.is_file() and "source:" in path.read_text("utf-8"):
        raise RequestError(source, "it is a recipe", "name its source, and say the rest as options")
    words_from_text("--nms", options["nms"] or "onnx", _FORMS)
    precision, notes = _precision(options)
    given = {k: v for k, v in options.items() if k in _SHARED}
    if "int8" not in precision:
        given = {k: v for k, v in given.items() if not k.startswith("calib_")}
    values = {
        **_DEFAULTS,
        **given,
        "precision": ",".join(precision),
        "outputs": options["outputs"] or "raw,end2end",
        "nms": options["nms"],
        "batch": str(options["batch"]) if options["fixed_batch"] else None,
        "data": options["data"],
        "max_drop": options["max_drop"],
        "deploy": _deployments(options["runtimes"]) if "int8" in precision else None,
    }
    data = recipe_data_from_options(source, values)
    data["images"] = list(options["images"])
    data["max_images"] = options["max_images"]
    return recipe_from_mapping(data, "request", options=True), notes


def _deployments(runtimes: str | None) -> str:
    """Return what INT8 files are made for: each runtime that is tuned has its own form."""
    from boxwright.evidence import installed_runtimes

    asked = words_from_text("--runtimes", runtimes, _RUNTIMES) if runtimes else ()
    able = [r for r in installed_runtimes() if r in asked or not asked]
    return (
        ",".join(d for d, r in (("cpu", "onnxruntime"), ("openvino", "openvino")) if r in able)
        or "cpu"
    )


def _precision(options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the precisions, and why INT8 is not among them where nobody decided that.

    Raises:
        RequestError: INT8 is asked for without pictures to calibrate on, or the other way round.
    """
    calibrated = bool(options["calib_images"] or options["calib_cache"])
    if options["precision"]:
        words = words_from_text("--precision", options["precision"], _PRECISIONS)
        if "int8" in words and not calibrated:
            raise RequestError(
                "--precision int8",
                "it needs pictures like those that it will see, to calibrate on",
                "give --calib-images with 100 to 500 of them",
            )
        if "int8" not in words and calibrated:
            raise RequestError("--calib-images", "no INT8 file is asked for", "add int8")
        return words, []
    if not calibrated:
        return ["fp32", "fp16"], [
            "INT8 is left out; --calib-images (100 to 500 pictures) with --data brings it in"
        ]
    if options["data"] is None and not options["allow_unmeasured_int8"]:
        return ["fp32", "fp16"], [
            "INT8 is left out, since nothing would measure what it loses; --data (or "
            "--allow-unmeasured-int8) brings it in"
        ]
    return list(_PRECISIONS), []


def _sweep(options: dict[str, Any]) -> Sweep:
    from boxwright.tune.records import Sweep

    runtimes = options["runtimes"]
    return Sweep(
        runtimes=tuple(words_from_text("--runtimes", runtimes, _RUNTIMES)) if runtimes else (),
        threads=counts_from_text("--threads", options["threads"]) if options["threads"] else (),
        batch=options["batch"],
        objective=options["objective"],
        concurrency=options["concurrency"],
        iterations=options["iterations"],
        seconds=options["seconds"],
        memory=not options["no_memory"],
        allow_unmeasured_int8=options["allow_unmeasured_int8"],
    )


def _print_plan(request: Request, as_json: bool) -> None:
    from boxwright.plan import plan_lines
    from boxwright.tune.files import plan_files

    plan = plan_files(request).plan
    steps = plan_lines(plan.steps) if plan else []
    combinations = request.combinations()
    if as_json:
        data = {
            "folder": str(request.folder),
            "plan": [{"action": a, "file": f, "from": p, "why": w} for a, f, p, w in steps],
            "candidates": [c.name for c in combinations],
        }
        click.echo(json.dumps(data, indent=2))
        return
    for action, file, parent, why in steps:
        click.echo(f"{action:7} {request.folder}/{file}  from {parent}  ({why})")
    for which in combinations:
        click.echo(f"measure {which.name}")


def _print(result: TuneResult, options: dict[str, Any]) -> None:
    from boxwright.cli.console import print_table
    from boxwright.tune import RESULT_FILE
    from boxwright.tune.words import dropped_table, result_table, summary_lines

    if options["as_json"]:
        click.echo(json.dumps(result.as_dict(), indent=1))
        return
    if result.final is not None:
        print_table(result_table(result))
    if options["verbose"]:
        print_table(dropped_table(result))
    for line in summary_lines(result):
        click.echo(line)
    click.echo(f"everything: {result.folder / RESULT_FILE}")
