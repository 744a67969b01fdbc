"""`boxwright clean`: remove built files, keep everything else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from boxwright.store import Store

__all__ = ["command"]


@click.command("clean")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option(
    "--repo",
    "repository",
    type=click.Path(path_type=Path),
    help="A Triton repository: remove its ONNX files and plans, in the place of FOLDER.",
)
@click.option(
    "--engine-cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="With --repo: also what ONNX Runtime's TensorRT provider keeps there.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def command(
    folder: Path | None, repository: Path | None, engine_cache: Path | None, dry_run: bool
) -> None:
    """Remove the files that runs built in FOLDER (or the run directories in it).

    Only what a manifest lists goes. Recipes, reports and files of your own stay. Of a repository
    folders and configurations stay; these are also copied to REPO.configs-TIME/ beside it.
    """
    from boxwright.errors import RequestError

    if (folder is None) == (repository is None):
        raise RequestError("clean", "it needs FOLDER or --repo, one of them", "name one")
    if repository is not None:
        _clean_repository(repository, engine_cache, dry_run)
    elif folder is not None:
        if engine_cache is not None:
            raise RequestError("--engine-cache", "it goes with --repo", "drop it, or add that")
        _clean_runs(folder, dry_run)


def _clean_repository(repository: Path, engine_cache: Path | None, dry_run: bool) -> None:
    from boxwright.serve.clean_repository import clean_repository

    done = clean_repository(repository, engine_cache, dry_run=dry_run)
    for path in done.removed:
        click.echo(f"would remove {path}" if dry_run else f"removed {path}")
    for path in done.kept:
        click.echo(f"boxwright: kept {path}, since it was changed", err=True)
    if done.backup is not None:
        verb = "would copy" if dry_run else "copied"
        click.echo(f"{verb} the configurations to {done.backup}")


def _clean_runs(folder: Path, dry_run: bool) -> None:
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
