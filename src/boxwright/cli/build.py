"""`boxwright build`: a plan for TensorRT or TensorRT-RTX."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.errors import RequestError

if TYPE_CHECKING:
    from boxwright.build import Typing
    from boxwright.engines import BuildSettings

__all__ = ["batch_from_text", "command", "image_sizes_from_text"]

Size = tuple[int, int]
_LEVELS = ["none", "ampere_plus", "same_compute_capability"]


@click.command("build")
@click.argument("onnx", type=click.Path(path_type=Path), metavar="ONNX")
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
@click.option("--dry-run", is_flag=True, help="Check everything, build nothing.")
@click.option("--verbose", is_flag=True, help="Show all that TensorRT says.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(onnx: Path, **options: Any) -> None:
    """Build a plan (engine) from a typed ONNX file.

    Precision is what the graph carries: give NAME.fp16.onnx for FP16, NAME.int8.tensorrt.onnx for
    INT8. The plan lies beside the file, with a description of what it is in NAME.plan.json; see
    docs/tensorrt.md.

    \b
    boxwright build runs/yolo11n/yolo11n.fp16.onnx --batch 1,8,32 --timing-cache gpu.cache
    """
    from boxwright.build import build
    from boxwright.cli.console import ConsoleListener, size_text

    settings, typing = _settings(options), _typing(options)
    with ConsoleListener() as listener:
        built = build(
            onnx,
            settings,
            options["runtime"],
            typing=typing,
            out=options["out"],
            force=options["force"],
            dry_run=options["dry_run"],
            listener=listener,
        )
    if options["as_json"]:
        click.echo(json.dumps(built.as_dict(), indent=2))
        return
    record = built.record
    if record is None:
        click.echo(f"{built.action} {built.plan}")
    else:
        took = f"built in {record.build_seconds:.1f} s"
        done = took if built.action == "built" else f"{built.action}: unchanged, {took}"
        click.echo(f"{built.plan}  {size_text(record.size_bytes)}  {done}")
    if built.trtexec:
        click.echo(built.trtexec)


def batch_from_text(text: str) -> tuple[int, int, int]:
    """Read `8` or `1,8,32`.

    Raises:
        RequestError: It is not one or three whole numbers.

    >>> batch_from_text("8"), batch_from_text("1,8,32")
    ((8, 8, 8), (1, 8, 32))
    """
    words = [w.strip() for w in text.split(",")]
    if len(words) not in (1, 3) or not all(re.fullmatch("[0-9]{1,6}", w) for w in words):
        raise RequestError(
            f"--batch {text}", "it is not smallest, best, largest", "use e.g. 1,8,32, or 8"
        )
    low, best, high = (int(w) for w in (words * 3 if len(words) == 1 else words))
    return low, best, high


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
    from boxwright.engines import BuildSettings

    batch, sources = options["batch"], options["tactic_sources"]
    sizes = options["image_sizes"]
    return BuildSettings(
        batch=batch_from_text(batch) if batch is not None else None,
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
