"""`boxwright demo`: the main job on the embedded sample."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

__all__ = ["command"]


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="demo",
    show_default=True,
    help="Folder for everything; an earlier demo's is brought up to date.",
)
@click.option("--pages", type=int, default=6, show_default=True, help="How many to generate.")
@click.option("--seed", type=int, default=42, show_default=True, help="Of the first page.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of one inference.")
@click.option(
    "--from-torch", is_flag=True, help="Start from the torch weights; needs boxwright[export]."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    out: Path, pages: int, seed: int, threads: int | None, from_torch: bool, as_json: bool
) -> None:
    """Show the whole of Boxwright at work, offline.

    Generates comic-like pages, exports the embedded text detector as FP32, FP16 and INT8, raw and
    end-to-end ONNX, proves each file against its source, detects with one of them, and draws what
    it found. Needs no network, no torch and no GPU.
    """
    from boxwright.cli.console import ConsoleListener, outcome_as_dict, print_outcome
    from boxwright.demo import run_demo, summary_text

    with ConsoleListener() as listener:
        result = run_demo(
            out, pages=pages, seed=seed, threads=threads, from_torch=from_torch, listener=listener
        )
    if as_json:
        data = outcome_as_dict(result.outcome)
        data["found"] = [dataclasses.asdict(f) for f in result.found]
        data["drawings"] = [str(p) for p in result.drawings]
        data["seconds"] = result.seconds
        click.echo(json.dumps(data, indent=2))
        return
    print_outcome(result.outcome)
    click.echo("\n" + summary_text(result), nl=False)
