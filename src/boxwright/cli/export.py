"""`boxwright export`: the conversions of the main job, without its proofs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from boxwright.cli.options import conversion_options

__all__ = ["command"]


@click.command("export")
@click.argument("source")
@conversion_options
@click.option(
    "--numpy-script",
    is_flag=True,
    help="Write detect_numpy.py beside the files: it runs them with NumPy and ONNX Runtime alone.",
)
@click.option(
    "--level-maps",
    is_flag=True,
    help="Write NAME.fp32.maps.onnx, too: an MMYOLO network without decode, a map per level.",
)
def command(source: str, numpy_script: bool, level_maps: bool, **options: Any) -> None:
    """Convert a checkpoint or a raw ONNX to ONNX variants, unproven.

    The files pass onnx.checker, nothing more: `boxwright run` proves them.
    """
    from boxwright.cli.run import execute
    from boxwright.errors import RequestError

    if options["data"] and options["max_drop"] is None and options["calib_method"] != "auto":
        raise RequestError(
            f"--data {options['data']}",
            "export measures nothing on it",
            "use `boxwright run`, or add --max-drop",
        )
    absent: dict[str, Any] = {
        "images": (),
        "max_images": None,
        "threads": None,
        "runtimes": None,
        "seconds": None,
        "skip_verify": True,
        "skip_benchmark": True,
        "skip_evaluate": True,
        "force_measure": False,
        "download_only": False,
    }
    local = Path(source).suffix.lower() == ".pth" and Path(source).is_file()
    if level_maps and not local:
        raise RequestError(
            f"--level-maps of {source}", "it is no .pth file of MMYOLO", "drop the option"
        )
    outcome = execute(source, {**options, **absent}, verify=False)
    if level_maps and outcome.folder is not None and not options["dry_run"]:
        written = _write_level_maps(Path(source), outcome.folder, options)
        click.echo(str(written), err=options["as_json"])
    if numpy_script and outcome.folder is not None and not options["dry_run"]:
        force = options["force_convert"] or options["force_all"]
        click.echo(str(_write_numpy_script(outcome.folder, force)), err=options["as_json"])


def _write_level_maps(source: Path, folder: Path, options: dict[str, Any]) -> Path:
    """Write the bare network of a checkpoint; one that is there is kept.

    Raises:
        StoreError: Another file is there, or it cannot be written.
    """
    from boxwright.cli.options import image_size_from_text
    from boxwright.errors import StoreError
    from boxwright.graph.io import bytes_from_model
    from boxwright.sources import SourceRequest
    from boxwright.sources.level_maps import export_level_maps
    from boxwright.sources.sidecars import read_labels
    from boxwright.store import write_atomic

    size, batch = options["image_size"], options["batch"]
    request = SourceRequest(
        source,
        folder.name,
        family=options["family"],
        image_size=image_size_from_text(size) if size else None,
        labels=read_labels(options["labels"]).names if options["labels"] else None,
        opset=options["opset"],
        batch=None if batch in (None, "dynamic") else int(batch),
        simplify=not options["no_simplify"],
        config=Path(options["config"]) if options["config"] else None,
    )
    path = folder / f"{folder.name}.fp32.maps.onnx"
    data = bytes_from_model(export_level_maps(request), path.name)
    force = options["force_convert"] or options["force_all"]
    if path.is_file() and path.read_bytes() != data and not force:
        raise StoreError(str(path), "it was made in another way", "use --force-convert")
    write_atomic(path, data)
    return path


def _write_numpy_script(folder: Path, force: bool) -> Path:
    """Copy the script that needs NumPy and ONNX Runtime alone; one that was changed is kept.

    Raises:
        StoreError: It was changed, or cannot be written.
    """
    from importlib.util import find_spec

    from boxwright.errors import StoreError
    from boxwright.store import write_atomic

    found = find_spec("boxwright.detect_numpy")
    assert found is not None and found.origin is not None
    script, path = Path(found.origin).read_bytes(), folder / "detect_numpy.py"
    if path.is_file() and path.read_bytes() != script and not force:
        raise StoreError(
            str(path), "it was changed since Boxwright wrote it", "move it away, or --force-convert"
        )
    write_atomic(path, script)
    return path
