"""How files of a download lie on disk: names, digests, locks and what a full disk says.

A download is only as sound as the file handling under it, and that has nothing to do with servers.
It is apart so that it can be read, and trusted, without the network code. POSIX only (flock).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from boxwright.errors import DownloadError, StoreError

__all__ = [
    "BLOCK_BYTES",
    "Digest",
    "digest_of",
    "discard",
    "is_prefix",
    "key_of",
    "locked",
    "safe_path",
    "size_of",
    "storing",
    "sync_folder",
    "validator_file",
]

BLOCK_BYTES = 1 << 18
_LOG = logging.getLogger(__name__)
_OWN_FILE = re.compile(r"\..*\.(part|part\.json|lock|fetch\.json)")


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file is known by; `git_sha1` is the id of a git blob of its bytes."""

    size_bytes: int
    sha256: str
    git_sha1: str


# Names


def safe_path(path: str, source: str) -> str:
    """Return a relative path that stays below the folder it is put in.

    Raises:
        DownloadError: it might not, or is one of the names that downloads keep for themselves.
    """
    for part in path.split("/"):
        unsafe = part in ("", ".", "..") or re.search(r"[\\\x00-\x1f\x7f]|^[A-Za-z]:", part)
        if unsafe or _OWN_FILE.fullmatch(part):
            raise DownloadError(source, f"{path!r} is no safe file name", "download it yourself")
    return path


def key_of(url: str) -> str:
    """Return what stands for a URL in files that stay: it may hold a signature or a token."""
    return hashlib.sha256(url.encode()).hexdigest()


# Contents


def is_prefix(target: Path, part: Path) -> bool:
    """Return whether a file is a truncated copy of another one, or all of it, or missing."""
    if not target.exists():
        return True
    with target.open("rb") as old, part.open("rb") as new:
        while block := old.read(BLOCK_BYTES):
            if new.read(len(block)) != block:
                return False
    return True


def digest_of(path: Path) -> Digest:
    """Read a file once, and return all that it may be checked against."""
    with path.open("rb") as handle:
        size_bytes = os.fstat(handle.fileno()).st_size
        sha256 = hashlib.sha256()
        git_sha1 = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
        while block := handle.read(BLOCK_BYTES):
            sha256.update(block)
            git_sha1.update(block)
    return Digest(size_bytes, sha256.hexdigest(), git_sha1.hexdigest())


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, 0 when it is missing."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Parts


def validator_file(part: Path) -> Path:
    """Return where it is noted which file of a server a part is of."""
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Remove a part and what is noted of it."""
    with storing(part):
        part.unlink(missing_ok=True)
        validator_file(part).unlink(missing_ok=True)


# Faults and locks


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
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
def locked(target: Path) -> Iterator[None]:
    """Let one process or thread at a time write a file; the system unlocks when a process dies.

    The lock file is removed under its lock, so whoever waited checks that its file still is the one
    of that name.
    """
    import fcntl

    path = target.with_name(f".{target.name}.lock")
    while True:
        with storing(path):
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            with storing(path):
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
