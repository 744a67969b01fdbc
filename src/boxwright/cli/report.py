"""`boxwright report`: one HTML page of what a run left."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="The page. Default: report.html beside it."
)
@click.option("--force", is_flag=True, help="Replace a page that is there.")
def command(run: Path, out: Path | None, force: bool) -> None:
    """Make one HTML page of RUN, a run directory or its report.json.

    The page holds everything in itself, works offline and from a file, and is made of report.json
    alone. docs/report.md says what it shows.

    \b
    boxwright report runs/yolo11n
    """
    from boxwright.errors import RequestError
    from boxwright.predict import Wishes
    from boxwright.report.html import html_from_report
    from boxwright.report.reading import report_file, report_from_file
    from boxwright.store import write_atomic

    source = report_file(run)
    page = out if out is not None else source.with_name("report.html")
    if page.exists() and page.samefile(source):
        raise RequestError(f"--out {page}", "it is the report itself", "name another file")
    Wishes(json_file=page, force=force).check()
    html = html_from_report(report_from_file(source))
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, html.encode())
    click.echo(page)
