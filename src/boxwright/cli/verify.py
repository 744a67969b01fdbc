"""`boxwright verify`: parity of two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from boxwright.cli.options import ARTIFACT

__all__ = ["command"]


@click.command("verify")
@click.argument("reference", type=ARTIFACT, metavar="A")
@click.argument("candidate", type=ARTIFACT, metavar="B")
@click.option("--images", multiple=True, metavar="PATH", help="Files, folders, globs.")
@click.option(
    "--max-images",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="At most so many of them.",
)
@click.option(
    "--precision",
    metavar="WORD",
    help="Whose tolerances hold: fp32 or fp16. Default: what B says of itself.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of one inference.")
@click.option("--family", metavar="NAME", help="Family of a raw ONNX that does not say.")
@click.option("--labels", metavar="FILE", help="Class names: JSON or text, or coco.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(reference: Path | str, candidate: Path | str, **options: Any) -> int:
    """Compare B with A: raw tensors where both have them, and detections.

    A is the source or another raw file, B any file of the same model, or that model where it is
    served, triton://host:port/model. Exit status 1 when a check
    fails. Without --images, generated pictures serve; they show no objects.
    """
    from boxwright.cli.console import ConsoleListener, print_parity
    from boxwright.cli.options import words_from_text
    from boxwright.proof import prove_file

    word = options["precision"]
    precision = words_from_text("--precision", word, ("fp32", "fp16", "int8"))[0] if word else None
    with ConsoleListener() as listener:
        parity = prove_file(
            reference,
            candidate,
            images=options["images"],
            max_images=options["max_images"],
            precision=precision,
            threads=options["threads"],
            family=options["family"],
            labels=options["labels"],
            count=lambda done, total: listener.count("verify", done, total),
        )
    if options["as_json"]:
        click.echo(json.dumps({**parity.as_dict(), "passed": parity.passed}, indent=2))
    else:
        print_parity(parity)
    return 0 if parity.passed else 1
