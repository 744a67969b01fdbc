"""What a server is started with: ports, command line, environment, and its process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

from boxwright.errors import BackendError, RequestError
from boxwright.freed_memory import KEPT_BLOCK_BYTES, KEPT_BYTES
from boxwright.serve.installation import Installation
from boxwright.serve.python_environment import PythonEnvironment, plain_environment

__all__ = [
    "HEADER",
    "Listen",
    "ServeRequest",
    "command_line",
    "pump",
    "spawn",
    "taken_ports",
    "variables",
]

# What changes the server, or reads this machine's memory: not for everybody.
_RESTRICTED = "model-repository,shared-memory,trace,logging"
HEADER = "boxwright-control"
# The server takes fresh memory for every tensor between two models, which glibc would give back at
# once: a page fault for every 4 KiB of it. With these it stays. Measured in docs/serving.md.
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(KEPT_BLOCK_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
}
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


@contextlib.contextmanager
def taken_ports(request: ServeRequest) -> Iterator[dict[str, int]]:
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


def command_line(
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
        words.append(f"--http-restricted-api={_RESTRICTED}:{HEADER}={token}")
        words.append(f"--grpc-restricted-protocol={_RESTRICTED}:{HEADER}={token}")
    return [*words, *request.arguments]


def variables(
    installation: Installation, python: PythonEnvironment | None, *, with_home: bool
) -> dict[str, str]:
    """Return the server's environment: the stub finds its Python by PATH alone.

    What the caller's environment says of glibc's memory holds.

    Args:
        installation: The server.
        python: For its models.
        with_home: Whether PYTHONHOME, where it is set, is meant for that Python.
    """
    values = plain_environment(with_home=with_home)
    if "GLIBC_TUNABLES" not in values:
        values = {**_MEMORY, **values}
    libraries = [str(p) for p in installation.libraries]
    if python is not None:
        values["PATH"] = os.pathsep.join([str(python.python.parent), values.get("PATH", "")])
        libraries.insert(0, str(python.library_folder))
    before = values.get("LD_LIBRARY_PATH")
    values["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *([before] if before else [])])
    return values


def spawn(command: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
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


def pump(stream: IO[bytes] | None, lines: deque[str], log: Listen, path: Path | None) -> Thread:
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
