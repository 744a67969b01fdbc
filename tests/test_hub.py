"""Downloads, against servers of our own on the loopback address."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import resource
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled

from boxwright.cli.fetch import command
from boxwright.errors import BoxwrightError, DownloadError, RequestError, StoreError
from boxwright.sources import hub, names, transfer

FAST = hub.Patience(timeout_s=5.0, tries=3, backoff_s=0.01)
MIB = 1 << 20


def noise(size_bytes: int, seed: int) -> bytes:
    """Return bytes that hold no pattern, so that a mixture of two files is noticed."""
    block = b"".join(hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(2048))
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


BODY = noise(700_001, 1)
OTHER = noise(700_001, 2)


def sha256_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@dataclass
class Page:
    """One file of a server, and how its server misbehaves."""

    body: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    lengths: bool = True
    chunked: bool = False
    kind: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    faults: list[int | str] = field(default_factory=list)  # one an answer: bytes to send, or a name


@dataclass
class Asked:
    method: str
    path: str
    headers: Message
    sent: int = 0


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing when a client hangs up, which some tests make it do."""


class Site:
    """A server on the loopback address that can be told to misbehave."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[Asked] = []
        self.released = threading.Event()
        site = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = QuietServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()

    def gets(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(request.path.partition("?")[0])
        asked = Asked(request.command, path, request.headers)
        self.asked.append(asked)
        page = self.pages.get(path, Page(b"not here", status=404))
        fault = page.faults.pop(0) if page.faults else None
        status, start = page.status, 0
        wanted = request.headers.get("Range", "")
        if fault == "unavailable":
            status = 503
        elif fault == "silent":
            self.released.wait(10)
            request.close_connection = True
            return
        elif wanted and page.ranges and status == 200:
            same = request.headers.get("If-Range") in (None, page.etag, page.modified)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if same else 0
            if start and start >= len(page.body):
                status, start = 416, 0
            elif start:
                status = 206
        start += fault == "shifted"
        body = page.body[start:]
        request.send_response(status)
        if status == 206:
            total = len(page.body)
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if page.etag:
            request.send_header("ETag", page.etag)
        if page.modified:
            request.send_header("Last-Modified", page.modified)
        for name, value in page.headers.items():
            request.send_header(name, value)
        request.send_header("Content-Type", page.kind)
        if page.chunked:
            request.send_header("Transfer-Encoding", "chunked")
        elif page.lengths:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        cut = body[:fault] if isinstance(fault, int) else body
        asked.sent = len(cut)
        pieces = [cut[i : i + 65536] for i in range(0, len(cut), 65536)]
        for piece in pieces:
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if page.chunked else piece)
        if page.chunked and not isinstance(fault, int):
            request.wfile.write(b"0\r\n\r\n")
        request.wfile.flush()
        request.close_connection = isinstance(fault, int) or not page.lengths


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    for name in ("http_proxy", "HTTP_PROXY", "HF_TOKEN", "HF_HUB_OFFLINE", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("BOXWRIGHT_RELEASES_URL", f"{site.url}/releases")
    yield site
    site.close()


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the official checksum of every release be that of BODY."""
    checksum = names.Checksum(len(BODY), sha256_of(BODY))
    monkeypatch.setattr(names, "release_checksum", lambda name: checksum)


@pytest.fixture
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "release_checksum", lambda name: None)


RELEASE = "/releases/yolo11n.pt"


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def fetch(name: str, folder: Path, **options: Any) -> list[Path]:
    return hub.fetch(name, folder, patience=options.pop("patience", FAST), **options)


def message(error: pytest.ExceptionInfo[BoxwrightError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert error.value.exit_code == 2
    return text


# One file, complete


@pytest.mark.usefixtures("pinned")
def test_release_arrives_and_nothing_else(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY)
    found = fetch("yolov11_nano", tmp_path / "a" / "models")
    assert found == [tmp_path / "a" / "models" / "yolo11n.pt"]
    assert found[0].read_bytes() == BODY
    assert left(tmp_path) == ["a/models/yolo11n.pt"]


@pytest.mark.usefixtures("pinned")
def test_what_is_there_is_not_asked_for(site: Site, tmp_path: Path) -> None:
    (tmp_path / "yolo11n.pt").write_bytes(BODY)
    [found] = hub.fetch_files("yolo11n", tmp_path)
    assert not site.asked
    assert (found.downloaded, found.size_bytes) == (False, len(BODY))
    assert found.sha256 == sha256_of(BODY)
    assert left(tmp_path) == ["yolo11n.pt"]


@pytest.mark.usefixtures("unpinned")
def test_without_a_published_checksum_the_first_download_is_recorded(
    site: Site, tmp_path: Path
) -> None:
    site.pages[RELEASE] = Page(BODY)
    for expected in (1, 1):
        fetch("yolo11n", tmp_path)
        assert len(site.asked) == expected
    assert left(tmp_path) == [".yolo11n.pt.fetch.json", "yolo11n.pt"]
    (tmp_path / "yolo11n.pt").write_bytes(BODY[:-1])
    fetch("yolo11n", tmp_path)
    assert len(site.asked) == 2
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY


@pytest.mark.usefixtures("unpinned")
def test_record_is_of_bytes_not_of_a_size(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY)
    fetch("yolo11n", tmp_path)
    (tmp_path / "yolo11n.pt").write_bytes(OTHER)
    with pytest.raises(StoreError, match="another file is there"):
        fetch("yolo11n", tmp_path)


@pytest.mark.usefixtures("unpinned")
def test_damaged_record_is_no_record(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY)
    fetch("yolo11n", tmp_path)
    for text in ("", "[]", "{}", '{"request": 1}', "\0"):
        (tmp_path / ".yolo11n.pt.fetch.json").write_text(text)
        site.asked.clear()
        fetch("yolo11n", tmp_path)
        assert len(site.asked) == 1


@pytest.mark.parametrize("checksum", ["pinned", "unpinned"])
@pytest.mark.parametrize("size_bytes", [0, 1, 300_000, len(BODY) - 1])
def test_truncated_file_is_not_taken_for_complete(
    site: Site, tmp_path: Path, request: pytest.FixtureRequest, checksum: str, size_bytes: int
) -> None:
    request.getfixturevalue(checksum)
    site.pages[RELEASE] = Page(BODY)
    (tmp_path / "yolo11n.pt").write_bytes(BODY[:size_bytes])
    fetch("yolo11n", tmp_path)
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY


@pytest.mark.parametrize("checksum", ["pinned", "unpinned"])
@pytest.mark.parametrize("there", [OTHER, OTHER[:1000], OTHER + b"!"], ids=["same", "less", "more"])
def test_another_file_is_replaced_only_when_told(
    site: Site, tmp_path: Path, request: pytest.FixtureRequest, checksum: str, there: bytes
) -> None:
    request.getfixturevalue(checksum)
    site.pages[RELEASE] = Page(BODY)
    (tmp_path / "yolo11n.pt").write_bytes(there)
    with pytest.raises(StoreError) as error:
        fetch("yolo11n", tmp_path)
    assert "--force-download" in message(error)
    assert (tmp_path / "yolo11n.pt").read_bytes() == there
    assert left(tmp_path) == ["yolo11n.pt"]
    if checksum == "pinned" and len(there) >= len(BODY):
        assert not site.asked, "what cannot be a truncated copy is refused before any work"
    fetch("yolo11n", tmp_path, force=True)
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY


@pytest.mark.usefixtures("pinned")
def test_force_downloads_what_is_there(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY)
    (tmp_path / "yolo11n.pt").write_bytes(BODY)
    (tmp_path / ".yolo11n.pt.part").write_bytes(BODY[:1000])
    [found] = hub.fetch_files("yolo11n", tmp_path, force=True)
    assert found.downloaded
    assert site.asked[0].headers["Range"] is None
    assert left(tmp_path) == ["yolo11n.pt"]


@pytest.mark.usefixtures("pinned")
def test_given_checksum_wins_over_the_known_one(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(OTHER)
    fetch("yolo11n", tmp_path, sha256=sha256_of(OTHER).upper())
    assert (tmp_path / "yolo11n.pt").read_bytes() == OTHER


@pytest.mark.parametrize("chunked", [False, True])
def test_plain_url(site: Site, tmp_path: Path, chunked: bool) -> None:
    site.pages["/a/my model.pt"] = Page(BODY, chunked=chunked)
    [path] = fetch(f"{site.url}/a/my%20model.pt?download=1", tmp_path)
    assert path == tmp_path / "my model.pt"
    assert path.read_bytes() == BODY
    site.asked.clear()
    fetch(f"{site.url}/a/my%20model.pt?download=1", tmp_path)
    assert not site.asked


def test_record_holds_no_query(site: Site, tmp_path: Path) -> None:
    site.pages["/best.pt"] = Page(BODY)
    fetch(f"{site.url}/best.pt?token=secret", tmp_path)
    assert "secret" not in (tmp_path / ".best.pt.fetch.json").read_text()


def test_same_name_and_size_from_elsewhere_is_another_file(site: Site, tmp_path: Path) -> None:
    site.pages["/a/best.pt"] = Page(BODY)
    site.pages["/b/best.pt"] = Page(OTHER)
    fetch(f"{site.url}/a/best.pt", tmp_path)
    with pytest.raises(StoreError):
        fetch(f"{site.url}/b/best.pt", tmp_path)
    assert (tmp_path / "best.pt").read_bytes() == BODY


def test_empty_file(site: Site, tmp_path: Path) -> None:
    site.pages["/empty.txt"] = Page(b"")
    [path] = fetch(f"{site.url}/empty.txt", tmp_path)
    assert path.read_bytes() == b""


# Interruptions


@pytest.mark.usefixtures("pinned")
def test_dropped_connection_is_continued(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY, faults=[250_000, 100_000])
    fetch("yolo11n", tmp_path)
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY
    assert [a.headers["Range"] for a in site.asked] == [None, "bytes=250000-", "bytes=350000-"]
    assert [a.headers["If-Range"] for a in site.asked] == [None, '"one"', '"one"']
    assert sum(a.sent for a in site.asked) == len(BODY)
    assert left(tmp_path) == ["yolo11n.pt"]


@pytest.mark.parametrize("page", [Page(BODY), Page(BODY, etag=None, modified="Mon, 1 Jan 2024")])
@pytest.mark.usefixtures("unpinned")
def test_next_run_continues(site: Site, tmp_path: Path, page: Page) -> None:
    site.pages[RELEASE] = page
    page.faults = [250_000, 0, 0]
    with pytest.raises(DownloadError) as error:
        fetch("yolo11n", tmp_path)
    assert "the connection ended after 250000 of 700001 bytes (3 tries)" in message(error)
    assert not (tmp_path / "yolo11n.pt").exists()
    assert (tmp_path / ".yolo11n.pt.part").read_bytes() == BODY[:250_000]
    site.asked.clear()
    fetch("yolo11n", tmp_path)
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY
    assert [a.headers["Range"] for a in site.asked] == ["bytes=250000-"]
    assert left(tmp_path) == [".yolo11n.pt.fetch.json", "yolo11n.pt"]


@pytest.mark.usefixtures("unpinned")
@pytest.mark.parametrize(
    ("first", "then", "ranges"),
    [
        (Page(BODY), Page(OTHER, etag='"two"'), [None, "bytes=1000-"]),
        (Page(BODY, ranges=False), Page(BODY, ranges=False), [None, "bytes=1000-"]),
        (Page(BODY, etag=None), Page(OTHER, etag=None), [None, None]),
        (Page(BODY, etag='W/"weak"'), Page(OTHER, etag='W/"weak"'), [None, None]),
        (Page(BODY), Page(OTHER[:500], etag='"two"'), [None, "bytes=1000-"]),
    ],
    ids=["changed", "no ranges", "no validator", "weak validator", "shorter now"],
)
def test_parts_of_two_files_are_never_joined(
    site: Site, tmp_path: Path, first: Page, then: Page, ranges: list[str | None]
) -> None:
    site.pages[RELEASE] = Page(first.body, etag=first.etag, ranges=first.ranges, faults=[1000])
    with pytest.raises(DownloadError):
        fetch("yolo11n", tmp_path, patience=hub.Patience(5, tries=1, backoff_s=0))
    site.pages[RELEASE] = Page(then.body, etag=then.etag, ranges=then.ranges)
    fetch("yolo11n", tmp_path)
    assert (tmp_path / "yolo11n.pt").read_bytes() == then.body
    assert [a.headers["Range"] for a in site.asked] == ranges


def test_parts_of_two_addresses_are_never_joined(site: Site, tmp_path: Path) -> None:
    site.pages["/a/best.pt"] = Page(BODY, faults=[1000])
    site.pages["/b/best.pt"] = Page(OTHER)
    with pytest.raises(DownloadError):
        fetch(f"{site.url}/a/best.pt", tmp_path, patience=hub.Patience(5, tries=1, backoff_s=0))
    [path] = fetch(f"{site.url}/b/best.pt", tmp_path)
    assert path.read_bytes() == OTHER


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize(
    "part",
    [BODY[:1000], OTHER[:1000], BODY, OTHER, BODY + b"more"],
    ids=["right", "wrong", "complete", "complete and wrong", "too long"],
)
def test_part_of_unknown_origin(site: Site, tmp_path: Path, part: bytes) -> None:
    site.pages[RELEASE] = Page(BODY)
    (tmp_path / ".yolo11n.pt.part").write_bytes(part)
    fetch("yolo11n", tmp_path)
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY
    assert left(tmp_path) == ["yolo11n.pt"]


@pytest.mark.usefixtures("unpinned")
def test_part_of_unknown_origin_without_a_checksum(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY)
    (tmp_path / ".yolo11n.pt.part").write_bytes(OTHER[:1000])
    fetch("yolo11n", tmp_path)
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY


@pytest.mark.usefixtures("unpinned")
@pytest.mark.parametrize("fault", ["shifted", "unavailable"])
def test_passing_faults(site: Site, tmp_path: Path, fault: str) -> None:
    site.pages[RELEASE] = Page(BODY, faults=[1000, fault])
    fetch("yolo11n", tmp_path)
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY


def test_dropped_chunked_answer_is_not_taken_for_complete(site: Site, tmp_path: Path) -> None:
    site.pages["/x.pt"] = Page(BODY, chunked=True, faults=[65536 * 2])
    [path] = fetch(f"{site.url}/x.pt", tmp_path)
    assert path.read_bytes() == BODY
    assert site.asked[1].headers["Range"] == "bytes=131072-"


@pytest.mark.usefixtures("unpinned")
def test_stopped_just_before_the_end(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY)

    def stop(name: str, done_bytes: int, total_bytes: int | None) -> None:
        if done_bytes == total_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("yolo11n", tmp_path, progress=stop)
    assert (tmp_path / ".yolo11n.pt.part").read_bytes() == BODY
    fetch("yolo11n", tmp_path)
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY


@pytest.mark.usefixtures("pinned")
def test_key_press_keeps_the_part_and_nothing_that_looks_finished(
    site: Site, tmp_path: Path
) -> None:
    site.pages[RELEASE] = Page(BODY)

    def stop(name: str, done_bytes: int, total_bytes: int | None) -> None:
        if done_bytes > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("yolo11n", tmp_path, progress=stop)
    assert left(tmp_path) == [".yolo11n.pt.part", ".yolo11n.pt.part.json"]
    fetch("yolo11n", tmp_path)
    assert site.asked[1].headers["Range"]
    assert left(tmp_path) == ["yolo11n.pt"]


@pytest.mark.usefixtures("pinned")
def test_progress_counts_what_was_there(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY)
    (tmp_path / ".yolo11n.pt.part").write_bytes(BODY[:1000])
    seen: list[tuple[str, int, int | None]] = []
    fetch("yolo11n", tmp_path, progress=lambda *step: seen.append(step))
    assert seen[0] == ("yolo11n.pt", 1000, len(BODY))
    assert seen[-1] == ("yolo11n.pt", len(BODY), len(BODY))
    assert [s[1] for s in seen] == sorted(s[1] for s in seen)


# Refusals

REFUSALS: dict[str, tuple[Page, str, int]] = {
    "404": (Page(b"", status=404), "has no such file (404)", 1),
    "403": (Page(b"", status=403), "answered 403", 1),
    "500": (Page(b"", status=500), "answered 500 Internal Server Error (3 tries)", 3),
    "503": (Page(b"", status=503, headers={"Retry-After": "0"}), "answered 503", 3),
    "web page": (Page(b"<html>", kind="text/html; charset=utf-8"), "sent a web page", 1),
    "no length": (Page(BODY, lengths=False), "does not say how long", 1),
    "encoded": (Page(BODY, headers={"Content-Encoding": "gzip"}), "encoded copy", 1),
    "redirected to a file": (
        Page(b"", status=302, headers={"Location": "file:///etc/hostname"}),
        "answered 302",
        1,
    ),
}


@pytest.mark.usefixtures("unpinned")
@pytest.mark.parametrize(("page", "found", "requests"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusal(site: Site, tmp_path: Path, page: Page, found: str, requests: int) -> None:
    site.pages[RELEASE] = page
    with pytest.raises(DownloadError) as error:
        fetch("yolo11n", tmp_path)
    assert found in message(error)
    assert len(site.asked) == requests
    assert left(tmp_path) == []


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize(
    ("body", "found"),
    [
        (OTHER, f"its SHA-256 is {sha256_of(OTHER)}, not {sha256_of(BODY)}"),
        (BODY[:-1], "the server has 700000 bytes, the published file 700001"),
        (BODY + b"!", "the server has 700002 bytes, the published file 700001"),
    ],
    ids=["bytes", "shorter", "longer"],
)
def test_wrong_file_is_refused_and_removed(
    site: Site, tmp_path: Path, body: bytes, found: str
) -> None:
    site.pages[RELEASE] = Page(body)
    with pytest.raises(DownloadError) as error:
        fetch("yolo11n", tmp_path)
    assert found in message(error)
    assert len(site.asked) == 1
    assert left(tmp_path) == []


@pytest.mark.usefixtures("pinned")
def test_wrong_part_and_wrong_file_ends(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(OTHER)
    (tmp_path / ".yolo11n.pt.part").write_bytes(BODY[:1000])
    with pytest.raises(DownloadError, match="what came is wrong"):
        fetch("yolo11n", tmp_path)
    assert len(site.asked) == 2
    assert left(tmp_path) == []


@pytest.mark.usefixtures("pinned")
def test_silent_server(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY, faults=["silent", "silent"])
    with pytest.raises(DownloadError) as error:
        fetch("yolo11n", tmp_path, patience=hub.Patience(0.2, tries=2, backoff_s=0))
    assert "does not answer in time (2 tries)" in message(error)


@pytest.mark.usefixtures("pinned")
def test_nobody_listens(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("BOXWRIGHT_RELEASES_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(DownloadError) as error:
        fetch("yolo11n", tmp_path)
    assert "refused (3 tries); try again later" in message(error)


def no_such_host(*args: object, **options: object) -> list[Any]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.usefixtures("site")
def test_unknown_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    with pytest.raises(DownloadError) as error:
        fetch("https://models.invalid/x.pt", tmp_path)
    assert "the host models.invalid cannot be resolved" in message(error)


def redirect(url: str, location: str, code: int) -> urllib.request.Request:
    """Return the request that follows a redirect of one that carries credentials."""
    request = urllib.request.Request(url, headers={"Authorization": "Bearer t"})
    found = transfer._Redirects().redirect_request(
        request, io.BytesIO(), code, "", HTTPMessage(), location
    )
    assert found is not None
    return found


@pytest.mark.parametrize("code", [302, 307, 308])
@pytest.mark.parametrize(
    ("location", "kept"),
    [
        ("https://a.b/other", True),
        ("https://b.a/c", False),
        ("https://a.b:444/c", False),
        ("https://a.b.c/c", False),
    ],
)
def test_credentials_stay_with_their_server(location: str, kept: bool, code: int) -> None:
    found = redirect("https://a.b/c", location, code).get_header("Authorization")
    assert found == ("Bearer t" if kept else None)


def test_redirect_may_not_leave_tls() -> None:
    with pytest.raises(DownloadError, match="plain http"):
        redirect("https://a.b/c", "http://a.b/c", 302)
    assert redirect("http://a.b/c", "https://a.b/c", 302).get_header("Authorization") is None


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_is_followed(site: Site, tmp_path: Path, code: int) -> None:
    site.pages["/old.pt"] = Page(b"", status=code, headers={"Location": "/new"})
    site.pages["/new"] = Page(BODY)
    [path] = fetch(f"{site.url}/old.pt", tmp_path)
    assert path == tmp_path / "old.pt", "the request names the file, not the server"
    assert path.read_bytes() == BODY


BAD_REQUESTS: dict[str, tuple[str, str | None, str]] = {
    "never released": ("yolo10m-seg", None, "fetch yolov10m or yolo11m-seg instead"),
    "unknown name": ("yolo11nn", None, "did you mean yolo11n?"),
    "configuration": ("yolo11n.yaml", None, "come with ultralytics"),
    "path": ("models/best.pt", None, "it is a path"),
    "scheme": ("ftp://a/b.pt", None, "ftp:// is not understood"),
    "no file": ("https://a.b/c/", None, "it names no file"),
    "no host": ("https:///c.pt", None, "it names no host"),
    "bracket": ("https://[::1/c.pt", None, "it is not a URL"),
    "port": ("https://a.b:x/c.pt", None, "it is not a URL"),
    "password": ("https://me:secret@a.b/c.pt", None, "it holds a password"),
    "short checksum": ("yolo11n", "abc", "not 64 hexadecimal digits"),
    "hub without path": ("hf://owner/repo", None, "write hf://owner/repo/path"),
    "hub without repository": ("hf://owner", None, "write hf://owner/repo/path"),
    "hub data set": ("hf://datasets/owner/repo/x", None, "names no model repository"),
}


@pytest.mark.parametrize(("name", "sha256", "found"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_request(site: Site, tmp_path: Path, name: str, sha256: str | None, found: str) -> None:
    with pytest.raises(RequestError) as error:
        fetch(name, tmp_path, sha256=sha256)
    assert found in message(error)
    assert "secret" not in message(error)
    with pytest.raises(RequestError):
        hub.check_request(name, sha256)
    assert not site.asked
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", ["BOXWRIGHT_RELEASES_URL", "HF_ENDPOINT"])
@pytest.mark.usefixtures("site")
def test_bad_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "/srv/mirror")
    with pytest.raises(RequestError, match="is not an http"):
        fetch("yolo11n" if name.startswith("BOX") else "hf://a/b/c", tmp_path)


@pytest.mark.parametrize(
    "leaf",
    ["%2e%2e", "..%2fevil.pt", "a%2fb.pt", "%2Fetc%2Fpasswd", "a%5Cb.pt", "a%00.pt", "C:evil.pt",
     ".x.pt.part", ".x.pt.lock", ".x.fetch.json"],
)  # fmt: skip
def test_url_cannot_leave_the_folder(site: Site, tmp_path: Path, leaf: str) -> None:
    with pytest.raises(DownloadError, match="no safe file name"):
        fetch(f"{site.url}/{leaf}", tmp_path / "models")
    assert not site.asked
    assert left(tmp_path) == []


# Local trouble


@pytest.mark.usefixtures("pinned")
def test_disk_is_too_small(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    site.pages[RELEASE] = Page(BODY)
    with pytest.raises(StoreError) as error:
        fetch("yolo11n", tmp_path)
    assert "700001 bytes needed, 1000 free" in message(error)
    assert left(tmp_path) == []


@pytest.mark.usefixtures("pinned")
def test_disk_fills_up(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        with pytest.raises(StoreError) as error:
            fetch("yolo11n", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space and run the same command again" in message(error)
    assert not (tmp_path / "yolo11n.pt").exists()
    fetch("yolo11n", tmp_path)
    assert site.asked[1].headers["Range"] == "bytes=400000-"
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_destination_is_no_folder(site: Site, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError) as error:
        fetch("yolo11n", tmp_path / name)
    assert "choose another folder" in message(error)
    assert not site.asked


@pytest.mark.usefixtures("pinned")
def test_target_is_a_folder(site: Site, tmp_path: Path) -> None:
    (tmp_path / "yolo11n.pt").mkdir()
    with pytest.raises(StoreError, match="a folder has that name"):
        fetch("yolo11n", tmp_path, force=True)
    assert not site.asked


@pytest.mark.parametrize("checksum", ["pinned", "unpinned"])
def test_many_at_once(
    site: Site, tmp_path: Path, request: pytest.FixtureRequest, checksum: str
) -> None:
    request.getfixturevalue(checksum)
    site.pages[RELEASE] = Page(BODY, faults=[100_000, 100_000])
    found: list[object] = []

    def run() -> None:
        try:
            found.append(fetch("yolo11n", tmp_path))
        except BoxwrightError as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [[tmp_path / "yolo11n.pt"]] * 8
    assert (tmp_path / "yolo11n.pt").read_bytes() == BODY
    assert set(left(tmp_path)) <= {"yolo11n.pt", ".yolo11n.pt.fetch.json"}
    if checksum == "pinned":
        assert len(site.asked) == 3, "one downloads, the others find it there"


@pytest.mark.usefixtures("pinned")
def test_lock_of_a_dead_process_does_not_block(site: Site, tmp_path: Path) -> None:
    site.pages[RELEASE] = Page(BODY)
    (tmp_path / ".yolo11n.pt.lock").write_bytes(b"")
    fetch("yolo11n", tmp_path)
    assert left(tmp_path) == ["yolo11n.pt"]


@pytest.mark.usefixtures("pinned")
def test_lock_file_that_was_replaced_is_no_lock(site: Site, tmp_path: Path) -> None:
    """Whoever waited for a lock that was removed must not run beside its successor."""
    site.pages[RELEASE] = Page(BODY)
    path = tmp_path / ".yolo11n.pt.lock"
    with path.open("w") as first, (tmp_path / "other").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)
        thread = threading.Thread(target=fetch, args=("yolo11n", tmp_path))
        thread.start()
        time.sleep(0.2)
        (tmp_path / "other").replace(path)
        fcntl.flock(first, fcntl.LOCK_UN)
        time.sleep(0.2)
        asked = len(site.asked)
        fcntl.flock(second, fcntl.LOCK_UN)
        thread.join(10)
    assert asked == 0
    assert left(tmp_path) == ["yolo11n.pt"]


# Hugging Face

COMMIT = "c0ffee" + "0" * 34
REPO = "deepghs/AnimeText_yolo"
SMALL = b'{"f1": 0.5}\n'
TREE = {
    "README.md": b"# read me\n",
    "yolo12s_animetext/model.pt": BODY,
    "yolo12s_animetext/threshold.json": SMALL,
    "yolo12s_animetext/plots/a.png": noise(5000, 3),
    "yolo12x_animetext/model.pt": OTHER,
}


@dataclass
class Hub:
    """A fake of the hub's API and of the server that it redirects large files to."""

    api: Site
    cdn: Site

    def publish(self, files: dict[str, bytes], repo: str = REPO, revision: str = "") -> None:
        siblings = []
        for path, body in files.items():
            git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            entry: dict[str, Any] = {"rfilename": path, "size": len(body), "blobId": git}
            resolve = f"/{repo}/resolve/{COMMIT}/{path}"
            if path.endswith(".pt"):
                sha256 = sha256_of(body)
                entry["lfs"] = {"size": len(body), "sha256": sha256, "pointerSize": 134}
                self.cdn.pages[f"/{sha256}"] = Page(body, etag=f'"{sha256}"')
                linked = {"X-Linked-Size": str(len(body)), "X-Linked-Etag": f'"{sha256}"'}
                away = {"Location": f"{self.cdn.url}/{sha256}?signed=1", **linked}
                self.api.pages[resolve] = Page(b"", status=302, headers=away)
            else:
                self.api.pages[resolve] = Page(body, etag=f'"{git}"', kind="text/plain")
            siblings.append(entry)
        info = {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        suffix = f"/revision/{revision}" if revision else ""
        self.api.pages[f"/api/models/{repo}{suffix}"] = self.answer(info)

    def answer(self, data: Any, status: int = 200, code: str = "") -> Page:
        headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        body = json.dumps(data).encode()
        return Page(body, None, kind="application/json", headers=headers, status=status)


@pytest.fixture
def fake(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    cdn = Site()
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # Read when huggingface_hub is imported, which an earlier test may have done: no test may ask
    # the real hub or leave anything in the home folder.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fake = Hub(site, cdn)
    fake.publish(TREE)
    yield fake
    cdn.close()


def test_hub_file(fake: Hub, tmp_path: Path) -> None:
    name = f"hf://{REPO}/yolo12s_animetext/model.pt"
    assert fetch(name, tmp_path) == [tmp_path / "model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == BODY
    assert {a.headers["Authorization"] for a in fake.api.asked} == {"Bearer hf_secret"}
    assert [a.headers["Authorization"] for a in fake.cdn.asked] == [None]
    assert left(tmp_path) == [".model.pt.fetch.json", "model.pt"]
    record = json.loads((tmp_path / ".model.pt.fetch.json").read_text())
    assert (record["source"], record["revision"]) == (name, COMMIT)


def test_hub_folder(fake: Hub, tmp_path: Path) -> None:
    found = hub.fetch_files(f"hf://{REPO}/yolo12s_animetext/", tmp_path, patience=FAST)
    assert left(tmp_path) == [
        ".yolo12s_animetext.fetch.json",
        "yolo12s_animetext/model.pt",
        "yolo12s_animetext/plots/a.png",
        "yolo12s_animetext/threshold.json",
    ]
    for file in found:
        assert file.path.read_bytes() == TREE[file.path.relative_to(tmp_path).as_posix()]
        assert file.sha256 == sha256_of(file.path.read_bytes())


def test_hub_what_is_there_is_not_asked_for(fake: Hub, tmp_path: Path) -> None:
    name = f"hf://{REPO}/yolo12s_animetext"
    fetch(name, tmp_path)
    fake.api.asked.clear()
    fake.cdn.asked.clear()
    assert not any(f.downloaded for f in hub.fetch_files(name, tmp_path))
    assert not fake.api.asked
    # Truncated since: only that file is fetched again.
    model = tmp_path / "yolo12s_animetext" / "model.pt"
    model.write_bytes(BODY[:5])
    fetch(name, tmp_path)
    assert model.read_bytes() == BODY
    assert len(fake.cdn.asked) == 1
    assert [a.path for a in fake.api.asked if "/resolve/" in a.path] == [
        f"/{REPO}/resolve/{COMMIT}/yolo12s_animetext/model.pt"
    ]


def test_hub_files_that_others_put_there_are_checked_and_kept(fake: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(BODY)
    fetch(f"hf://{REPO}/yolo12s_animetext/model.pt", tmp_path)
    assert not fake.cdn.asked
    assert left(tmp_path) == ["model.pt"], "a folder that is right need not be writable"
    with pytest.raises(StoreError, match="another file is there"):
        fetch(f"hf://{REPO}/yolo12x_animetext/model.pt", tmp_path)


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        (f"hf://{REPO}@v1.0/README.md", "v1.0"),
        (f"hf://{REPO}@refs/pr/7/README.md", "refs/pr/7"),
        (f"hf://{REPO}@refs%2Fpr%2F7/README.md", "refs/pr/7"),
        ("{url}/" + f"{REPO}/resolve/v1.0/README.md?download=true", "v1.0"),
        ("{url}/" + f"{REPO}/blob/v1.0/README.md", "v1.0"),
        ("{url}/" + f"{REPO}/blob/refs%2Fpr%2F7/README.md", "refs/pr/7"),
        (f"https://huggingface.co/{REPO}/blob/v1.0/README.md", "v1.0"),
    ],
)
def test_hub_revision(fake: Hub, tmp_path: Path, name: str, revision: str) -> None:
    fake.publish({"README.md": b"another\n"}, revision=revision)
    [path] = fetch(name.replace("{url}", fake.api.url), tmp_path)
    assert path.read_bytes() == b"another\n"
    asked = fake.api.asked[0].path
    assert asked == f"/api/models/{REPO}/revision/{revision}"


def test_hub_continues(fake: Hub, tmp_path: Path) -> None:
    fake.cdn.pages[f"/{sha256_of(BODY)}"].faults = [200_000, 1, 1]
    name = f"hf://{REPO}/yolo12s_animetext/model.pt"
    with pytest.raises(DownloadError, match="it goes on after 200002 bytes"):
        fetch(name, tmp_path)
    fetch(name, tmp_path)
    assert fake.cdn.asked[-1].headers["Range"] == "bytes=200002-"
    assert (tmp_path / "model.pt").read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "found"),
    [("yolo12s_animetext/model.pt", "SHA-256"), ("README.md", "git blob id")],
)
def test_hub_wrong_bytes(fake: Hub, tmp_path: Path, path: str, found: str) -> None:
    fake.cdn.pages[f"/{sha256_of(BODY)}"].body = OTHER
    fake.api.pages[f"/{REPO}/resolve/{COMMIT}/README.md"].body = b"# bad one\n"
    with pytest.raises(DownloadError) as error:
        fetch(f"hf://{REPO}/{path}", tmp_path)
    assert f"what came is wrong: its {found} is" in message(error)
    assert left(tmp_path) == []


HUB_REFUSALS: dict[str, tuple[str, int, str, str, tuple[str, ...]]] = {
    "gated listing": (
        "/api/models/" + REPO, 403, "GatedRepo", "model.pt",
        ("gated or private", "request access at", f"/{REPO}", "hf auth login"),
    ),
    "gated file": (
        f"/{REPO}/resolve/{COMMIT}/yolo12s_animetext/model.pt", 403, "GatedRepo",
        "yolo12s_animetext/model.pt", ("gated or private", "hf auth login"),
    ),
    "gated file, not logged in": (
        f"/{REPO}/resolve/{COMMIT}/yolo12s_animetext/model.pt", 401, "GatedRepo",
        "yolo12s_animetext/model.pt", ("gated or private", "hf auth login"),
    ),
    "no repository": (
        "/api/models/" + REPO, 404, "RepoNotFound", "model.pt",
        ("there is no public repository " + REPO, "check its name", "hf auth login"),
    ),
    "not logged in": (
        "/api/models/" + REPO, 401, "", "model.pt", ("refuses access (401)", "hf auth login"),
    ),
    "no revision": (
        f"/api/models/{REPO}/revision/v9", 404, "RevisionNotFound", "@v9/model.pt",
        (f"{REPO} has no revision v9",),
    ),
    "server error": ("/api/models/" + REPO, 500, "", "model.pt", ("answered 500",)),
    "not a hub": ("/api/models/" + REPO, 200, "", "model.pt", ("does not answer like a hub",)),
    "disabled": ("/api/models/" + REPO, 403, "Disabled", "model.pt", ("refuses access (403)",)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("page", "status", "code", "path", "found"), HUB_REFUSALS.values(), ids=HUB_REFUSALS
)
def test_hub_refusal(
    fake: Hub, tmp_path: Path, page: str, status: int, code: str, path: str, found: tuple[str, ...]
) -> None:
    fake.api.pages[page] = fake.answer({"error": "no"}, status, code)
    if status == 200:
        fake.api.pages[page].body = b"<html>welcome"
    joint = "" if path.startswith("@") else "/"
    with pytest.raises(DownloadError) as error:
        fetch(f"hf://{REPO}{joint}{path}", tmp_path)
    for words in found:
        assert words in message(error)
    assert "hf_secret" not in message(error)
    assert left(tmp_path) == []


def test_hub_server_error_passes(fake: Hub, tmp_path: Path) -> None:
    fake.api.pages[f"/api/models/{REPO}"].faults = ["unavailable", "unavailable"]
    fetch(f"hf://{REPO}/README.md", tmp_path)
    assert left(tmp_path) == [".README.md.fetch.json", "README.md"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("yolo12s_animtext", "did you mean yolo12s_animetext?"),
        ("yolo12s_animetext/modell.pt", "did you mean yolo12s_animetext/model.pt?"),
        ("zzz", "it holds README.md, yolo12s_animetext, yolo12x_animetext"),
    ],
)
def test_hub_no_such_path(fake: Hub, tmp_path: Path, path: str, found: str) -> None:
    with pytest.raises(DownloadError) as error:
        fetch(f"hf://{REPO}/{path}", tmp_path)
    assert found in message(error)


@pytest.mark.parametrize("inner", ["../../evil", "/etc/evil", "a/../../evil", ".x.lock", "a\\b"])
def test_hub_cannot_leave_the_folder(fake: Hub, tmp_path: Path, inner: str) -> None:
    fake.publish({f"good/{inner}": b"evil", "good/a.txt": b"fine"})
    with pytest.raises(DownloadError, match="no safe file name"):
        fetch(f"hf://{REPO}/good", tmp_path / "models")
    assert left(tmp_path) == [], "the whole listing is checked before anything is fetched"


def test_hub_bad_repository_name(fake: Hub, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is no repository name"):
        fetch("hf://a--b/..c/model.pt", tmp_path)


def test_hub_given_checksum(fake: Hub, tmp_path: Path) -> None:
    name = f"hf://{REPO}/yolo12s_animetext"
    with pytest.raises(RequestError, match="is a folder"):
        fetch(name, tmp_path, sha256=sha256_of(BODY))
    with pytest.raises(DownloadError, match="what came is wrong"):
        fetch(f"{name}/model.pt", tmp_path, sha256=sha256_of(OTHER))
    fetch(f"{name}/model.pt", tmp_path, sha256=sha256_of(BODY))
    assert (tmp_path / "model.pt").read_bytes() == BODY


def test_hub_out_of_reach(fake: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    with pytest.raises(DownloadError) as error:
        fetch(f"hf://{REPO}/README.md", tmp_path, patience=hub.Patience(1, 9, backoff_s=60))
    assert "https://hub.invalid cannot be reached" in message(error)


def test_hub_offline(fake: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OfflineModeIsEnabled

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        fetch(f"hf://{REPO}/README.md", tmp_path)


def test_hub_silent(fake: Hub, tmp_path: Path) -> None:
    fake.api.pages[f"/api/models/{REPO}"].faults = ["silent", "silent"]
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(f"hf://{REPO}/README.md", tmp_path, patience=hub.Patience(0.2, 2, 0))
    assert time.monotonic() - begin < 5


# The command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    monkeypatch.setattr(hub, "Patience", lambda: FAST)

    def run(*arguments: object) -> tuple[str, str]:
        words = [str(a) for a in arguments]
        done = CliRunner().invoke(command, words, standalone_mode=False)
        if done.exception:
            raise done.exception
        return done.stdout, done.stderr

    return run


@pytest.mark.usefixtures("pinned")
def test_command(site: Site, tmp_path: Path, run: Callable[..., tuple[str, str]]) -> None:
    site.pages[RELEASE] = Page(BODY)
    site.pages["/releases/yolo11s.pt"] = Page(BODY)
    out, log = run("yolo11n", "yolo11s", "--out", tmp_path)
    assert out == f"{tmp_path}/yolo11n.pt\n{tmp_path}/yolo11s.pt\n"
    assert "yolo11s.pt: downloaded" in log.replace("\n", "")
    out, log = run("yolo11n", "--out", tmp_path, "--quiet")
    assert (out, log) == (f"{tmp_path}/yolo11n.pt\n", "")
    assert len(site.asked) == 2
    run("yolo11n", "--out", tmp_path, "--force-download")
    assert len(site.asked) == 3


@pytest.mark.usefixtures("pinned")
def test_command_json(site: Site, tmp_path: Path, run: Callable[..., tuple[str, str]]) -> None:
    site.pages[RELEASE] = Page(BODY)
    out, _ = run("yolov11n", "--json", "--out", tmp_path)
    assert json.loads(out) == [
        {
            "name": "yolov11n",
            "path": f"{tmp_path}/yolo11n.pt",
            "size_bytes": len(BODY),
            "sha256": sha256_of(BODY),
            "source": f"{site.url}{RELEASE}",
            "downloaded": True,
        }
    ]


def test_command_checks_every_name_first(
    site: Site, tmp_path: Path, run: Callable[..., tuple[str, str]]
) -> None:
    site.pages[RELEASE] = Page(BODY)
    with pytest.raises(RequestError):
        run("yolo11n", "yolo10m-seg", "--out", tmp_path)
    with pytest.raises(RequestError, match="2 names"):
        run("yolo11n", "yolo11s", "--sha256", sha256_of(BODY), "--out", tmp_path)
    assert not site.asked
    assert left(tmp_path) == []


def test_command_wrong_checksum(
    site: Site, tmp_path: Path, run: Callable[..., tuple[str, str]]
) -> None:
    site.pages[RELEASE] = Page(BODY)
    with pytest.raises(DownloadError, match="what came is wrong"):
        run("yolo11n", "--sha256", sha256_of(OTHER), "--out", tmp_path)


def test_command_helps() -> None:
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    for word in ("--out", "--force-download", "--sha256", "--json", "--quiet", "hf://"):
        assert word in done.stdout
