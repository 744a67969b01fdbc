"""One file from a server: received into a part, continued when it breaks off, and checked.

Servers fail in many ways, and each must end in a complete file, in another attempt or in one line
that says what to do. All of that is here. Where the finished part goes is not known here (see
`fetched`), nor which files a name stands for (see `hub`).
"""

from __future__ import annotations

import errno
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

from boxwright.errors import DownloadError, RequestError
from boxwright.sources.local_files import (
    BLOCK_BYTES,
    Digest,
    digest_of,
    discard,
    key_of,
    size_of,
    storing,
    validator_file,
)

__all__ = [
    "LONGEST_WAIT_S",
    "RETRIED_STATUS",
    "Patience",
    "Progress",
    "Remote",
    "download",
    "gated",
    "mismatch",
    "text_of",
]

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with a file's name, its bytes so far and its bytes in all (None: unknown)."""

LONGEST_WAIT_S = 30.0
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOG = logging.getLogger(__name__)
_REAL_PROGRESS_BYTES = 1 << 20  # an attempt that brings this much does not count as a failure


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
class Remote:
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


class _AttemptError(Exception):
    """One attempt failed in a way that the next may not."""

    def __init__(self, found: str, wait_s: float = 0.0) -> None:
        super().__init__(found)
        self.wait_s = wait_s


# Attempts


def download(remote: Remote, part: Path, progress: Progress | None, patience: Patience) -> Digest:
    """Receive a file into its part, over several connections if need be, and check it."""
    failures = 0
    continued = False
    while True:
        before = size_of(part)
        continued = continued or before > 0
        try:
            _attempt(remote, part, progress, patience)
        except _AttemptError as error:
            more = size_of(part) - before >= _REAL_PROGRESS_BYTES
            failures = 1 if more else failures + 1
            if failures >= patience.tries:
                raise DownloadError(
                    remote.source,
                    f"{error} ({failures} tries)",
                    f"run the same command again: it goes on after {size_of(part)} bytes"
                    if size_of(part)
                    else "try again later",
                ) from error
            _LOG.info("%s: %s; trying again", remote.source, error)
            pause_s = max(patience.backoff_s * 2 ** (failures - 1), error.wait_s)
            time.sleep(min(pause_s, LONGEST_WAIT_S))
            continue
        with storing(part):
            digest = digest_of(part)
        if not (wrong := mismatch(digest, remote)):
            return digest
        discard(part)
        if not continued:
            raise DownloadError(
                remote.source, f"what came is wrong: {wrong}", "try again or ask who published it"
            )
        continued = False  # the earlier part was of another file: once more, from the start


def mismatch(digest: Digest, remote: Remote) -> str:
    """Say how bytes differ from what they must be; "" when they do not."""
    if remote.size_bytes is not None and digest.size_bytes != remote.size_bytes:
        return f"its size is {digest.size_bytes} bytes, not {remote.size_bytes}"
    if remote.sha256 and digest.sha256 != remote.sha256:
        return f"its SHA-256 is {digest.sha256}, not {remote.sha256}"
    if remote.git_sha1 and digest.git_sha1 != remote.git_sha1:
        return f"its git blob id is {digest.git_sha1}, not {remote.git_sha1}"
    return ""


def _attempt(remote: Remote, part: Path, progress: Progress | None, patience: Patience) -> None:
    """Receive what is missing of a part over one connection.

    Raises:
        _AttemptError: it broke off; what came is kept.
        DownloadError: trying again cannot help.
    """
    start = size_of(part)
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
                discard(part)
            raise _refusal(remote, error) from error
    with response:
        start, total = _span(response, start, part)
        _check_answer(remote, response, total, part)
        _receive(remote, response, part, start, total, progress)


def _open(remote: Remote, headers: dict[str, str], patience: Patience) -> http.client.HTTPResponse:
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
        raise RequestError(remote.source, f"it is not a URL ({text_of(error)})") from error
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
        raise _AttemptError(text_of(reason)) from error
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


# Answers


def _refusal(remote: Remote, error: urllib.error.HTTPError) -> _AttemptError | DownloadError:
    """Say what an HTTP error means for the user."""
    if error.code == 416:
        return _AttemptError("the part that came earlier no longer fits")
    if error.code in RETRIED_STATUS:
        wait = error.headers.get("Retry-After", "")
        wait_s = float(wait) if re.fullmatch("[0-9]{1,6}", wait) else 0.0
        return _AttemptError(f"the server answered {error.code} {error.reason}", wait_s)
    host = urllib.parse.urlsplit(error.url or remote.url).netloc
    at_home = host == urllib.parse.urlsplit(remote.url).netloc  # not at a server it redirects to
    if error.code in (401, 403) and remote.page and at_home:
        return gated(remote.source, remote.page)
    do = "check the name or URL"
    if os.environ.get("BOXWRIGHT_RELEASES_URL"):
        do += " and BOXWRIGHT_RELEASES_URL"
    if error.code in (404, 410):
        return DownloadError(remote.source, f"{host} has no such file ({error.code})", do)
    return DownloadError(remote.source, f"{host} answered {error.code} {error.reason}", do)


def gated(source: str, page: str) -> DownloadError:
    """Say how to get at a repository that wants to know who asks."""
    return DownloadError(
        source,
        "the repository is gated or private, and this login has no access",
        f"request access at {page}, then log in with: hf auth login (or set HF_TOKEN)",
    )


def _span(response: http.client.HTTPResponse, start: int, part: Path) -> tuple[int, int | None]:
    """Return where an answer's bytes begin and how many the whole file has, if it says so."""
    if response.status == 206:
        span = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
        )
        if not span or int(span[1]) != start:
            discard(part)
            raise _AttemptError("the server sent another range than was asked for")
        return start, None if span[2] == "*" else int(span[2])
    return 0, response.length


def _check_answer(
    remote: Remote, response: http.client.HTTPResponse, total: int | None, part: Path
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
        discard(part)
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
    remote: Remote,
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    progress: Progress | None,
) -> None:
    """Append an answer's bytes to a part; every byte that came is kept when it breaks off."""
    expected = remote.size_bytes if total is None else total
    with storing(part):
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
                    block = response.read1(BLOCK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _AttemptError(text_of(error)) from error
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


def text_of(error: object) -> str:
    """Return what an error of the network says, in one line."""
    if isinstance(error, TimeoutError):
        return "the server does not answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    strerror = error.strerror if isinstance(error, OSError) else ""
    return strerror or " ".join(str(error).split()) or type(error).__name__


# Validators


def _read_validator(part: Path, url: str) -> str:
    """Return what tells whether a server still has the file that a part is of; "" when unknown."""
    try:
        data = json.loads(validator_file(part).read_text(encoding="utf-8"))
        return str(data["validator"]) if data["url"] == key_of(url) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # without one, a part is continued only where a checksum will tell


def _write_validator(part: Path, url: str, headers: http.client.HTTPMessage) -> None:
    """Keep the strong ETag, or else the date, of the file that a part is of."""
    etag = headers.get("ETag", "")
    validator = headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
    data = {"url": key_of(url), "validator": validator}
    validator_file(part).write_text(json.dumps(data), encoding="utf-8")
