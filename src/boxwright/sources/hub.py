"""Downloads: official releases, Hugging Face repositories and plain URLs become local files.

A checkpoint that is only nearly what was published gives results that nobody can explain. So a
file appears under its name only when it is complete and checked: it is received as `.<name>.part`
beside its target, checked (size, SHA-256 where anybody published it), and moved into place. What
broke off is continued, what is there and right is left alone, and what is there and is something
else is never replaced unasked.

This module is what the rest of the package calls. It reads names; `hub_listing` asks which files a
Hugging Face name stands for, `fetched` puts each in its place, `transfer` receives it and
`local_files` handles the disk. POSIX only (flock).

Environment:
    BOXWRIGHT_RELEASES_URL: Folder of a mirror of the official release assets.
    HF_ENDPOINT, HF_TOKEN: As huggingface_hub reads them.
    HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE: As Python reads them.
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from boxwright.errors import RequestError
from boxwright.sources import names
from boxwright.sources.fetched import Fetched, obtain, read_record, write_record
from boxwright.sources.hub_listing import HubPath, hub_endpoint, list_hub
from boxwright.sources.local_files import key_of, safe_path
from boxwright.sources.transfer import Patience, Progress, Remote

__all__ = [
    "Fetched",
    "Patience",
    "Progress",
    "check_request",
    "fetch",
    "fetch_files",
    "progress_bar",
]

_HUB_NAME = re.compile(
    r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
_HUB_PAGE = re.compile(
    r"/(?P<repo>[^/]+/[^/]+)/(?:blob|resolve|raw|tree)/(?P<revision>[^/]+)/(?P<path>.+)"
)


# Requests


def fetch(
    name: str,
    destination: Path,
    *,
    force: bool = False,
    sha256: str | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> list[Path]:
    """Make sure that the files behind a name are in a folder, complete and checked.

    Args:
        name: An official name (`yolo11n`, any spelling), `hf://owner/repo[@revision]/path` of a
            file or folder, or an http(s) URL.
        destination: Folder; it is made. A file lands in it, a folder becomes a folder in it.
        force: Download anew, and replace whatever is there.
        sha256: What the one file must hash to, hexadecimal; replaces the known checksum.
        progress: Called while bytes arrive; see `progress_bar`.
        patience: How long to wait and how often to try.

    Raises:
        RequestError: the name, the checksum or the environment makes no sense.
        DownloadError: the files cannot be had, or are not what they should be.
        StoreError: the folder cannot be written, is full, or holds another file of that name.
    """
    found = fetch_files(
        name, destination, force=force, sha256=sha256, progress=progress, patience=patience
    )
    return [file.path for file in found]


def fetch_files(
    name: str,
    destination: Path,
    *,
    force: bool = False,
    sha256: str | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> list[Fetched]:
    """Do what `fetch` does, and say what each file is and whether it had to be downloaded."""
    patience = patience or Patience()
    asked = _parse(name, sha256)
    record = destination / f".{PurePosixPath(asked.path).name}.fetch.json"
    key = key_of(asked.url if isinstance(asked, Remote) else asked.source)
    recorded = isinstance(asked, HubPath) or asked.sha256 is None
    if recorded and not force and sha256 is None and (there := read_record(record, key)):
        return there
    revision = ""
    if isinstance(asked, HubPath):
        revision, remotes = list_hub(asked, patience)
        if sha256 is not None:
            if len(remotes) != 1 or len(remotes[0].path.parts) != 1:
                raise RequestError("--sha256", f"{asked.source} is a folder", "name one file")
            remotes = [replace(remotes[0], sha256=sha256.lower())]
    else:
        remotes = [asked]
    found = [obtain(remote, destination, force, progress, patience) for remote in remotes]
    if recorded and any(file.downloaded for file in found):
        write_record(record, key, asked.source, revision, found)
    return found


def check_request(name: str, sha256: str | None = None) -> None:
    """Refuse what `fetch` would refuse without asking any server.

    Raises:
        RequestError: the name, the checksum or the environment makes no sense.
        DownloadError: the file's name could lead out of the folder.
    """
    _parse(name, sha256)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a bar for each file on standard error while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Bars(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done_bytes: int, total_bytes: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, completed=done_bytes, total=total_bytes)
            bars.update(tasks[name], completed=done_bytes, total=total_bytes)

        yield show


# Names


def _parse(name: str, sha256: str | None) -> Remote | HubPath:
    """Read a name without asking any server."""
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise RequestError("--sha256", f"{sha256!r} is not 64 hexadecimal digits")
    sha256 = sha256.lower() if sha256 else None
    if match := re.match(r"([a-z][a-z0-9+.-]*)://", name, re.IGNORECASE):
        scheme = match[1].lower()
        if scheme == "hf":
            return _parse_hub_name(name)
        if scheme in ("http", "https"):
            return _parse_hub_page(name) or _parse_url(name, sha256)
        raise RequestError(name, f"{scheme}:// is not understood", "give hf://, https:// or a name")
    if "/" in name or "\\" in name:
        raise RequestError(name, "it is a path, not a name", "give hf://, https:// or a name")
    if name.lower().endswith((".yaml", ".yml")):
        raise RequestError(
            name, "configurations are not downloaded: they come with ultralytics", "name a model"
        )
    base_url = os.environ.get("BOXWRIGHT_RELEASES_URL") or names.RELEASES_URL
    if not base_url.lower().startswith(("http://", "https://")):
        raise RequestError("BOXWRIGHT_RELEASES_URL", f"{base_url!r} is not an http(s) URL")
    remote = _parse_url(names.release_url(name, base_url), sha256)
    known = names.release_checksum(name)
    if known is None or sha256 is not None:
        return remote
    return replace(remote, size_bytes=known.size_bytes, sha256=known.sha256)


def _parse_hub_page(url: str) -> HubPath | None:
    """Read a page or file of a Hugging Face repository, as copied from a browser."""
    parts, shown = _split_url(url)
    match = _HUB_PAGE.fullmatch(parts.path.rstrip("/"))
    endpoint = urllib.parse.urlsplit(hub_endpoint())
    if not match or parts.netloc not in ("huggingface.co", "hf.co", endpoint.netloc):
        return None
    repo, revision, path = (urllib.parse.unquote(match[n]) for n in ("repo", "revision", "path"))
    return HubPath(repo, revision, safe_path(path, shown))


def _split_url(url: str) -> tuple[urllib.parse.SplitResult, str]:
    """Return the parts of a URL, and how to show it."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise RequestError(url, f"it is not a URL ({error})") from error
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if not host:
        raise RequestError(shown, "it names no host")
    if "@" in parts.netloc:
        raise RequestError(shown, "it holds a password", "use a URL without one")
    return parts, shown


def _parse_url(url: str, sha256: str | None) -> Remote:
    parts, shown = _split_url(url)
    leaf = urllib.parse.unquote(parts.path.rpartition("/")[2])
    if not leaf:
        raise RequestError(shown, "it names no file")
    quoted = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    return Remote(
        urllib.parse.urlunsplit((parts.scheme, parts.netloc, quoted, query, "")),
        PurePosixPath(safe_path(leaf.replace("/", "\\"), shown)),
        shown,
        sha256=sha256,
    )


def _parse_hub_name(name: str) -> HubPath:
    match = _HUB_NAME.fullmatch(name)
    if not match or match["repo"].startswith(("datasets/", "spaces/")):
        raise RequestError(name, "it names no model repository", "write hf://owner/repo/path")
    revision = urllib.parse.unquote(match["revision"]) if match["revision"] else None
    path = (match["path"] or "").strip("/")
    if not path:
        raise RequestError(name, "it names no file or folder", f"write {name.rstrip('/')}/path")
    return HubPath(match["repo"], revision, safe_path(path, name))
