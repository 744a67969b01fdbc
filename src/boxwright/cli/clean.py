"""`boxwright clean`: remove built files, keep everything else."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("clean")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def command(folder: Path, dry_run: bool) -> None:
    """Remove the files that runs built in FOLDER (or the run directories in it).

    Only what a manifest lists goes. Recipes, reports and files of your own stay.
    """
    from boxwright.errors import RequestError
    from boxwright.store import MANIFEST, Store

    folders = [folder] if (folder / MANIFEST).is_file() else sorted(
        p.parent for p in folder.glob(f"*/{MANIFEST}")
    )
    if not folders:
        raise RequestError(str(folder), "it holds no run of ours", "name a run directory")
    for place in folders:
        if dry_run:
            for name in Store.peek(place).entries:
                click.echo(f"would remove {place / name}")
            continue
        with Store(place) as store:
            for name in list(store.entries):
                path = store.path(name)
                store.forget(name)
                click.echo(f"removed {path}")
            (place / MANIFEST).unlink(missing_ok=True)
