"""Load tests of served models: what clients see, and what the server says it did for them.

Clients keep a number of requests in flight, each thread waiting for its answer before it sends the
next (a closed loop). The server's own statistics, before and after, tell how many rows it ran at
once and where the time went.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import boxwright
from boxwright.benchmark.perf_analyzer import find_perf_analyzer, run_perf_analyzer
from boxwright.benchmark.served_records import ModelWork, ServedLoad, ServedResult
from boxwright.benchmark.subjects import pictures_for
from boxwright.benchmark.throughput import steady_state
from boxwright.detector import Detector
from boxwright.environment import describe_machine
from boxwright.errors import BackendError, RequestError
from boxwright.images import read_bytes
from boxwright.loading import load
from boxwright.machine import usable_cores
from boxwright.outcome import Listener
from boxwright.triton_address import address_from_text
from boxwright.triton_wire import TritonError, open_wire

__all__ = ["ServedSettings", "measure_served"]

_SECONDS = 10.0
_MOST_TENSORS = 4  # requests that differ, where each is megabytes
_THREADS_OF_A_PROCESS = 8
_MOST_PROCESSES = 8
_PATIENCE_S = 600


@dataclass(frozen=True, slots=True)
class ServedSettings:
    """How to load a server.

    Attributes:
        concurrencies: Requests in flight, one measurement for each.
        images, max_images: Pictures, as in `BenchmarkSettings`.
        batch: Pictures in one request.
        seconds: Of each measurement; None is 10.
        warmup: Requests of each client before the first that counts.
        processes: Client processes; None is one for 8 requests in flight, within the cores.
        perf_analyzer: Whether perf_analyzer measures, too, where it is installed.
        seed: Of generated pictures.
    """

    concurrencies: tuple[int, ...]
    images: tuple[str, ...] = ()
    max_images: int = 64
    batch: int = 1
    seconds: float | None = None
    warmup: int = 5
    processes: int | None = None
    perf_analyzer: bool = True
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that are out of range.

        Raises:
            RequestError: One is.
        """
        wrong = [c for c in self.concurrencies if not 1 <= c <= 4096]
        if wrong or not self.concurrencies:
            raise RequestError(f"--concurrency {wrong}", "it is not 1 to 4096", "use e.g. 1,16")
        if self.seconds is not None and not 0 < self.seconds < 86400:
            raise RequestError(
                f"--seconds {self.seconds:g}", "it is not between 0 and a day", "use e.g. 10"
            )


def measure_served(
    address: str, settings: ServedSettings, listener: Listener | None = None
) -> ServedResult:
    """Measure a served model under load.

    Args:
        address: `triton://host:port/model[:version]`.
        settings: How.
        listener: Told what happens.

    Raises:
        RequestError: A setting is wrong.
        ImageError: A picture cannot be read.
        BackendError: The server does not answer, or refuses every request.
    """
    settings.check()
    listener = listener or Listener()
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    program = find_perf_analyzer() if settings.perf_analyzer else None
    with tempfile.TemporaryDirectory(prefix="boxwright-load-") as name, load(address) as detector:
        folder = Path(name)
        paths, what = pictures_for(
            settings.images, settings.max_images, detector, folder, settings.seed
        )
        feeds = _feeds(detector, paths, settings.batch, folder)
        arrays: dict[str, Any] = {f"{i}/{n}": v for i, f in enumerate(feeds) for n, v in f.items()}
        np.savez(folder / "feeds.npz", **arrays)
        found = []
        for place, concurrency in enumerate(settings.concurrencies):
            listener.note(f"{address}: {concurrency} requests in flight")
            one = _measure(address, settings, concurrency, folder, place)
            if program is not None:
                figures = run_perf_analyzer(
                    program,
                    address_from_text(address),
                    feeds,
                    batch=settings.batch,
                    batches=not isinstance(detector.backend.inputs[0].shape[0], int)
                    or detector.largest_batch is not None,
                    concurrency=concurrency,
                    seconds=settings.seconds or _SECONDS,
                    folder=folder,
                )
                if figures.problem:
                    listener.note(f"perf_analyzer: {figures.problem}")
                one = dataclasses.replace(one, perf_analyzer=figures)
            found.append(one)
            listener.count("concurrency", place + 1, len(settings.concurrencies))
        return ServedResult(
            address,
            detector.description,
            started_at,
            describe_machine(),
            dataclasses.asdict(settings),
            what,
            tuple(found),
        )


def _feeds(
    detector: Detector, paths: Sequence[Path], batch: int, folder: Path
) -> list[dict[str, npt.NDArray[Any]]]:
    """Return the requests: files as they are for a model that decodes, else prepared batches.

    Raises:
        RequestError: The model does not take such a batch.
    """
    if detector.takes_encoded:
        if batch != 1:
            raise RequestError(
                f"--batch {batch}", "a request holds one picture file", "drop the option"
            )
        name = detector.backend.inputs[0].name
        data = [np.frombuffer(_file_bytes(p), np.uint8) for p in paths]
        return [{name: d.reshape(1, -1)} for d in data]
    largest, fixed = detector.largest_batch, detector.fixed_batch
    if (largest is not None and batch > largest) or fixed not in (None, batch):
        takes = f"{fixed} pictures only" if fixed else f"up to {largest} pictures"
        raise RequestError(f"--batch {batch}", f"the model takes {takes}", "use another")
    feeds = []
    for number in range(min(_MOST_TENSORS, len(paths))):
        chosen = [paths[(number * batch + i) % len(paths)] for i in range(batch)]
        tensor, _ = detector.preprocess([detector.read(p) for p in chosen])
        feeds.append({n: v.copy() for n, v in detector.feed(tensor, detector.nms).items()})
    return feeds


def _file_bytes(path: Path) -> bytes:
    """Return a picture file; generated PNG pages become JPEG, which cameras send."""
    import cv2

    data = read_bytes(path)
    if not path.parent.name.startswith("boxwright-load-") or data.startswith(b"\xff\xd8"):
        return data
    done, encoded = cv2.imencode(".jpg", Detector.read(path), [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done, "a picture can be a JPEG"
    return encoded.tobytes()


def _measure(
    address: str, settings: ServedSettings, concurrency: int, folder: Path, place: int
) -> ServedLoad:
    """Measure one number of requests in flight."""
    spread = _spread(concurrency, settings.processes)
    wire = open_wire(address_from_text(address))
    with ExitStack() as stack:
        stack.callback(wire.close)
        clients = []
        for number, threads in enumerate(spread):
            request = folder / f"request_{place}_{number}.json"
            request.write_text(
                json.dumps(
                    {
                        "address": address,
                        "feeds": str(folder / "feeds.npz"),
                        "threads": threads,
                        "first": number * 1013,
                        "warmup": settings.warmup,
                        "seconds": settings.seconds or _SECONDS,
                    }
                ),
                encoding="utf-8",
            )
            clients.append(stack.enter_context(_Client(request)))
        for client in clients:
            client.wait_ready()
        before = _statistics(wire, address)
        for client in clients:
            client.go()
        told = [client.result() for client in clients]
        after = _statistics(wire, address)
    times = [(float(b), float(e)) for t in told for b, e in t["times"]]
    errors: Counter[str] = Counter()
    for one in told:
        errors.update(one["errors"])
    samples, rate = steady_state(times, concurrency, 1)
    if not samples and errors:
        raise BackendError(
            address, f"no request was answered ({errors.most_common(1)[0][0]})", "see its log"
        )
    return ServedLoad(
        concurrency,
        len(spread),
        len(samples),
        dict(errors),
        sum(int(t["retries"]) for t in told),
        round(rate, 3),
        tuple(samples),
        _work(before, after),
    )


def _spread(concurrency: int, processes: int | None) -> list[int]:
    """Return the threads of each client process.

    >>> _spread(20, 3)
    [7, 7, 6]
    """
    if processes is None:
        wanted = -(-concurrency // _THREADS_OF_A_PROCESS)
        processes = min(wanted, max(1, usable_cores() // 2), _MOST_PROCESSES)
    count = min(processes, concurrency)
    each, more = divmod(concurrency, count)
    return [each + (i < more) for i in range(count)]


class _Client:
    """A client process."""

    def __init__(self, request: Path) -> None:
        home = str(Path(boxwright.__file__).parents[1])
        places = [home, *(p for p in sys.path if p)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "boxwright.benchmark.load_process", str(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        )
        self._first = ""

    def wait_ready(self) -> None:
        """Wait until its threads have warmed up; one that failed has its result already."""
        assert self._process.stdout is not None
        self._first = self._process.stdout.readline().strip()

    def go(self) -> None:
        """Let it begin."""
        if self._first == "ready":
            assert self._process.stdin is not None
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Return what it measured.

        Raises:
            BackendError: It failed.
        """
        out, err = self._process.communicate(timeout=_PATIENCE_S)
        text = out if self._first == "ready" else self._first
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:
            lines = err.strip().splitlines() or [f"status {self._process.returncode}"]
            raise BackendError(
                "a client of the load test", f"it failed ({lines[-1][:300]})", ""
            ) from None
        return found

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *told: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def _statistics(wire: Any, address: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the statistics of the model, or of the models that an ensemble is made of."""
    try:
        steps = wire.config().get("ensemble_scheduling", {}).get("step", ())
        names = [s["model_name"] for s in steps] or [address_from_text(address).model]
        found = [s for name in dict.fromkeys(names) for s in wire.statistics(name)]
    except TritonError as error:
        raise BackendError(address, f"the server says: {error.message}", "see its log") from None
    return {(s["name"], str(s["version"])): s for s in found}


def _work(
    before: Mapping[tuple[str, str], Any], after: Mapping[tuple[str, str], Any]
) -> tuple[ModelWork, ...]:
    """Return what each model did between two looks at the statistics; those that rested are out.

    Counters begin anew when a model is loaded anew.
    """
    found = []
    for key, now in after.items():
        then = before.get(key, {})
        if int(then.get("inference_count", 0)) > int(now.get("inference_count", 0)):
            then = {}

        def gained(*names: str, now: Any = now, then: Any = then) -> int:
            return _count(now, names) - _count(then, names)

        requests = gained("inference_stats", "success", "count")
        failed = gained("inference_stats", "fail", "count")
        if not requests and not failed:
            continue
        spans = ("queue", "compute_input", "compute_infer", "compute_output")
        means = [
            gained("inference_stats", s, "ns") / 1e6 / max(gained("inference_stats", s, "count"), 1)
            for s in spans
        ]
        rows, runs = gained("inference_count"), gained("execution_count")
        found.append(ModelWork(*key, requests, failed, rows, runs, *(round(m, 4) for m in means)))
    return tuple(found)


def _count(told: Any, names: Sequence[str]) -> int:
    for name in names:
        told = told.get(name, 0) if isinstance(told, Mapping) else 0
    return int(told)
