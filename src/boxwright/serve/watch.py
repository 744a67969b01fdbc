"""Watches the processes of Triton's Python backend, which Triton itself does not bring back.

Triton keeps a model ready whose process was killed, and answers each of its turns with an error.
Loading the model anew, with its own configuration as an override, makes new processes and serves
the requests meanwhile with those that are left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from boxwright.errors import BackendError
from boxwright.serve.control import Control

__all__ = ["ProcessWatch", "Stub", "processes_of_session", "stub_from_words", "stubs_of"]

_PROC = Path("/proc")
_NAME = "triton_python_backend_stub"
_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class Stub:
    """A process that a model instance runs in.

    Attributes:
        pid: Of the process.
        model, version: What it runs.
        instance: Triton's name of the instance (`yolo_0`).
    """

    pid: int
    model: str
    version: str
    instance: str


def _numbers() -> Iterator[int]:
    for place in _PROC.iterdir() if _PROC.is_dir() else ():
        if place.name.isdigit():
            yield int(place.name)


def _stat(number: int) -> tuple[str, int, int] | None:
    """Return (state, parent, session) of a process."""
    try:
        text = (_PROC / str(number) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    words = text.rpartition(")")[2].split()
    return words[0], int(words[1]), int(words[3])


def processes_of_session(session: int) -> tuple[int, ...]:
    """Return the processes of a session that still run."""
    found = []
    for number in _numbers():
        facts = _stat(number)
        if facts is not None and facts[2] == session and facts[0] not in "ZX":
            found.append(number)
    return tuple(found)


def stub_from_words(pid: int, words: list[str]) -> Stub | None:
    """Read a stub's command line: file of the model, memory, and the instance's name.

    None for what is no stub, and for the one that completes a configuration: it is named as its
    model, serves nothing, and ends before the instances begin.

    >>> stub_from_words(7, ["/b/triton_python_backend_stub", "/r/yolo/3/model.py", "shm", "1", "1",
    ...                     "9", "/b/python", "336", "yolo_0", "/b/dali"])
    Stub(pid=7, model='yolo', version='3', instance='yolo_0')
    """
    if len(words) < 9 or Path(words[0]).name != _NAME:
        return None
    folder = Path(words[1]).parent
    if words[8] == folder.parent.name:
        return None
    return Stub(pid, folder.parent.name, folder.name, words[8])


def stubs_of(server: int) -> tuple[Stub, ...]:
    """Return the stubs of a server's process that run."""
    found = []
    for number in _numbers():
        facts = _stat(number)
        if facts is None or facts[1] != server or facts[0] in "ZX":
            continue
        try:
            line = (_PROC / str(number) / "cmdline").read_bytes()
        except OSError:
            continue
        stub = stub_from_words(number, [w.decode(errors="replace") for w in line.split(b"\0")])
        if stub is not None:
            found.append(stub)
    return tuple(found)


class ProcessWatch:
    """Loads a model anew when one of its processes has died."""

    def __init__(self, server: int, control: Control, note: Callable[[str], None]) -> None:
        """Watch a server's process; `start` begins.

        Args:
            server: Its process id.
            control: Its endpoints.
            note: Told what happens.
        """
        self._server, self._control, self._note = server, control, note
        self._stop = Event()
        self._thread = Thread(target=self._work, name="boxwright-serve-watch", daemon=True)
        self._seen: set[tuple[str, str, str]] = set()
        self._suspects: set[tuple[str, str, str]] = set()

    def start(self) -> None:
        """Begin watching, in a thread."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)

    def _work(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            try:
                for model in self._look():
                    self._reload(model)
            except BackendError as error:
                if not self._stop.is_set():
                    self._note(f"the server's models cannot be watched: {error}")
                    self._stop.wait(5)

    def _look(self) -> list[str]:
        """Return the models of which an instance was missing twice while the model is ready.

        A model that is being replaced has new processes before the old ones end; one that was
        unloaded is not ready.
        """
        alive = {(s.model, s.version, s.instance) for s in stubs_of(self._server)}
        missing = self._seen - alive
        if not missing:
            self._seen, self._suspects = alive, set()
            return []
        ready = {(m.name, m.version) for m in self._control.index() if m.state == "READY"}
        lost = {key for key in missing if key[:2] in ready}
        sure = lost & self._suspects
        self._suspects = lost
        self._seen = (self._seen & (alive | lost)) | alive
        if sure:
            self._seen, self._suspects = alive, set()
        return sorted({model for model, _, _ in sure})

    def _reload(self, model: str) -> None:
        self._note(f"{model}: a process of its Python backend has died; loading it anew")
        begin = time.monotonic()
        self._control.load(model, self._control.config(model))
        self._note(f"{model}: loaded anew after {time.monotonic() - begin:.1f} s")
