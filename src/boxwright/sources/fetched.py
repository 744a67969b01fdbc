"""Files that were fetched: each is put in its place only when right, and remembered.

What is there and right is left alone, what is there and is something else is never replaced
unasked, and two fetches of one file do not meet. Where nobody published a checksum, a record of the
first download tells later whether a file still is what came. These are promises about the user's
folder, whatever server a file came from, so they are apart from `transfer`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from boxwright.errors import DownloadError, StoreError
from boxwright.sources.local_files import (
    Digest,
    digest_of,
    discard,
    is_prefix,
    locked,
    safe_path,
    size_of,
    storing,
    sync_folder,
    validator_file,
)
from boxwright.sources.transfer import (
    Patience,
    Progress,
    Remote,
    download,
    mismatch,
)

__all__ = ["Fetched", "obtain", "read_record", "write_record"]


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


# Places


def obtain(
    remote: Remote,
    destination: Path,
    force: bool,
    progress: Progress | None,
    patience: Patience,
) -> Fetched:
    """Return one file, which is downloaded unless it is there and known to be right."""
    target = destination / remote.path
    if not force and (digest := _digest_if_right(target, remote)):
        return Fetched(target, digest.size_bytes, digest.sha256, remote.source, False)
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise StoreError(str(target), "a folder has that name", "choose another folder")
    part = target.with_name(f".{target.name}.part")
    with locked(target):
        if force:
            discard(part)
        elif digest := _digest_if_right(target, remote):  # somebody else was faster
            return Fetched(target, digest.size_bytes, digest.sha256, remote.source, False)
        if not force and size_of(target) >= (remote.size_bytes or float("inf")):
            raise _occupied(target, remote)
        digest = download(remote, part, progress, patience)
        with storing(target):
            if not force and not is_prefix(target, part):
                discard(part)
                raise _occupied(target, remote)
            part.replace(target)
            validator_file(part).unlink(missing_ok=True)
            sync_folder(target.parent)
    return Fetched(target, digest.size_bytes, digest.sha256, remote.source, True)


def _digest_if_right(target: Path, remote: Remote) -> Digest | None:
    """Return the digest of a file that is there and has the checksum that it must have."""
    if not (remote.sha256 or remote.git_sha1):
        return None
    with storing(target):
        if not target.is_file() or size_of(target) != (remote.size_bytes or size_of(target)):
            return None
        digest = digest_of(target)
    return None if mismatch(digest, remote) else digest


def _occupied(target: Path, remote: Remote) -> StoreError:
    return StoreError(
        str(target),
        f"another file is there ({size_of(target)} bytes) than {remote.source}",
        "move it away, choose another folder, or replace it with --force-download",
    )


# Records: what was fetched, where nobody published a checksum beforehand


def read_record(record: Path, key: str) -> list[Fetched] | None:
    """Return the files of a record when it is of this request and each of them is unchanged."""
    try:
        data = json.loads(record.read_text(encoding="utf-8"))
        if data["request"] != key:
            return None
        files = [
            Fetched(
                record.parent / safe_path(f["path"], f["source"]),
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
        with storing(file.path):
            if not file.path.is_file() or size_of(file.path) != file.size_bytes:
                return None
            if digest_of(file.path).sha256 != file.sha256:
                return None
    return files


def write_record(record: Path, key: str, source: str, revision: str, files: list[Fetched]) -> None:
    """Note what a request brought, so that the next one need not ask the server."""
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
    with locked(record), storing(record):
        draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        draft.replace(record)
