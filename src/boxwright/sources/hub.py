"""Downloads: official releases, Hugging Face repositories and plain URLs become local files.

A checkpoint that is only nearly what was published gives results that nobody can explain. So a
file appears under its name only when it is complete and checked: it is received as `.<name>.part`
beside its target, checked (size, SHA-256 where anybody published it), and moved into place. What
broke off is continued, what is there and right is left alone, and what is there and is something
else is never replaced unasked.

The file has two halves: which files a name stands for, and, from "Files" on, how one file is got.
Only the first half needs the second, so they stay together. POSIX only (flock).

Environment:
    BOXWRIGHT_RELEASES_URL: Folder of a mirror of the official release assets.
    HF_ENDPOINT, HF_TOKEN: As huggingface_hub reads them.
    HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE: As Python reads them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias

from boxwright.errors import DownloadError, RequestError, StoreError, nearest_name
from boxwright.sources import names

__all__ = [
    "Fetched",
    "Patience",
    "Progress",
    "check_request",
    "fetch",
    "fetch_files",
    "progress_bar",
]

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with a file's name, its bytes so far and its bytes in all (None: unknown)."""

_LOG = logging.getLogger(__name__)
_BLOCK_BYTES = 1 << 18
_REAL_PROGRESS_BYTES = 1 << 20  # an attempt that brings this much does not count as a failure
_LONGEST_WAIT_S = 30.0
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_OWN_FILE = re.compile(r"\..*\.(part|part\.json|lock|fetch\.json)")
_HUB_NAME = re.compile(
    r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
_HUB_PAGE = re.compile(
    r"/(?P<repo>[^/]+/[^/]+)/(?:blob|resolve|raw|tree)/(?P<revision>[^/]+)/(?P<path>.+)"
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may keep us waiting.

    Attributes:
        timeout_s: Of one connection, and of each silence within a transfer.
        tries: Attempts in a row that bring less than 1 MiB each.
        backoff_s: Pause after the first of them; it doubles, up to 30 s.
    """

    timeout_s: float = 30.0
    tries: int = 5
    backoff_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is there, complete and checked.

    Attributes:
        path: Where it is.
        size_bytes: Its size.
        sha256: Of its bytes, lower-case hexadecimal.
        source: Where it came from, without credentials.
        downloaded: False when it was there already.
    """

    path: Path
    size_bytes: int
    sha256: str
    source: str
    downloaded: bool


@dataclass(frozen=True, slots=True)
class _Remote:
    """One file to get.

    Attributes:
        url: Where it is.
        path: Where it goes, relative to the destination.
        source: What messages and records call it.
        size_bytes, sha256, git_sha1: What it must be, as far as it is known; `git_sha1` is the id
            of a git blob, which hashes its length before its bytes.
        authorization: Header for the server of `url` alone.
        page: Where access to a gated repository is asked for.
    """

    url: str
    path: PurePosixPath
    source: str
    size_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    authorization: str | None = field(default=None, repr=False)
    page: str = ""


@dataclass(frozen=True, slots=True)
class _HubPath:
    """A file or folder of a Hugging Face repository."""

    repo: str
    revision: str | None
    path: str

    @property
    def source(self) -> str:
        return f"hf://{self.repo}{'@' + self.revision if self.revision else ''}/{self.path}"


@dataclass(frozen=True, slots=True)
class _Digest:
    size_bytes: int
    sha256: str
    git_sha1: str


class _AttemptError(Exception):
    """One attempt failed in a way that the next may not."""

    def __init__(self, found: str, wait_s: float = 0.0) -> None:
        super().__init__(found)
        self.wait_s = wait_s


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
    key = _key(asked.url if isinstance(asked, _Remote) else asked.source)
    recorded = isinstance(asked, _HubPath) or asked.sha256 is None
    if recorded and not force and sha256 is None and (there := _read_record(record, key)):
        return there
    revision = ""
    if isinstance(asked, _HubPath):
        revision, remotes = _list_hub(asked, patience)
        if sha256 is not None:
            if len(remotes) != 1 or len(remotes[0].path.parts) != 1:
                raise RequestError("--sha256", f"{asked.source} is a folder", "name one file")
            remotes = [replace(remotes[0], sha256=sha256.lower())]
    else:
        remotes = [asked]
    found = [_obtain(remote, destination, force, progress, patience) for remote in remotes]
    if recorded and any(file.downloaded for file in found):
        _write_record(record, key, asked.source, revision, found)
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


def _parse(name: str, sha256: str | None) -> _Remote | _HubPath:
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


def _parse_hub_page(url: str) -> _HubPath | None:
    """Read a page or file of a Hugging Face repository, as copied from a browser."""
    parts, shown = _split_url(url)
    match = _HUB_PAGE.fullmatch(parts.path.rstrip("/"))
    endpoint = urllib.parse.urlsplit(_hub_endpoint())
    if not match or parts.netloc not in ("huggingface.co", "hf.co", endpoint.netloc):
        return None
    repo, revision, path = (urllib.parse.unquote(match[n]) for n in ("repo", "revision", "path"))
    return _HubPath(repo, revision, _safe_path(path, shown))


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


def _parse_url(url: str, sha256: str | None) -> _Remote:
    parts, shown = _split_url(url)
    leaf = urllib.parse.unquote(parts.path.rpartition("/")[2])
    if not leaf:
        raise RequestError(shown, "it names no file")
    quoted = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    return _Remote(
        urllib.parse.urlunsplit((parts.scheme, parts.netloc, quoted, query, "")),
        PurePosixPath(_safe_path(leaf.replace("/", "\\"), shown)),
        shown,
        sha256=sha256,
    )


def _parse_hub_name(name: str) -> _HubPath:
    match = _HUB_NAME.fullmatch(name)
    if not match or match["repo"].startswith(("datasets/", "spaces/")):
        raise RequestError(name, "it names no model repository", "write hf://owner/repo/path")
    revision = urllib.parse.unquote(match["revision"]) if match["revision"] else None
    path = (match["path"] or "").strip("/")
    if not path:
        raise RequestError(name, "it names no file or folder", f"write {name.rstrip('/')}/path")
    return _HubPath(match["repo"], revision, _safe_path(path, name))


def _safe_path(path: str, source: str) -> str:
    """Return a relative path that stays below the folder it is put in.

    Raises:
        DownloadError: it might not, or is one of the names that this module keeps for itself.
    """
    for part in path.split("/"):
        unsafe = part in ("", ".", "..") or re.search(r"[\\\x00-\x1f\x7f]|^[A-Za-z]:", part)
        if unsafe or _OWN_FILE.fullmatch(part):
            raise DownloadError(source, f"{path!r} is no safe file name", "download it yourself")
    return path


# Hugging Face


def _hub_endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not endpoint.lower().startswith(("http://", "https://")):
        raise RequestError("HF_ENDPOINT", f"{endpoint!r} is not an http(s) URL")
    return endpoint


def _list_hub(asked: _HubPath, patience: Patience) -> tuple[str, list[_Remote]]:
    """Return the commit and the files that a file or folder of a repository stands for.

    Raises:
        DownloadError: the repository, revision or path does not exist or is not open to us.
    """
    from huggingface_hub import get_token, hf_hub_url

    endpoint = _hub_endpoint()
    token = get_token()
    info = _ask_hub(asked, endpoint, token, patience)
    files = {file.rfilename: file for file in info.siblings or ()}
    prefix = f"{asked.path}/"
    chosen = [asked.path] if asked.path in files else [f for f in files if f.startswith(prefix)]
    if not chosen:
        raise _no_such_path(asked, sorted(files))
    leaf = PurePosixPath(asked.path).name
    revision = info.sha or asked.revision or "main"
    remotes = []
    for path in chosen:
        inner = "" if path == asked.path else "/" + _safe_path(path[len(prefix) :], asked.source)
        file = files[path]
        remotes.append(
            _Remote(
                url=hf_hub_url(asked.repo, path, revision=revision, endpoint=endpoint),
                path=PurePosixPath(leaf + inner),
                source=asked.source + inner,
                size_bytes=file.size,
                sha256=file.lfs.sha256 if file.lfs else None,
                git_sha1=None if file.lfs else file.blob_id,
                authorization=f"Bearer {token}" if token else None,
                page=f"{endpoint}/{asked.repo}",
            )
        )
    return revision, remotes


def _ask_hub(asked: _HubPath, endpoint: str, token: str | None, patience: Patience) -> Any:
    """Return huggingface_hub's ModelInfo of the repository: its commit, files and checksums."""
    from huggingface_hub import HfApi, errors

    # The base of its transport errors: of httpx since 1.0, of requests (an OSError) before.
    transport_error: type[Exception] = getattr(errors, "HTTPError", OSError)
    page = f"{endpoint}/{asked.repo}"
    tries = 0
    while True:
        tries += 1
        try:
            return HfApi(endpoint=endpoint).model_info(
                asked.repo,
                revision=asked.revision,
                files_metadata=True,
                timeout=patience.timeout_s,
                token=token or False,
            )
        except errors.GatedRepoError as error:
            raise _gated(asked.source, page) from error
        except errors.RevisionNotFoundError as error:
            raise DownloadError(
                asked.source,
                f"{asked.repo} has no revision {asked.revision or 'main'}",
                f"see the branches at {page}",
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise DownloadError(
                asked.source,
                f"there is no public repository {asked.repo} at {endpoint}",
                "check its name; if it is private, log in with: hf auth login",
            ) from error
        except errors.OfflineModeIsEnabled as error:
            raise DownloadError(asked.source, "HF_HUB_OFFLINE is set", "unset it") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):
                raise DownloadError(
                    asked.source,
                    f"{endpoint} refuses access ({status})",
                    f"request access at {page}, log in with: hf auth login, and check HF_TOKEN",
                ) from error
            if status not in _RETRIED_STATUS or tries >= patience.tries:
                raise DownloadError(
                    asked.source, f"{endpoint} answered {status}", "try again later"
                ) from error
        except errors.HFValidationError as error:
            raise RequestError(
                asked.source, f"{asked.repo!r} is no repository name", "write hf://owner/repo/path"
            ) from error
        except ValueError as error:  # not JSON; with requests it is a transport error too
            raise DownloadError(
                asked.source, f"{endpoint} does not answer like a hub", "check HF_ENDPOINT"
            ) from error
        except (transport_error, OSError) as error:
            if tries >= patience.tries or _is_unresolved(error):
                raise DownloadError(
                    asked.source,
                    f"{endpoint} cannot be reached ({_text_of(error)})",
                    "check the network; HF_ENDPOINT names a mirror",
                ) from error
        time.sleep(min(patience.backoff_s * 2 ** (tries - 1), _LONGEST_WAIT_S))


def _is_unresolved(error: BaseException | None) -> bool:
    """Return whether an unknown host name is behind an error: trying again would not help."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None


def _gated(source: str, page: str) -> DownloadError:
    return DownloadError(
        source,
        "the repository is gated or private, and this login has no access",
        f"request access at {page}, then log in with: hf auth login (or set HF_TOKEN)",
    )


def _no_such_path(asked: _HubPath, files: list[str]) -> DownloadError:
    entries = list(dict.fromkeys([*(f.partition("/")[0] for f in files), *files]))
    near = nearest_name(asked.path, entries)
    shown = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")
    return DownloadError(
        asked.source,
        f"{asked.repo} holds no {asked.path}; it holds {shown or 'nothing'}",
        f"did you mean {near}?" if near else "name one of those",
    )


# Files


def _obtain(
    remote: _Remote,
    destination: Path,
    force: bool,
    progress: Progress | None,
    patience: Patience,
) -> Fetched:
    """Return one file, which is downloaded unless it is there and known to be right."""
    target = destination / remote.path
    if not force and (digest := _digest_if_right(target, remote)):
        return Fetched(target, digest.size_bytes, digest.sha256, remote.source, False)
    with _storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise StoreError(str(target), "a folder has that name", "choose another folder")
    part = target.with_name(f".{target.name}.part")
    with _locked(target):
        if force:
            _discard(part)
        elif digest := _digest_if_right(target, remote):  # somebody else was faster
            return Fetched(target, digest.size_bytes, digest.sha256, remote.source, False)
        if not force and _size(target) >= (remote.size_bytes or float("inf")):
            raise _occupied(target, remote)
        digest = _download(remote, part, progress, patience)
        with _storing(target):
            if not force and not _is_prefix(target, part):
                _discard(part)
                raise _occupied(target, remote)
            part.replace(target)
            _validator_file(part).unlink(missing_ok=True)
            _sync_folder(target.parent)
    return Fetched(target, digest.size_bytes, digest.sha256, remote.source, True)


def _digest_if_right(target: Path, remote: _Remote) -> _Digest | None:
    """Return the digest of a file that is there and has the checksum that it must have."""
    if not (remote.sha256 or remote.git_sha1):
        return None
    with _storing(target):
        if not target.is_file() or _size(target) != (remote.size_bytes or _size(target)):
            return None
        digest = _digest(target)
    return None if _mismatch(digest, remote) else digest


def _mismatch(digest: _Digest, remote: _Remote) -> str:
    """Say how bytes differ from what they must be; "" when they do not."""
    if remote.size_bytes is not None and digest.size_bytes != remote.size_bytes:
        return f"its size is {digest.size_bytes} bytes, not {remote.size_bytes}"
    if remote.sha256 and digest.sha256 != remote.sha256:
        return f"its SHA-256 is {digest.sha256}, not {remote.sha256}"
    if remote.git_sha1 and digest.git_sha1 != remote.git_sha1:
        return f"its git blob id is {digest.git_sha1}, not {remote.git_sha1}"
    return ""


def _occupied(target: Path, remote: _Remote) -> StoreError:
    return StoreError(
        str(target),
        f"another file is there ({_size(target)} bytes) than {remote.source}",
        "move it away, choose another folder, or replace it with --force-download",
    )


def _is_prefix(target: Path, part: Path) -> bool:
    """Return whether a file is a truncated copy of another one, or all of it, or missing."""
    if not target.exists():
        return True
    with target.open("rb") as old, part.open("rb") as new:
        while block := old.read(_BLOCK_BYTES):
            if new.read(len(block)) != block:
                return False
    return True


def _digest(path: Path) -> _Digest:
    with path.open("rb") as handle:
        size_bytes = os.fstat(handle.fileno()).st_size
        sha256 = hashlib.sha256()
        git_sha1 = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
        while block := handle.read(_BLOCK_BYTES):
            sha256.update(block)
            git_sha1.update(block)
    return _Digest(size_bytes, sha256.hexdigest(), git_sha1.hexdigest())


def _size(path: Path) -> int:
    """Return the size of a file in bytes, 0 when it is missing."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _discard(part: Path) -> None:
    with _storing(part):
        part.unlink(missing_ok=True)
        _validator_file(part).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    """Turn what goes wrong with local files into one line."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StoreError(
            str(path),
            f"it cannot be read or written ({error.strerror or error})",
            "free some space and run the same command again: what came so far is kept"
            if full
            else "choose another folder",
        ) from error


def _names_file(path: Path, descriptor: int) -> bool:
    """Return whether a path still is that of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Let one process or thread at a time write a file; the system unlocks when a process dies.

    The lock file is removed under its lock, so whoever waited checks that its file still is the one
    of that name.
    """
    import fcntl

    path = target.with_name(f".{target.name}.lock")
    while True:
        with _storing(path):
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            with _storing(path):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _LOG.info("%s: waiting for another fetch of it", target)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                current = _names_file(path, descriptor)
            if current:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


# Records: what was fetched, where nobody published a checksum beforehand


def _read_record(record: Path, key: str) -> list[Fetched] | None:
    """Return the files of a record when it is of this request and each of them is unchanged."""
    try:
        data = json.loads(record.read_text(encoding="utf-8"))
        if data["request"] != key:
            return None
        files = [
            Fetched(
                record.parent / _safe_path(f["path"], f["source"]),
                int(f["size_bytes"]),
                str(f["sha256"]),
                str(f["source"]),
                False,
            )
            for f in data["files"]
        ]
    except (OSError, ValueError, KeyError, TypeError, DownloadError):
        return None  # no record, or not one of ours: the server is asked instead
    for file in files:
        with _storing(file.path):
            if not file.path.is_file() or _size(file.path) != file.size_bytes:
                return None
            if _digest(file.path).sha256 != file.sha256:
                return None
    return files


def _write_record(record: Path, key: str, source: str, revision: str, files: list[Fetched]) -> None:
    listed = [
        {
            "path": file.path.relative_to(record.parent).as_posix(),
            "size_bytes": file.size_bytes,
            "sha256": file.sha256,
            "source": file.source,
        }
        for file in files
    ]
    data = {"source": source, "revision": revision, "request": key, "files": listed}
    draft = record.with_name(f"{record.name}.part")
    with _locked(record), _storing(record):
        draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        draft.replace(record)


# Transfers


def _download(
    remote: _Remote, part: Path, progress: Progress | None, patience: Patience
) -> _Digest:
    """Receive a file into its part, over several connections if need be, and check it."""
    failures = 0
    continued = False
    while True:
        before = _size(part)
        continued = continued or before > 0
        try:
            _attempt(remote, part, progress, patience)
        except _AttemptError as error:
            more = _size(part) - before >= _REAL_PROGRESS_BYTES
            failures = 1 if more else failures + 1
            if failures >= patience.tries:
                raise DownloadError(
                    remote.source,
                    f"{error} ({failures} tries)",
                    f"run the same command again: it goes on after {_size(part)} bytes"
                    if _size(part)
                    else "try again later",
                ) from error
            _LOG.info("%s: %s; trying again", remote.source, error)
            pause_s = max(patience.backoff_s * 2 ** (failures - 1), error.wait_s)
            time.sleep(min(pause_s, _LONGEST_WAIT_S))
            continue
        with _storing(part):
            digest = _digest(part)
        if not (wrong := _mismatch(digest, remote)):
            return digest
        _discard(part)
        if not continued:
            raise DownloadError(
                remote.source, f"what came is wrong: {wrong}", "try again or ask who published it"
            )
        continued = False  # the earlier part was of another file: once more, from the start


def _attempt(remote: _Remote, part: Path, progress: Progress | None, patience: Patience) -> None:
    """Receive what is missing of a part over one connection.

    Raises:
        _AttemptError: it broke off; what came is kept.
        DownloadError: trying again cannot help.
    """
    start = _size(part)
    checkable = bool(remote.sha256 or remote.git_sha1)
    validator = _read_validator(part, remote.url) if start else ""
    if start and checkable and start == remote.size_bytes:
        return
    if start and (not (validator or checkable) or start >= (remote.size_bytes or float("inf"))):
        start = 0
    headers = {"User-Agent": "boxwright", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response = _open(remote, headers, patience)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                _discard(part)
            raise _refusal(remote, error) from error
    with response:
        start, total = _span(response, start, part)
        _check_answer(remote, response, total, part)
        _receive(remote, response, part, start, total, progress)


def _open(remote: _Remote, headers: dict[str, str], patience: Patience) -> http.client.HTTPResponse:
    """Send a request and return the answer's head; redirects are followed.

    Raises:
        urllib.error.HTTPError: the server refused.
        _AttemptError, DownloadError: there is no answer.
    """
    request = urllib.request.Request(remote.url, headers=headers)
    if remote.authorization:
        request.add_header("Authorization", remote.authorization)
    try:
        response: http.client.HTTPResponse = urllib.request.build_opener(_Redirects).open(
            request, timeout=patience.timeout_s
        )
    except urllib.error.HTTPError:
        raise
    except (http.client.InvalidURL, UnicodeError) as error:
        raise RequestError(remote.source, f"it is not a URL ({_text_of(error)})") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, socket.gaierror):
            host = urllib.parse.urlsplit(remote.url).hostname
            raise DownloadError(
                remote.source,
                f"the host {host} cannot be resolved",
                "check the network; BOXWRIGHT_RELEASES_URL and HF_ENDPOINT name mirrors",
            ) from error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                remote.source,
                f"its certificate is not trusted ({reason.verify_message})",
                "set SSL_CERT_FILE to the certificates of your network",
            ) from error
        raise _AttemptError(_text_of(reason)) from error
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, without showing credentials to another server or leaving TLS."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        code = 307 if code == 308 else code  # Python 3.10 does not know 308
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise DownloadError(
                f"{old.scheme}://{old.netloc}{old.path}", "the server redirects to plain http"
            )
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header("Authorization")
        return request

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def _refusal(remote: _Remote, error: urllib.error.HTTPError) -> _AttemptError | DownloadError:
    """Say what an HTTP error means for the user."""
    if error.code == 416:
        return _AttemptError("the part that came earlier no longer fits")
    if error.code in _RETRIED_STATUS:
        wait = error.headers.get("Retry-After", "")
        wait_s = float(wait) if re.fullmatch("[0-9]{1,6}", wait) else 0.0
        return _AttemptError(f"the server answered {error.code} {error.reason}", wait_s)
    host = urllib.parse.urlsplit(error.url or remote.url).netloc
    at_home = host == urllib.parse.urlsplit(remote.url).netloc  # not at a server it redirects to
    if error.code in (401, 403) and remote.page and at_home:
        return _gated(remote.source, remote.page)
    do = "check the name or URL"
    if os.environ.get("BOXWRIGHT_RELEASES_URL"):
        do += " and BOXWRIGHT_RELEASES_URL"
    if error.code in (404, 410):
        return DownloadError(remote.source, f"{host} has no such file ({error.code})", do)
    return DownloadError(remote.source, f"{host} answered {error.code} {error.reason}", do)


def _span(response: http.client.HTTPResponse, start: int, part: Path) -> tuple[int, int | None]:
    """Return where an answer's bytes begin and how many the whole file has, if it says so."""
    if response.status == 206:
        span = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
        )
        if not span or int(span[1]) != start:
            _discard(part)
            raise _AttemptError("the server sent another range than was asked for")
        return start, None if span[2] == "*" else int(span[2])
    return 0, response.length


def _check_answer(
    remote: _Remote, response: http.client.HTTPResponse, total: int | None, part: Path
) -> None:
    """Refuse an answer that cannot become the file, before its bytes are read."""
    kind = response.headers.get_content_type()
    if kind == "text/html" and remote.path.suffix not in (".html", ".htm"):
        raise DownloadError(
            remote.source, "the server sent a web page, not a file", "give the file's own URL"
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(remote.source, "the server sent an encoded copy", "use another mirror")
    if None not in (total, remote.size_bytes) and total != remote.size_bytes:
        _discard(part)
        raise DownloadError(
            remote.source,
            f"the server has {total} bytes, the published file {remote.size_bytes}",
            "use another mirror",
        )
    delimited = total is not None or remote.sha256 or remote.git_sha1 or response.chunked
    if not delimited:
        raise DownloadError(
            remote.source, "the server does not say how long the file is", "give its --sha256"
        )


def _receive(
    remote: _Remote,
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    progress: Progress | None,
) -> None:
    """Append an answer's bytes to a part; every byte that came is kept when it breaks off."""
    expected = remote.size_bytes if total is None else total
    with _storing(part):
        free_bytes = shutil.disk_usage(part.parent).free
        if expected is not None and expected - start > free_bytes:
            raise OSError(errno.ENOSPC, f"{expected - start} bytes needed, {free_bytes} free")
        with part.open("r+b" if start else "wb") as handle:
            handle.seek(start)
            if start == 0:
                _write_validator(part, remote.url, response.headers)
            position = start
            if progress:
                progress(str(remote.path), position, expected)
            while True:
                try:
                    block = response.read1(_BLOCK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _AttemptError(_text_of(error)) from error
                if not block:
                    break
                handle.write(block)
                position += len(block)
                if progress:
                    progress(str(remote.path), position, expected)
                if expected is not None and position > expected:
                    break  # the size check refuses it
            handle.flush()
            os.fsync(handle.fileno())
    if expected is not None and position < expected:
        raise _AttemptError(f"the connection ended after {position} of {expected} bytes")


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_validator(part: Path, url: str) -> str:
    """Return what tells whether a server still has the file that a part is of; "" when unknown."""
    try:
        data = json.loads(_validator_file(part).read_text(encoding="utf-8"))
        return str(data["validator"]) if data["url"] == _key(url) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # without one, a part is continued only where a checksum will tell


def _write_validator(part: Path, url: str, headers: http.client.HTTPMessage) -> None:
    """Keep the strong ETag, or else the date, of the file that a part is of."""
    etag = headers.get("ETag", "")
    validator = headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
    data = {"url": _key(url), "validator": validator}
    _validator_file(part).write_text(json.dumps(data), encoding="utf-8")


def _key(url: str) -> str:
    """Return what stands for a URL in files that stay: it may hold a signature or a token."""
    return hashlib.sha256(url.encode()).hexdigest()


def _text_of(error: object) -> str:
    """Return what an error of the network says, in one line."""
    if isinstance(error, TimeoutError):
        return "the server does not answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    strerror = error.strerror if isinstance(error, OSError) else ""
    return strerror or " ".join(str(error).split()) or type(error).__name__
