"""A real Triton server on a repository: started, watched, and stopped without a trace."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import IO

from boxwright.errors import BackendError, RequestError
from boxwright.gpus import query_gpus, visible_gpus
from boxwright.serve.control import Control, ModelState
from boxwright.serve.installation import Installation, find_server
from boxwright.serve.layout import backends_of, chosen_models, lay_out_backends
from boxwright.serve.python_environment import PythonEnvironment, prepare_environment
from boxwright.serve.requirements import requirements_of
from boxwright.serve.watch import ProcessWatch, processes_of_session

__all__ = ["RunningServer", "ServeRequest", "start_server"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LAST_LINES = 400
_IDLE_S = 2.0  # for a server without models to end
_SHARED_MEMORY = Path("/dev/shm")
# What changes the server, or reads this machine's memory: not for everybody.
_RESTRICTED = "model-repository,shared-memory,trace,logging"
_RESTRICTED_GRPC = "model-repository,shared-memory,trace,logging"
_HEADER = "boxwright-control"
Listen = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What to serve, and how.

    Attributes:
        repository: Folder of models.
        models: Names of those to load; empty for all.
        server: As `find_server` takes it.
        python: A prepared Python for models; None makes one.
        requirements: Further packages for that Python.
        host: Address to listen on.
        http_port, grpc_port, metrics_port: 0 takes a free one.
        metrics: Whether metrics are served.
        config_name: MODEL/configs/NAME.pbtxt replaces a model's configuration; `auto` is `cpu`
            where there is no GPU, "" takes none.
        cache_mib: Response cache; 0 has none.
        timeout_s: Longest time until the server answers.
        stop_timeout_s: Longest time for requests in flight when the server stops.
        keep_going: Serve the other models when one fails to load.
        recover: Load a model anew when a process of its Python backend has died.
        log: File for the server's log; None keeps its end in memory.
        arguments: Further arguments of the server, as they are.
    """

    repository: Path
    models: tuple[str, ...] = ()
    server: Path | None = None
    python: Path | None = None
    requirements: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    metrics: bool = True
    config_name: str = "auto"
    cache_mib: int = 0
    timeout_s: float = 600.0
    stop_timeout_s: int = 30
    keep_going: bool = False
    recover: bool = True
    log: Path | None = None
    arguments: tuple[str, ...] = ()


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
            for name in dict.fromkeys(m.name for m in self.control.index() if m.state == "READY"):
                self.control.unload(name)
            busy = ("READY", "UNLOADING", "LOADING")
            while time.monotonic() < end and not give_up():
                if not any(m.state in busy for m in self.control.index()):
                    return
                time.sleep(0.05)
        except BackendError:
            return  # it is no longer there, or does not listen yet

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
    with _taken_ports(request) as ports:
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
        command = _command(request, installation, backends, name, token, prefix)
        started = time.monotonic()
        process = _spawn(command, _variables(installation, python))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    lines: deque[str] = deque(maxlen=_LAST_LINES)
    host = "127.0.0.1" if request.host in ("0.0.0.0", "localhost") else request.host
    control = Control(host, request.http_port, {_HEADER: token} if token else {})
    running = RunningServer(
        request, control, name, _describe(installation, python), 0.0, (), process, lines, folder,
        prefix,
    )  # fmt: skip
    try:
        running._threads.append(_pump(process.stderr, lines, log, request.log))
        _wait_until_live(running)
        running.started_s = time.monotonic() - started
        running.models = _states(control, asked)
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


@contextlib.contextmanager
def _taken_ports(request: ServeRequest) -> Iterator[dict[str, int]]:
    """Hold the ports until all are chosen; 0 is any free one.

    Raises:
        RequestError: A port is taken, or the address is none of this machine.
    """
    found: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for key in ("http_port", "grpc_port", "metrics_port"):
            if key == "metrics_port" and not request.metrics:
                continue
            family = socket.AF_INET6 if ":" in request.host else socket.AF_INET
            place = stack.enter_context(socket.socket(family))
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port = getattr(request, key)
            try:
                place.bind((request.host, port))
            except OSError as error:
                option = f"--{key.replace('_', '-')} {port}"
                raise RequestError(
                    f"--host {request.host} {option}",
                    f"nothing can listen there ({error.strerror or error})",
                    "stop what listens there, or choose another port (0 takes a free one)",
                ) from None
            found[key] = place.getsockname()[1]
        yield found


def _command(
    request: ServeRequest,
    installation: Installation,
    backends: Path,
    config_name: str,
    token: str,
    prefix: str,
) -> list[str]:
    """Return the server's command line."""
    words = [
        str(installation.binary),
        f"--model-repository={request.repository.resolve()}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--exit-on-error=false",
        f"--exit-timeout-secs={request.stop_timeout_s}",
        f"--http-address={request.host}",
        f"--http-port={request.http_port}",
        f"--grpc-address={request.host}",
        f"--grpc-port={request.grpc_port}",
        f"--allow-metrics={'true' if request.metrics else 'false'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
    ]
    words += [f"--load-model={m}" for m in request.models] or ["--load-model=*"]
    if request.metrics:
        words += [
            f"--metrics-address={request.host}",
            f"--metrics-port={request.metrics_port}",
        ]
    if config_name:
        words.append(f"--model-config-name={config_name}")
    if installation.caches.is_dir():
        words.append(f"--cache-directory={installation.caches}")
    if request.cache_mib:
        words.append(f"--cache-config=local,size={request.cache_mib * 2**20}")
    if token:
        words.append(f"--http-restricted-api={_RESTRICTED}:{_HEADER}={token}")
        words.append(f"--grpc-restricted-protocol={_RESTRICTED_GRPC}:{_HEADER}={token}")
    return [*words, *request.arguments]


def _variables(installation: Installation, python: PythonEnvironment | None) -> dict[str, str]:
    """Return the server's environment: the stub finds its Python by PATH alone."""
    values = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    libraries = [str(p) for p in installation.libraries]
    if python is not None:
        values["PATH"] = os.pathsep.join([str(python.python.parent), values.get("PATH", "")])
        libraries.insert(0, str(python.library_folder))
    before = values.get("LD_LIBRARY_PATH")
    values["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *([before] if before else [])])
    return values


def _spawn(command: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own, which ends with this process.

    Raises:
        BackendError: It cannot be executed.
    """
    library = ctypes.CDLL(None, use_errno=True)

    def end_with_parent() -> None:
        library.prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG

    try:
        return subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=end_with_parent if hasattr(library, "prctl") else None,
        )
    except OSError as error:
        raise BackendError(
            command[0], f"it does not start ({error.strerror or error})", "check the file"
        ) from None


def _pump(stream: IO[bytes] | None, lines: deque[str], log: Listen, path: Path | None) -> Thread:
    """Read the server's log in a thread, for as long as it writes."""

    def work() -> None:
        assert stream is not None
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("ab")) if path is not None else None
            for raw in stream:
                if file is not None:
                    file.write(raw)
                    file.flush()
                text = raw.decode(errors="replace").rstrip()
                lines.append(text)
                log(text)

    thread = Thread(target=work, name="boxwright-serve-log", daemon=True)
    thread.start()
    return thread


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


def _states(control: Control, asked: tuple[str, ...]) -> tuple[ModelState, ...]:
    index = control.index()
    found = [m for m in index if m.name in asked and m.state]
    lost = [ModelState(n, "", "UNAVAILABLE", "the server does not list it")
            for n in asked if n not in {m.name for m in found}]  # fmt: skip
    return (*found, *lost)


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
