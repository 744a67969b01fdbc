"""`boxwright clean`: remove built files, keep everything else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from boxwright.store import Store

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

    folders = (
        [folder]
        if (folder / MANIFEST).is_file()
        else sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
    )
    if not folders:
        raise RequestError(str(folder), "it holds no run of ours", "name a run directory")
    for place in folders:
        if dry_run:
            seen = Store.peek(place)
            for name in seen.entries:
                verb = "remove" if _is_ours(seen, name) else "keep, since it was changed:"
                click.echo(f"would {verb} {seen.path(name)}")
            continue
        with Store(place) as store:
            for name in list(store.entries):
                path = store.path(name)
                if not _is_ours(store, name):
                    click.echo(f"boxwright: kept {path}, since it was changed", err=True)
                    del store.entries[name]
                    continue
                store.forget(name)
                click.echo(f"removed {path}")
            (place / MANIFEST).unlink(missing_ok=True)


def _is_ours(store: Store, name: str) -> bool:
    """Whether a file is as it was made, or not there at all."""
    return not store.path(name).exists() or store.is_whole(name)
