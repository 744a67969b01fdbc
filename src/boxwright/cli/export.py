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
def command(source: str, numpy_script: bool, **options: Any) -> None:
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
    outcome = execute(source, {**options, **absent}, verify=False)
    if numpy_script and outcome.folder is not None and not options["dry_run"]:
        force = options["force_convert"] or options["force_all"]
        click.echo(str(_write_numpy_script(outcome.folder, force)), err=options["as_json"])


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
