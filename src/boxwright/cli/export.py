"""`boxwright export`: the conversions of the main job, without its proofs."""

from __future__ import annotations

from typing import Any

import click

from boxwright.cli.options import conversion_options

__all__ = ["command"]


@click.command("export")
@click.argument("source")
@conversion_options
def command(source: str, **options: Any) -> None:
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
    execute(source, {**options, **absent}, verify=False)
