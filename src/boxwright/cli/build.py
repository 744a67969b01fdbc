"""`boxwright build`: a plan for TensorRT or TensorRT-RTX."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.devices import devices_option, words_again
from boxwright.errors import BoxwrightError, RequestError

if TYPE_CHECKING:
    from boxwright.build import Typing
    from boxwright.engines import BuildSettings
    from boxwright.outcome import Listener

__all__ = ["command", "image_sizes_from_text"]

Size = tuple[int, int]
_LEVELS = ["none", "ampere_plus", "same_compute_capability"]


@click.command("build")
@click.argument("onnx", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ONNX...")
@click.option(
    "--runtime",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    default="tensorrt",
    show_default=True,
    help="tensorrt builds for the GPU that is here; tensorrt-rtx needs none.",
)
@click.option(
    "--batch",
    metavar="MIN,OPT,MAX",
    help="Pictures of a graph whose batch is free; one number for all three. Default: 1.",
)
@click.option(
    "--image-sizes",
    metavar="MIN,OPT,MAX",
    help="Pictures (HEIGHTxWIDTH) of a graph that takes them in any size; one for all three.",
)
@click.option("--workspace-gib", type=float, metavar="X", help="Most memory of one layer.")
@click.option(
    "--optimization-level", type=int, metavar="N", help="0 (fast build) to 5 (fast plan)."
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Measured kernels, kept and used again; of one TensorRT and GPU.",
)
@click.option("--version-compatible", is_flag=True, help="The plan runs in later versions, too.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(_LEVELS),
    default="none",
    show_default=True,
    help="Other GPUs that the plan runs on.",
)
@click.option("--dla-core", type=int, metavar="N", help="Deep learning accelerator of a Jetson.")
@click.option(
    "--tactic-sources",
    metavar="LIST",
    help="Where kernels may come from: cublas, cublas_lt, cudnn, edge_mask_convolutions, "
    "jit_convolutions. Default: TensorRT's.",
)
@click.option("--fp16", is_flag=True, help="Make a raw FP32 graph FP16 first.")
@click.option("--int8", is_flag=True, help="Make it INT8 first; with --calib-images.")
@click.option(
    "--calib-images",
    multiple=True,
    metavar="PATH",
    help="Pictures to calibrate --int8 on: files, folders, globs.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder. Default: that of the ONNX file."
)
@click.option("--force", is_flag=True, help="Replace a plan that is there.")
@devices_option
@click.option("--timing-cache-part", type=click.Path(path_type=Path), hidden=True, help="Internal.")
@click.option("--dry-run", is_flag=True, help="Check everything, build nothing.")
@click.option("--verbose", is_flag=True, help="Show all that TensorRT says.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, /, onnx: tuple[Path, ...], **options: Any) -> int:
    """Build a plan (engine) from each typed ONNX file.

    Precision is what the graph carries: give NAME.fp16.onnx for FP16, NAME.int8.tensorrt.onnx for
    INT8. The plan lies beside the file, with a description of what it is in NAME.plan.json; see
    docs/tensorrt.md. Of several files the others are built when one fails.

    \b
    boxwright build runs/yolo11n/yolo11n.fp16.onnx --batch 1,8,32 --timing-cache gpu.cache
    boxwright build runs/*/*.fp16.onnx --devices 0,1
    """
    from boxwright.cli.console import ConsoleListener

    _settings(options), _typing(options)  # refuse before work
    if len(set(onnx)) < len(onnx):
        raise RequestError("build", "a file is named twice", "name each file once")
    with ConsoleListener() as listener:
        if options["devices"] is not None:
            built, code = _build_on_devices(context, onnx, options, listener)
        elif len(onnx) == 1:
            built, code = [_build(onnx[0], options, listener)], 0
        else:
            built, code = _build_in_turn(onnx, options, listener)
    if options["as_json"]:
        click.echo(json.dumps(built[0] if len(onnx) == 1 else built, indent=2))
        return code
    for one in built:
        _print(one)
    return code


def _build(onnx: Path, options: dict[str, Any], listener: Listener) -> dict[str, Any]:
    from boxwright.build import build

    built = build(
        onnx,
        _settings(options),
        options["runtime"],
        typing=_typing(options),
        out=options["out"],
        force=options["force"],
        dry_run=options["dry_run"],
        cache_part=options["timing_cache_part"],
        listener=listener,
    )
    return built.as_dict()


def _build_in_turn(
    files: tuple[Path, ...], options: dict[str, Any], listener: Listener
) -> tuple[list[dict[str, Any]], int]:
    """Build one file after the other; return what became of each, and the worst status."""
    built: list[dict[str, Any]] = []
    worst = 0
    for onnx in files:
        try:
            built.append(_build(onnx, options, listener))
        except BoxwrightError as error:
            listener.note(f"{onnx} failed: {error}")
            built.append({"onnx": str(onnx), "error": str(error)})
            worst = max(worst, error.exit_code)
    return built, worst


def _build_on_devices(
    context: click.Context, files: tuple[Path, ...], options: dict[str, Any], listener: Listener
) -> tuple[list[dict[str, Any]], int]:
    """Build files on several GPUs; each has a part of the timing cache, merged at the end."""
    import os

    from boxwright.gpu_jobs import Job, run_jobs
    from boxwright.gpus import device_numbers

    devices = device_numbers(options["devices"], os.environ)
    cache: Path | None = options["timing_cache"]
    words = words_again(context, ("devices", "as_json", "timing_cache_part"))
    jobs: list[Job] = []
    parts: list[Path] = []
    for onnx in files:
        more = []
        if cache is not None and options["runtime"] == "tensorrt":
            parts.append(cache.with_name(f"{cache.name}.part{len(parts)}"))
            more = ["--timing-cache-part", str(parts[-1])]
        jobs.append(Job(str(onnx), ("build", str(onnx), *words, *more, "--json")))
    done = run_jobs(jobs, devices, listener=listener)
    written = [part for part in parts if part.exists()]
    if cache is not None and written:
        _merge(cache, written, listener)
    built = [
        {**json.loads(one.out), "device": one.device}
        if one.code == 0
        else {"onnx": one.job.label, "error": one.error, "device": one.device}
        for one in done
    ]
    return built, max(one.code for one in done)


def _merge(cache: Path, parts: list[Path], listener: Listener) -> None:
    """Merge the timings; parts that cannot be merged stay, and that is told."""
    from boxwright.engines.timing_cache import merge_timing_caches
    from boxwright.nvidia import load_tensorrt

    try:
        merge_timing_caches(load_tensorrt("tensorrt"), cache, parts)
    except BoxwrightError as error:
        names = ", ".join(p.name for p in parts)
        listener.note(f"the timings stay in {names}: {error}")


def _print(built: dict[str, Any]) -> None:
    from boxwright.cli.console import size_text

    if "error" in built:
        return
    record = built["record"]
    if record is None:
        click.echo(f"{built['action']} {built['plan']}")
    else:
        took = f"built in {record['build_seconds']:.1f} s"
        done = took if built["action"] == "built" else f"{built['action']}: unchanged, {took}"
        where = f" on GPU {built['device']}" if "device" in built else ""
        click.echo(f"{built['plan']}  {size_text(record['size_bytes'])}  {done}{where}")
    if built["trtexec"]:
        click.echo(built["trtexec"])


def image_sizes_from_text(text: str) -> tuple[Size, Size, Size]:
    """Read `1080x1920` or `480x640,1080x1920,2160x3840`.

    Raises:
        RequestError: It is not one or three sizes.

    >>> image_sizes_from_text("480x640,1080x1920,2160x3840")
    ((480, 640), (1080, 1920), (2160, 3840))
    """
    words = [w.strip().lower() for w in text.split(",")]
    found = [re.fullmatch("([0-9]{1,6})x([0-9]{1,6})", w) for w in words]
    sizes = [(int(m[1]), int(m[2])) for m in found if m]
    if len(words) not in (1, 3) or len(sizes) != len(words):
        raise RequestError(
            f"--image-sizes {text}",
            "it is not smallest, best, largest HEIGHTxWIDTH",
            "use e.g. 480x640,1080x1920,2160x3840",
        )
    low, best, high = sizes * 3 if len(sizes) == 1 else sizes
    return low, best, high


def _settings(options: dict[str, Any]) -> BuildSettings:
    from boxwright.cli.options import batch_from_text
    from boxwright.engines import BuildSettings

    batch, sources = options["batch"], options["tactic_sources"]
    sizes = options["image_sizes"]
    return BuildSettings(
        batch=batch_from_text("--batch", batch) if batch is not None else None,
        workspace_gib=options["workspace_gib"],
        optimization_level=options["optimization_level"],
        timing_cache=options["timing_cache"],
        version_compatible=options["version_compatible"],
        hardware_compatibility=options["hardware_compatibility"],
        dla_core=options["dla_core"],
        tactic_sources=_sources(sources) if sources is not None else None,
        verbose=options["verbose"],
        image_sizes=image_sizes_from_text(sizes) if sizes is not None else None,
    )


def _sources(text: str) -> tuple[str, ...]:
    from boxwright.cli.options import words_from_text
    from boxwright.engines.settings import TACTIC_SOURCES

    known = tuple(s.lower() for s in TACTIC_SOURCES)
    return tuple(w.upper() for w in words_from_text("--tactic-sources", text, known))


def _typing(options: dict[str, Any]) -> Typing | None:
    """Return what the switches of precision ask for.

    Raises:
        RequestError: They contradict each other, or INT8 has nothing to calibrate on.
    """
    from boxwright.build import Typing

    fp16, int8, images = options["fp16"], options["int8"], options["calib_images"]
    if fp16 and int8:
        raise RequestError(
            "--fp16 --int8", "a graph has one of them", "use --int8; its float layers stay FP32"
        )
    if images and not int8:
        raise RequestError("--calib-images", "no INT8 is asked for", "add --int8")
    if int8 and not images:
        raise RequestError(
            "--int8", "it needs pictures to calibrate on", "give --calib-images with 100 to 500"
        )
    if not fp16 and not int8:
        return None
    return Typing("int8" if int8 else "fp16", tuple(images))
