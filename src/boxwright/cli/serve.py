"""`boxwright serve`: a real Triton server on a model repository."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from boxwright.serve.server import RunningServer

__all__ = ["command"]


@click.command("serve")
@click.argument("repository", type=click.Path(path_type=Path), metavar="REPO")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Load only these. Default: all."
)
@click.option(
    "--server",
    type=click.Path(path_type=Path),
    help="A tritonserver, a folder that holds one, or an nvidia-pytriton wheel. Default: on PATH, "
    "then in the nvidia-pytriton package.",
)
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A prepared Python for models, with NumPy below 2. Default: one is made in the cache.",
)
@click.option(
    "--requirement",
    "requirements",
    multiple=True,
    metavar="PACKAGE",
    help="Further package for the Python that is made.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; others than this machine's own need it.",
)
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True,
              help="0 takes a free one.")  # fmt: skip
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True,
              help="0 takes a free one.")  # fmt: skip
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=8002, show_default=True,
              help="0 takes a free one.")  # fmt: skip
@click.option("--no-metrics", is_flag=True, help="Serve no metrics.")
@click.option(
    "--config-name",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="MODEL/configs/NAME.pbtxt where it is there; auto is cpu without a GPU, none takes the "
    "plain ones.",
)
@click.option(
    "--cache-mib", type=click.IntRange(0), default=0, show_default=True, help="Response cache."
)
@click.option(
    "--timeout", type=click.FloatRange(1), default=600, show_default=True, metavar="S",
    help="Longest time until the server answers.",
)  # fmt: skip
@click.option(
    "--stop-timeout", type=click.IntRange(0), default=30, show_default=True, metavar="S",
    help="Longest time for requests in flight when it is stopped.",
)  # fmt: skip
@click.option("--keep-going", is_flag=True, help="Serve the others when a model fails to load.")
@click.option(
    "--recover/--no-recover",
    default=True,
    show_default=True,
    help="Load a model anew when a process of its Python backend has died.",
)
@click.option("--log", type=click.Path(path_type=Path), help="File for the server's log.")
@click.option(
    "--server-argument",
    "arguments",
    multiple=True,
    metavar="TEXT",
    help="Passed on to tritonserver as it is, e.g. --server-argument=--log-verbose=1.",
)
@click.option("--verbose", is_flag=True, help="Show the server's whole log on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print the endpoints as one line of JSON.")
def command(repository: Path, **options: Any) -> int:
    """Serve the models in REPO with Triton until it is stopped (Ctrl-C).

    Models run in a Python of their own, with NumPy below 2; backends that the server lacks
    (onnxruntime, tensorrt, dali) are replaced by ours. Endpoints are printed when the models are
    loaded. Only this machine is served unless --host says otherwise. See docs/serving.md.

    \b
    boxwright serve models/
    boxwright benchmark triton://127.0.0.1:8000/yolov11_small --concurrency 1,16
    """
    from boxwright.serve.server import ServeRequest, start_server

    verbose = options["verbose"]
    name = options["config_name"]
    request = ServeRequest(
        repository=repository,
        models=options["models"],
        server=options["server"],
        python=options["python"],
        requirements=options["requirements"],
        host=options["host"],
        http_port=options["http_port"],
        grpc_port=options["grpc_port"],
        metrics_port=options["metrics_port"],
        metrics=not options["no_metrics"],
        config_name="" if name == "none" else name,
        cache_mib=options["cache_mib"],
        timeout_s=options["timeout"],
        stop_timeout_s=options["stop_timeout"],
        keep_going=options["keep_going"],
        recover=options["recover"],
        log=options["log"],
        arguments=options["arguments"],
    )

    def log(text: str) -> None:
        if verbose or (_TROUBLE.match(text) and not _NO_GPU.search(text)):
            print(text, file=sys.stderr, flush=True)

    stopped: list[int] = []
    previous = {n: signal.signal(n, _interrupt) for n in _SIGNALS}
    try:
        with start_server(request, note=_say, log=log) as server:
            _print(server, options["as_json"])
            _forward(stopped)
            return _wait(server, stopped)
    except _StoppedError as error:
        _say(f"stopped by {signal.Signals(error.number).name} before the server was ready")
        return 128 + error.number
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_TROUBLE = re.compile(r"[EW][0-9]{4} ")
# What a server says at its start where there is no GPU; what else it says is shown.
_NO_GPU = re.compile("CudaDriverHelper|pinned system memory|DCGM unable|CUDA driver version")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _StoppedError(BaseException):
    """A signal while the server starts; it is stopped on the way out."""

    def __init__(self, number: int) -> None:
        self.number = number


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _StoppedError(number)


def _forward(stopped: list[int]) -> None:
    """Have signals noted, instead of interrupting."""
    for number in _SIGNALS:
        signal.signal(number, lambda given, frame: stopped.append(given))


def _wait(server: RunningServer, stopped: list[int]) -> int:
    """Wait for the server to end, or for a signal, which it is sent; a second one kills it.

    Raises:
        BackendError: The server ended by itself.
    """
    from boxwright.errors import BackendError

    while not stopped:
        status = server.poll()
        if status is not None:
            raise BackendError(
                "tritonserver",
                f"it ended by itself with status {status}",
                "see its log with --verbose or --log",
            )
        time.sleep(0.1)
    _say(f"{signal.Signals(stopped[0]).name}: stopping the server")
    number = signal.SIGTERM if stopped[0] == signal.SIGHUP else stopped[0]
    server.stop(number, lambda: len(stopped) > 1)
    _say("the server has ended")
    return 0


def _print(server: RunningServer, as_json: bool) -> None:
    """Print where the server listens, and its models."""
    _say(f"{server.description}; ready after {server.started_s:.1f} s")
    if server.config_name:
        _say(f"configurations named {server.config_name} are used where a model has one")
    if as_json:
        told = {
            "http": server.http,
            "grpc": server.grpc,
            "metrics": server.metrics,
            "pid": server.pid,
            "config_name": server.config_name,
            "models": [
                {"name": m.name, "version": m.version, "state": m.state, "reason": m.reason}
                for m in server.models
            ],
        }
        click.echo(json.dumps(told))
    else:
        click.echo(f"HTTP     http://{server.http}")
        click.echo(f"gRPC     {server.grpc}")
        if server.metrics:
            click.echo(f"metrics  {server.metrics}")
        for model in server.models:
            if model.state == "READY":
                click.echo(f"model    triton://{server.http}/{model.name}:{model.version}")
    sys.stdout.flush()


def _say(text: str) -> None:
    print(f"boxwright: {text}", file=sys.stderr, flush=True)
