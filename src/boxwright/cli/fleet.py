"""`boxwright fleet`: the same jobs over many files, GPUs and machines."""

from __future__ import annotations

import click

from boxwright.cli.fleet_evaluate import evaluate_command
from boxwright.cli.fleet_predict import predict_command
from boxwright.cli.fleet_run import run_command

__all__ = ["command"]


@click.group("fleet")
def command() -> None:
    """Detect, build and evaluate over many files, GPUs and machines.

    One machine needs nothing more, but pyarrow for Parquet; several need Ray. See docs/fleet.md.
    Needs, for both: pip install "boxwright[ray]"
    """


command.add_command(predict_command)
command.add_command(run_command)
command.add_command(evaluate_command)
