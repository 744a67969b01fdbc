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

    absent: dict[str, Any] = {"images": (), "max_images": None, "threads": None}
    execute(
        source, {**options, **absent, "skip_verify": True, "download_only": False}, verify=False
    )
