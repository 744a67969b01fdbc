"""`boxwright compare`: what changed from one run to another, and whether it means anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from boxwright.errors import CheckFailedError, RequestError

if TYPE_CHECKING:
    from boxwright.comparison import Comparison, Respect

__all__ = ["command"]

_RESPECTS = ("accuracy", "latency", "parity")


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path), metavar="RUN_A")
@click.argument("after", type=click.Path(path_type=Path), metavar="RUN_B")
@click.option(
    "--fail-on",
    metavar="LIST",
    help="accuracy, latency, parity: exit status 1 when B is significantly worse in one of them.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="X",
    help="Loss of mAP50-95 (or the task's own figure) that --fail-on accuracy accepts.",
)
@click.option(
    "--max-slowdown",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="X",
    help="Share by which a call may take longer for --fail-on latency, e.g. 0.1.",
)
@click.option(
    "--resamples",
    type=click.IntRange(100, 100_000),
    metavar="N",
    help="Draws for the intervals of accuracy. Default: 2000, fewer on large data.",
)
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print every row as JSON.")
def command(before: Path, after: Path, **options: Any) -> None:
    """Say what changed from RUN_A to RUN_B: settings, files, parity, accuracy, latency.

    Each is a run directory or its report.json. A change of accuracy is judged by bootstrap over the
    pictures that both runs measured, a change of latency by bootstrap over rounds, and only where
    the machines were alike and quiet; see docs/compare.md. --fail-on refuses (exit status 2) what
    the two runs say nothing about.

    \b
    boxwright compare runs/before runs/after --fail-on accuracy,parity --max-drop 0.005
    """
    from boxwright.cli.options import words_from_text
    from boxwright.comparison import compare
    from boxwright.past_run import read_run

    if options["markdown"] and options["as_json"]:
        raise RequestError("--markdown --json", "they ask for two forms", "drop one of them")
    asked = options["fail_on"]
    respects = words_from_text("--fail-on", asked, _RESPECTS) if asked is not None else []
    first, second = read_run(before), read_run(after)
    comparison = compare(
        first.report,
        second.report,
        before_matches=first.matches,
        after_matches=second.matches,
        names=(first.name, second.name),
        resamples=options["resamples"],
    )
    _print(comparison, options)
    _check(comparison, cast("list[Respect]", respects), options)


def _print(comparison: Comparison, options: dict[str, Any]) -> None:
    from boxwright.cli.console import print_table
    from boxwright.comparison import tables

    if options["as_json"]:
        click.echo(json.dumps(comparison.as_dict(), indent=1, ensure_ascii=False))
    elif options["markdown"]:
        click.echo(tables.markdown_from_comparison(comparison), nl=False)
    else:
        for line in tables.head_lines(comparison):
            click.echo(line)
        for table in tables.tables_of(comparison):
            print_table(table)
        for line in (*tables.note_lines(comparison), *tables.summary_lines(comparison)):
            click.echo(line)


def _check(comparison: Comparison, respects: list[Respect], options: dict[str, Any]) -> None:
    """Fail when something is significantly worse, and refuse what nothing is known of."""
    found = []
    for respect in respects:
        worse = comparison.failures(respect, options["max_drop"], options["max_slowdown"])
        if worse:
            found.append(f"{respect}: {'; '.join(worse)}")
    if found:
        raise CheckFailedError(
            f"--fail-on {','.join(respects)}",
            f"run B is worse in {', '.join(found)}",
            "mend it, or allow more with --max-drop or --max-slowdown",
        )
    for respect in respects:
        why = comparison.unjudged(respect)
        if why:
            raise RequestError(
                f"--fail-on {respect}", why, "compare runs that measured it on the same data"
            )
        rows = comparison.latency if respect == "latency" else comparison.accuracy
        unsure = sum(r.verdict in ("undecided", "unknown") for r in rows)
        if respect != "parity" and unsure:
            click.echo(
                f"boxwright: --fail-on {respect}: {unsure} of {len(rows)} rows could not be "
                "judged and did not count",
                err=True,
            )
