"""A real Triton server for the tests, where its wheel has been unpacked.

`BOXWRIGHT_TEST_TRITON` names a folder with `srv/` (the unpacked wheel of nvidia-pytriton 0.7.0) and
`venv/` (Python 3.11 with numpy<2, onnxruntime, opencv-python-headless 4.11 and nvidia-dali), and
`client/` tritonclient where it is not installed. The C++ backends that the wheel lacks are stood in
for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import boxwright

ROOT = Path(os.environ.get("BOXWRIGHT_TEST_TRITON", Path(tempfile.gettempdir()) / "triton-dev"))
_HERE = Path(__file__).parent
_STUB = "triton_python_backend_stub"


def client_on_path() -> None:
    """Let tritonclient be found in `client/`, where it is not installed."""
    if importlib.util.find_spec("tritonclient") is None and (ROOT / "client").is_dir():
        sys.path.append(str(ROOT / "client"))
        importlib.invalidate_caches()


def require(*, dali: bool = False) -> Path:
    """Return the folder of the server, or skip loudly."""
    server = ROOT / "srv/pytriton/tritonserver"
    if not (server / "bin/tritonserver").is_file() or not (ROOT / "venv/bin/python").exists():
        pytest.skip(f"no Triton server in {ROOT}: set BOXWRIGHT_TEST_TRITON, see triton_server.py")
    if dali and not list((ROOT / "venv/lib").glob("python3*/site-packages/nvidia/dali")):
        pytest.skip(f"no DALI in {ROOT}/venv")
    return server


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _library_folder() -> str:
    """Return where the libpython of the environment lies; that of another Python does not do."""
    code = "import sysconfig as s; print(s.get_config_var('LIBDIR'), s.get_config_var('MULTIARCH'))"
    done = subprocess.run(
        [ROOT / "venv/bin/python", "-c", code], capture_output=True, text=True, check=True
    )
    folder, arch = done.stdout.split()
    return f"{folder}/{arch}:{folder}"


def _add_backends(backends: Path) -> None:
    """Add what stands in for the C++ backends: those of the package where it has them."""
    ours = Path(boxwright.__file__).parent / "serve/backends"
    if not ours.is_dir():
        shutil.copytree(_HERE / "triton_backends", backends, dirs_exist_ok=True)
        return
    for name in ("onnxruntime", "dali"):
        shutil.copytree(ours / name, backends / name)
        shutil.copy(ours / "joining.py", backends / name)


class Server:
    """A running server; a context manager that leaves no process behind."""

    def __init__(self, repository: Path, work: Path, *options: str, config: str = "cpu") -> None:
        server = require()
        backends = work / "backends"
        shutil.copytree(server / "backends", backends)
        _add_backends(backends)
        stub = shutil.copy(server / "python_backend_stubs/3.11" / _STUB, backends / "python")
        program = server / "bin/tritonserver"
        for file in (Path(stub), program):
            file.chmod(0o755)
        self.http, self.grpc = _free_ports(2)
        libraries = [_library_folder(), str(ROOT / "srv/nvidia_pytriton.libs")]
        self.log = work / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(program),
                    f"--backend-directory={backends}",
                    f"--model-repository={repository}",
                    f"--http-port={self.http}",
                    f"--grpc-port={self.grpc}",
                    "--http-address=127.0.0.1",
                    "--grpc-address=127.0.0.1",
                    "--allow-metrics=false",
                    "--exit-timeout-secs=5",
                    f"--model-config-name={config}",
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "PATH": f"{ROOT / 'venv/bin'}:{os.environ['PATH']}",
                    "LD_LIBRARY_PATH": ":".join(libraries),
                    "OMP_NUM_THREADS": "2",
                    "BOXWRIGHT_DALI_DEVICE": "cpu",
                },
            )

    def __enter__(self) -> Server:
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *rest: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(8)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def url(self) -> str:
        """Address of its HTTP endpoint."""
        return f"http://127.0.0.1:{self.http}"

    def answers(self, path: str) -> bool:
        """Whether a GET succeeds."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def wait(self, path: str = "/v2/health/live", seconds: float = 60) -> None:
        """Wait until a GET succeeds; show the log when the server ends before."""
        end = time.monotonic() + seconds
        while not self.answers(path):
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(self.log.read_text(errors="replace")[-6000:])
            time.sleep(0.1)
