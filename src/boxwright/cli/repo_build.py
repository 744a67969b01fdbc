"""`boxwright repo build`: its options, and what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.options import words_from_text
from boxwright.errors import RequestError

if TYPE_CHECKING:
    from boxwright.engines import BuildSettings
    from boxwright.serve.folder_parts import ServeOptions
    from boxwright.serve.gathering import Conversion, Gathered
    from boxwright.serve.repository import Written

__all__ = ["build_command"]


@click.command("build")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option(
    "--tracks",
    metavar="LIST",
    help="a: raw ONNX; b: raw plan; c: end-to-end ONNX and plan; d: DALI in front of c; e: graphs "
    "that take pictures; f: c with decoding and letterbox in its own process. A comma list. "
    "Default: a,c.",
)
@click.option(
    "--formats",
    metavar="LIST",
    help="In the place of --tracks: onnx, trt, onnx_end2end, trt_end2end, dali, onnx_image, "
    "trt_image, onnx_fused, trt_fused, all; a comma list.",
)
@click.option(
    "--models",
    "sizes",
    metavar="LIST",
    help="Only models of these sizes: nano, small, medium, large, xlarge, all. Without SOURCE the "
    "official yolo11 of each.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default="models", show_default=True,
    help="The repository.",
)  # fmt: skip
@click.option(
    "--name-template",
    default="{stem}{suffix}",
    show_default=True,
    metavar="TEXT",
    help="Names of the folders; with {stem}, {name}, {size} and {suffix}.",
)
@click.option(
    "--max-batch",
    "max_batches",
    multiple=True,
    metavar="[SIZE=]N",
    help="Largest batch, of every model or of one size. Default: nano 128, small 64, medium 32, "
    "large 16, xlarge 8, others 16.",
)
@click.option("--score-threshold", type=float, help="Default: 0.25.")
@click.option("--iou-threshold", type=float, help="Of NMS. Default: 0.45.")
@click.option("--keep-topk", type=int, help="Most detections of a picture. Default: 100.")
@click.option("--pre-topk", type=int, help="Candidates that NMS sees. Default: 1000.")
@click.option(
    "--precision", default="fp32", show_default=True, metavar="WORD",
    help="Of ONNX files that are made: fp32, fp16.",
)  # fmt: skip
@click.option(
    "--plan-precision", default="fp16", show_default=True, metavar="WORD",
    help="Of plans that are built: fp32, fp16.",
)  # fmt: skip
@click.option(
    "--onnx-nms", metavar="WORD",
    help="NMS of ONNX files that are made: portable (for GPUs), onnx (for CPUs); given files of "
    "another are then not taken. Default: portable, and given files are taken as they are.",
)  # fmt: skip
@click.option(
    "--plan-nms", default="efficient_nms", show_default=True, metavar="WORD",
    help="NMS of plans that are built: efficient_nms, portable.",
)  # fmt: skip
@click.option(
    "--optimization-level", type=int, metavar="N", help="Of plans: 0 (fast build) to 5 (fast plan)."
)
@click.option(
    "--timing-cache", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Of plans: measured kernels, kept and used again.",
)  # fmt: skip
@click.option("--tactic-sources", metavar="LIST", help="Of plans; see build.")
@click.option(
    "--workspace-gib", type=float, metavar="X", help="Of plans: most memory of one layer."
)
@click.option(
    "--image-sizes", metavar="MIN,OPT,MAX",
    help="Pictures (HEIGHTxWIDTH) of plans that take them. Default: 32x32,1080x1920,2160x3840.",
)  # fmt: skip
@click.option("--jpeg/--no-jpeg", default=True, help="Also serve every track for encoded pictures.")
@click.option(
    "--gate/--no-gate", default=True, help="Look at headers of pictures before DALI decodes them."
)
@click.option(
    "--max-side", type=int, default=8192, show_default=True, metavar="PX",
    help="Refuse pictures with a longer side.",
)  # fmt: skip
@click.option("--instances", type=int, default=1, show_default=True, help="Copies on each GPU.")
@click.option(
    "--python-instances", type=int, default=2, show_default=True,
    help="Processes of each python model.",
)  # fmt: skip
@click.option("--queue-size", type=int, default=1024, show_default=True, help="Waiting requests.")
@click.option(
    "--queue-timeout-ms", type=int, default=30_000, show_default=True,
    help="Refuse what waited so long.",
)  # fmt: skip
@click.option(
    "--queue-delay-us", type=int, default=0, show_default=True,
    help="Wait so long for a fuller batch.",
)  # fmt: skip
@click.option(
    "--image-batching", is_flag=True,
    help="Join pictures of one size (track E). A --queue option asks for it, too.",
)  # fmt: skip
@click.option("--response-cache", is_flag=True, help="Keep answers to equal requests.")
@click.option(
    "--tensorrt-accelerator", is_flag=True,
    help="ONNX files run in ONNX Runtime's TensorRT provider on GPUs.",
)  # fmt: skip
@click.option(
    "--accelerator-option", "accelerator_options", multiple=True, metavar="KEY=VALUE",
    help="Of that provider, e.g. precision_mode=FP16.",
)  # fmt: skip
@click.option(
    "--latest", type=int, default=0, metavar="N",
    help="Serve the N latest versions. Default: the one that was promoted.",
)  # fmt: skip
@click.option(
    "--warm-up-image", type=click.Path(path_type=Path), metavar="PATH",
    help="Picture to warm up with. Default: a generated page.",
)  # fmt: skip
@click.option("--no-warm-up", is_flag=True, help="Do not warm up.")
@click.option("--images", multiple=True, metavar="PATH", help="Pictures to verify what is made on.")
@click.option("--skip-verify", is_flag=True, help="Do not prove what is made.")
@click.option(
    "--runs", type=click.Path(path_type=Path), default="runs/triton", show_default=True,
    help="Folder of the files that are made.",
)  # fmt: skip
@click.option(
    "--downloads", type=click.Path(path_type=Path), default="checkpoints", show_default=True,
    help="Folder of checkpoints that are fetched.",
)  # fmt: skip
@click.option(
    "--trust-checkpoint", is_flag=True,
    help="Load a .pt with full rights. It can run any code: only for files you trust.",
)  # fmt: skip
@click.option("--edit", is_flag=True, help="Merge configurations that were edited by hand.")
@click.option(
    "--force", is_flag=True,
    help="Replace edited configurations, after a copy; put changed files as a new version.",
)  # fmt: skip
@click.option("--allow-missing", is_flag=True, help="Succeed although something is missing.")
@click.option("--dry-run", is_flag=True, help="Make the files, but write no repository.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def build_command(sources: tuple[str, ...], **options: Any) -> int:
    """Put models into a repository.

    SOURCE is a checkpoint, an official name, a raw ONNX, typed ONNX files, plans, or run folders.
    Typed files are served as they are; what a track lacks is made and proven. Plans are built where
    there is a GPU; what cannot be made is named, and the exit status is then 1.

    \b
    boxwright repo build yolo11s.pt --tracks a,b,c,d,e,f --out models/
    boxwright repo build --models small --formats trt_end2end
    """
    from boxwright.cli.console import ConsoleListener
    from boxwright.serve.build_repository import build_repository

    formats = _formats(options)
    sizes = _sizes(options["sizes"])
    how, served = _conversion(options), _serve_options(options)
    from boxwright.serve.repository import HandEdits

    with ConsoleListener() as listener:
        gathered, written = build_repository(
            sources,
            sizes,
            formats,
            options["out"],
            how,
            served,
            HandEdits(options["force"], options["edit"]),
            dry_run=options["dry_run"],
            listener=listener,
        )
        missing = [m for one in gathered for m in one.missing]
        for one in missing:
            listener.note(f"missing: {one.format} of {one.model}: {one.why}; {one.do}")
    if options["as_json"]:
        click.echo(json.dumps(_as_dict(options["out"], gathered, written), indent=2))
    else:
        _print(options["out"], written, options["dry_run"])
    return 1 if missing and not options["allow_missing"] else 0


def _formats(options: dict[str, Any]) -> tuple[Any, ...]:
    from boxwright.serve.tracks import FORMATS, TRACKS, formats_of_tracks

    if options["tracks"] and options["formats"]:
        raise RequestError("--tracks --formats", "they say the same thing twice", "drop one")
    if options["formats"]:
        words = words_from_text("--formats", options["formats"], (*FORMATS, "all"))
        return tuple(FORMATS) if "all" in words else tuple(words)
    tracks = words_from_text("--tracks", options["tracks"] or "a,c", tuple(TRACKS))
    found = formats_of_tracks(tracks)  # type: ignore[arg-type]
    if not options["tracks"]:  # nobody asked for plans: they are not missing where none can be made
        return tuple(f for f in found if not FORMATS[f].plan)
    return found


def _sizes(text: str | None) -> list[str]:
    from boxwright.serve.tracks import SIZES

    if text is None:
        return []
    words = words_from_text("--models", text, (*SIZES, "all"))
    return list(SIZES) if "all" in words else words


def _conversion(options: dict[str, Any]) -> Conversion:
    from boxwright.serve.gathering import Conversion

    keys = ("score_threshold", "iou_threshold", "keep_topk", "pre_topk", "onnx_nms")
    given = frozenset(k for k in keys if options[k] is not None)
    options = {**options, "onnx_nms": options["onnx_nms"] or "portable"}
    one = {
        option: words_from_text(f"--{option.replace('_', '-')}", options[option], known)[0]
        for option, known in (
            ("precision", ("fp32", "fp16")),
            ("plan_precision", ("fp32", "fp16")),
            ("onnx_nms", ("portable", "onnx")),
            ("plan_nms", ("efficient_nms", "portable")),
        )
    }
    return Conversion(
        work=options["runs"],
        downloads=options["downloads"],
        precision=one["precision"],
        plan_precision=one["plan_precision"],
        onnx_nms=one["onnx_nms"],
        plan_nms=one["plan_nms"],
        plan_settings=_plan_settings(options),
        nms=_nms(options),
        given=given,
        verify=not options["skip_verify"],
        images=options["images"],
        max_batches=_max_batches(options["max_batches"]),
        trust_checkpoint=options["trust_checkpoint"],
    )


def _plan_settings(options: dict[str, Any]) -> BuildSettings:
    """Return what plans are built with.

    Raises:
        RequestError: A value is out of range.
    """
    from boxwright.cli.build import image_sizes_from_text
    from boxwright.engines import BuildSettings

    sources, sizes = options["tactic_sources"], options["image_sizes"]
    settings = BuildSettings(
        workspace_gib=options["workspace_gib"],
        optimization_level=options["optimization_level"],
        timing_cache=options["timing_cache"],
        tactic_sources=tuple(s.strip().upper() for s in sources.split(",")) if sources else None,
        image_sizes=image_sizes_from_text(sizes) if sizes else None,
    )
    settings.check("tensorrt")
    return settings


def _nms(options: dict[str, Any]) -> Any:
    from boxwright.types import NmsSettings

    defaults = {
        "score_threshold": 0.25,
        "iou_threshold": 0.45,
        "keep_topk": 100,
        "pre_topk": 1000,
    }
    given = {k: v if options[k] is None else options[k] for k, v in defaults.items()}
    for key in ("score_threshold", "iou_threshold"):
        if not 0 <= given[key] <= 1:
            text = f"--{key.replace('_', '-')} {given[key]}"
            raise RequestError(text, "it is not between 0 and 1", "use e.g. 0.25")
    for key in ("keep_topk", "pre_topk"):
        if given[key] < 1:
            text = f"--{key.replace('_', '-')} {given[key]}"
            raise RequestError(text, "it is not a positive number", "use e.g. 100")
    return NmsSettings(
        score_threshold=given["score_threshold"],
        iou_threshold=given["iou_threshold"],
        pre_topk=int(given["pre_topk"]),
        keep_topk=int(given["keep_topk"]),
    )


def _queue_is_asked_for() -> bool:
    """Whether the command line names a limit or a delay of the queue."""
    context = click.get_current_context()
    default = (None, click.core.ParameterSource.DEFAULT)
    keys = ("queue_size", "queue_timeout_ms", "queue_delay_us")
    return any(context.get_parameter_source(key) not in default for key in keys)


def _max_batches(texts: tuple[str, ...]) -> dict[str, int]:
    from boxwright.serve.tracks import SIZES

    found: dict[str, int] = {}
    for text in (part for whole in texts for part in whole.split(",")):
        size, equals, number = text.rpartition("=")
        if not number.strip().isdecimal() or int(number) < 1 or (equals and size not in SIZES):
            raise RequestError(
                f"--max-batch {text}", "it is neither N nor SIZE=N", "use e.g. 16, or small=64"
            )
        found[size] = int(number)
    return found


def _serve_options(options: dict[str, Any]) -> ServeOptions:
    from boxwright.serve.folder_parts import ServeOptions
    from boxwright.serve.model_config import Accelerator, Batching
    from boxwright.serve.warm_up import warm_up_picture

    for key in ("max_side", "instances", "python_instances", "queue_size", "queue_timeout_ms"):
        if options[key] < 1:
            text = f"--{key.replace('_', '-')} {options[key]}"
            raise RequestError(text, "it is not a positive number", "use e.g. 1")
    pairs = [text.partition("=") for text in options["accelerator_options"]]
    if pairs and not options["tensorrt_accelerator"]:
        raise RequestError(
            "--accelerator-option", "no accelerator is asked for", "add --tensorrt-accelerator"
        )
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise RequestError(
                f"--accelerator-option {key}", "it is not KEY=VALUE", "use e.g. precision_mode=FP16"
            )
    return ServeOptions(
        template=options["name_template"],
        max_batches=_max_batches(options["max_batches"]),
        nms=_nms(options),
        encoded=options["jpeg"],
        gate=options["gate"],
        batching=Batching(
            delay_us=options["queue_delay_us"],
            queue_size=options["queue_size"],
            timeout_ms=options["queue_timeout_ms"],
        ),
        image_batching=options["image_batching"] or _queue_is_asked_for(),
        instances=options["instances"],
        python_instances=options["python_instances"],
        max_side_px=options["max_side"],
        accelerator=Accelerator({k: v for k, _, v in pairs})
        if options["tensorrt_accelerator"]
        else None,
        cache=options["response_cache"],
        warm_up=None if options["no_warm_up"] else warm_up_picture(options["warm_up_image"]),
        latest=options["latest"],
    )


def _as_dict(out: Path, gathered: list[Gathered], written: list[Written]) -> dict[str, Any]:
    return {
        "repository": str(out),
        "models": [
            {"name": w.name, "kind": w.kind, "action": w.action, "version": w.version,
             "notes": list(w.notes)}
            for w in written
        ],
        "missing": [
            {"model": m.model, "format": m.format, "why": m.why, "do": m.do}
            for one in gathered
            for m in one.missing
        ],
    }  # fmt: skip


def _print(out: Path, written: list[Written], dry_run: bool) -> None:
    for one in written:
        action = f"would be {one.action}" if dry_run else one.action
        click.echo(f"{out / one.name}  {one.kind}  version {one.version}  {action}")
        for note in one.notes:
            click.echo(f"  {note}")
