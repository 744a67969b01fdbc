"""A real Triton server on a repository: started, watched, and stopped without a trace."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from types import TracebackType

from boxwright.errors import BackendError, BoxwrightError
from boxwright.gpus import query_gpus, visible_gpus
from boxwright.serve.control import Control, ModelState
from boxwright.serve.installation import Installation, find_server
from boxwright.serve.launch import (
    HEADER,
    Listen,
    ServeRequest,
    command_line,
    pump,
    spawn,
    taken_ports,
    variables,
)
from boxwright.serve.layout import backends_of, chosen_models, lay_out_backends, parts_of
from boxwright.serve.python_environment import PythonEnvironment, prepare_environment
from boxwright.serve.requirements import requirements_of
from boxwright.serve.watch import ProcessWatch, processes_of_session

__all__ = ["RunningServer", "ServeRequest", "start_server"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LAST_LINES = 400
_IDLE_S = 2.0  # for a server without models to end
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(slots=True)
class RunningServer:
    """A server that answers; as a context manager it is stopped at the end.

    Attributes:
        request: What was asked for, with the ports that were taken.
        control: Its endpoints for models and statistics.
        config_name: Which configurations it took; "" for the plain ones.
        description: Server, Python and NumPy, in words.
        started_s: How long it took until it answered.
        models: Those that were asked for.
    """

    request: ServeRequest
    control: Control
    config_name: str
    description: str
    started_s: float
    models: tuple[ModelState, ...]
    _process: subprocess.Popen[bytes]
    _lines: deque[str]
    _folder: Path
    _prefix: str
    _threads: list[Thread] = field(default_factory=list)
    _watch: ProcessWatch | None = None

    @property
    def http(self) -> str:
        """Address of HTTP, `host:port`."""
        return f"{_shown(self.request.host)}:{self.request.http_port}"

    @property
    def grpc(self) -> str:
        """Address of gRPC, `host:port`."""
        return f"{_shown(self.request.host)}:{self.request.grpc_port}"

    @property
    def metrics(self) -> str:
        """Address of the metrics, or ""."""
        if not self.request.metrics:
            return ""
        return f"http://{_shown(self.request.host)}:{self.request.metrics_port}/metrics"

    @property
    def failed(self) -> tuple[ModelState, ...]:
        """The models that did not load."""
        return tuple(m for m in self.models if m.state != "READY")

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._process.pid

    @property
    def log_end(self) -> tuple[str, ...]:
        """The last lines of the server's log."""
        return tuple(self._lines)

    def poll(self) -> int | None:
        """Return the exit status of a server that has ended, else None."""
        return self._process.poll()

    def stop(
        self, number: int = signal.SIGTERM, give_up: Callable[[], bool] = lambda: False
    ) -> int:
        """Stop the server, and leave no process and no shared memory of its own.

        Models are unloaded first, which lets requests in flight finish. Then the server gets the
        signal; it would wait for its whole exit timeout for connections that clients keep open,
        so that it is killed after a while when nothing is left to lose.

        Args:
            number: The signal.
            give_up: Asked over and over; True kills the server at once.

        Returns:
            Its exit status.
        """
        if self._watch is not None:
            self._watch.stop()
        if self._process.poll() is None:
            self._drain(give_up)
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            end = time.monotonic() + _IDLE_S
            while self._process.poll() is None and time.monotonic() < end and not give_up():
                time.sleep(0.02)
            if self._process.poll() is None:
                self._process.kill()
        status = self._process.wait()
        self._clear()
        return status

    def _drain(self, give_up: Callable[[], bool]) -> None:
        """Unload every model, and wait until it is so."""
        end = time.monotonic() + self.request.stop_timeout_s
        try:
            ready = dict.fromkeys(m.name for m in self.control.index() if m.state == "READY")
            ensembles = backends_of(self.request.repository).get("ensemble", ())
            for name in sorted(ready, key=lambda n: n not in ensembles):  # before their parts
                self.control.unload(name)
            busy = ("READY", "UNLOADING", "LOADING")
            while time.monotonic() < end and not give_up():
                if not any(m.state in busy for m in self.control.index()):
                    return
                time.sleep(0.05)
        except BoxwrightError:
            return  # it is no longer there, or does not listen yet; or its folder is not

    def _clear(self) -> None:
        """End what is left of the server's session: stubs of a killed server, and their memory."""
        if self._watch is not None:
            self._watch.stop()
        end = time.monotonic() + 5
        while (left := processes_of_session(self._process.pid)) and time.monotonic() < end:
            time.sleep(0.05)
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for thread in self._threads:
            thread.join(5)
        if _SHARED_MEMORY.is_dir():
            for region in _SHARED_MEMORY.glob(f"{self._prefix}*"):
                with contextlib.suppress(OSError):
                    region.unlink()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start_server(
    request: ServeRequest, *, note: Listen = lambda text: None, log: Listen = lambda text: None
) -> RunningServer:
    """Start a server and wait until its models are loaded.

    The server ends with the thread that starts it, however that ends: start it in one that stays.

    Args:
        request: What to serve.
        note: Told what happens.
        log: Told each line of the server's log.

    Raises:
        RequestError: There is no server, a model or a port is not to be had.
        SourceError: The repository holds no model.
        BackendError: The server does not start, or a model fails; with the server's own words.
    """
    asked = chosen_models(request.repository, request.models)
    installation = find_server(request.server)
    on_gpu = bool(visible_gpus(os.environ, query_gpus() or ()))
    name = request.config_name
    if name == "auto":
        name = "" if on_gpu else "cpu"
    python = _environment(request, installation, on_gpu, note)
    with taken_ports(request) as ports:
        request = dataclasses.replace(
            request,
            http_port=ports["http_port"],
            grpc_port=ports["grpc_port"],
            metrics_port=ports.get("metrics_port", 0),
        )
    token = "" if request.host in _LOOPBACK else secrets.token_urlsafe(24)
    if token:
        note(
            f"warning: --host {request.host} lets everybody who reaches this machine send requests,"
            " without a password and in the clear; loading of models stays with this process"
        )
    folder = Path(tempfile.mkdtemp(prefix="boxwright-serve-"))
    prefix = f"boxwright_{os.getpid()}_{secrets.token_hex(3)}_"
    try:
        version = python.version if python else ""
        backends = lay_out_backends(installation, version, folder)
        command = command_line(request, installation, backends, name, token, prefix)
        started = time.monotonic()
        process = spawn(
            command, variables(installation, python, with_home=request.python is not None)
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    lines: deque[str] = deque(maxlen=_LAST_LINES)
    host = "127.0.0.1" if request.host in ("0.0.0.0", "localhost") else request.host
    control = Control(host, request.http_port, {HEADER: token} if token else {})
    running = RunningServer(
        request, control, name, _describe(installation, python), 0.0, (), process, lines, folder,
        prefix,
    )  # fmt: skip
    try:
        running._threads.append(pump(process.stderr, lines, log, request.log))
        _wait_until_live(running)
        running.started_s = time.monotonic() - started
        running.models = _states(control, asked, request.repository)
        _refuse_failed(running, note)
        if request.recover and python is not None:
            running._watch = ProcessWatch(process.pid, control, note)
            running._watch.start()
    except BaseException:
        running.stop()
        raise
    return running


def _environment(
    request: ServeRequest, installation: Installation, on_gpu: bool, note: Listen
) -> PythonEnvironment | None:
    """Return the Python for models; None for a server whose backends need none."""
    used = backends_of(request.repository)
    own = [n for n in used if (installation.backends / n).is_dir() and n != "python"]
    if not installation.stubs:
        return None
    needed = [n for n in used if n not in own and n != "ensemble"]
    if not needed and request.python is None:
        return None
    wanted = requirements_of(request.repository, tuple(needed), on_gpu=on_gpu)
    return prepare_environment(
        (*wanted, *request.requirements),
        tuple(installation.stubs),
        python=request.python,
        note=note,
    )


def _wait_until_live(running: RunningServer) -> None:
    """Wait for the endpoints, which open when every model was tried.

    Raises:
        BackendError: The server ends, or takes too long.
    """
    end = time.monotonic() + running.request.timeout_s
    while not running.control.is_live():
        status = running.poll()
        if status is not None:
            for thread in running._threads:
                thread.join(2)
            raise BackendError(
                "tritonserver",
                f"it ended with status {status} ({_cause(running.log_end)})",
                "see its log with --verbose",
            )
        if time.monotonic() > end:
            raise BackendError(
                "tritonserver",
                f"it does not answer after {running.request.timeout_s:g} s",
                "give it more with --timeout, or see its log with --verbose",
            )
        time.sleep(0.05)


def _cause(lines: tuple[str, ...]) -> str:
    """Return the last line of a log that tells an error."""
    errors = [n for n in lines if n[:1] == "E" or "rror" in n]
    return " ".join((errors or list(lines) or ["its log is empty"])[-1].split())[:400]


def _states(control: Control, asked: tuple[str, ...], repository: Path) -> tuple[ModelState, ...]:
    """Return the models that were asked for; what an ensemble lacks is said by its parts."""
    index = control.index()
    found = [m for m in index if m.name in asked and m.state]
    lost = [
        ModelState(n, "", "UNAVAILABLE", _why_lost(n, repository, index))
        for n in asked
        if n not in {m.name for m in found}
    ]
    return (*found, *lost)


def _why_lost(name: str, repository: Path, index: tuple[ModelState, ...]) -> str:
    """Say why the server does not list a model: one that it is made of has failed."""
    ready = {m.name for m in index if m.state == "READY"}
    reasons = {m.name: m.reason for m in index if m.reason}
    failed = [part for part in parts_of(repository, name) if part not in ready]
    if not failed:
        return "the server does not list it"
    words = (f"{part} ({reasons.get(part) or 'the server says no reason'})" for part in failed)
    return f"what it is made of did not load: {'; '.join(words)}"


def _refuse_failed(running: RunningServer, note: Listen) -> None:
    """Stop at a model that failed, unless the others shall be served.

    Raises:
        BackendError: One failed.
    """
    failed = running.failed
    for model in failed:
        note(f"{model.name}: {model.reason[:2000]}")
    if not failed:
        return
    names = ", ".join(dict.fromkeys(m.name for m in failed))
    if running.request.keep_going and len(failed) < len(running.models):
        note(f"serving without {names}")
        return
    raise BackendError(
        names,
        f"the server cannot load it ({failed[0].reason[:300]})",
        "mend it; --keep-going serves the other models",
    )


def _describe(installation: Installation, python: PythonEnvironment | None) -> str:
    words = str(installation.binary)
    if python is not None:
        words += f", models in Python {python.version} with NumPy {python.numpy}"
    return words


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
