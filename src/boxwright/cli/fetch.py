"""`boxwright fetch`: download checkpoints, and leave alone what is there and right."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import click

__all__ = ["command"]


@click.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="models",
    show_default=True,
    help="Folder that the files go to; it is made.",
)
@click.option(
    "--force-download", is_flag=True, help="Download anew, and replace whatever is there."
)
@click.option(
    "--sha256", metavar="HEX", help="What the file must hash to; for one NAME that is one file."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of paths.")
@click.option("--quiet", is_flag=True, help="No progress bar and no notes.")
def command(
    names: tuple[str, ...],
    out: Path,
    force_download: bool,
    sha256: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Download checkpoints and check them.

    NAME is an official model (yolo11n, yolov8s-seg, in any spelling), a file or folder of a Hugging
    Face repository (hf://owner/repo[@revision]/path), or a URL. What is there and right is left
    alone, what broke off is continued, and another file of the same name is never replaced unasked.

    BOXWRIGHT_RELEASES_URL names a mirror of the official releases; HF_ENDPOINT and HF_TOKEN are
    read as huggingface_hub reads them.
    """
    from boxwright.errors import RequestError
    from boxwright.sources import hub

    if sha256 is not None and len(names) > 1:
        raise RequestError("--sha256", f"{len(names)} names are given", "fetch that one by itself")
    for name in names:
        hub.check_request(name, sha256)
    rows = []
    for name in names:
        bar = contextlib.nullcontext() if quiet else hub.progress_bar()
        with bar as progress:
            files = hub.fetch_files(
                name, out, force=force_download, sha256=sha256, progress=progress
            )
        for file in files:
            if not quiet:
                state = "downloaded" if file.downloaded else "already there"
                click.echo(f"{file.path}: {state}, SHA-256 {file.sha256}", err=True)
            if not as_json:
                click.echo(str(file.path))
            rows.append(
                {
                    "name": name,
                    "path": str(file.path),
                    "size_bytes": file.size_bytes,
                    "sha256": file.sha256,
                    "source": file.source,
                    "downloaded": file.downloaded,
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
