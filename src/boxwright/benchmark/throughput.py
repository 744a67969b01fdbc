"""Throughput: several inferences in flight, and what one of them takes then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from threading import Lock
from time import perf_counter, sleep
from types import TracebackType
from typing import Any, Protocol

import numpy.typing as npt

from boxwright import catalog
from boxwright.backends import BackendOptions, Queueing
from boxwright.benchmark.settings import BenchmarkSettings, Entry
from boxwright.benchmark.turns import turn_orders
from boxwright.detector import Detector
from boxwright.errors import RequestError
from boxwright.loading import load
from boxwright.measurement.records import Round
from boxwright.measurement.statistics import median
from boxwright.types import Latency

__all__ = ["Loaded", "measure_throughput", "open_loaded", "steady_state"]

_ROUNDS = 5
Feed = dict[str, npt.NDArray[Any]]
Times = list[tuple[float, float]]  # (begin, end) of each inference, in s


class _Runner(Protocol):
    description: str

    def run(self, go_on: Callable[[], bool]) -> Times: ...

    def close(self) -> None: ...


class _Threads:
    """A session of its own in each of several threads."""

    def __init__(self, detectors: Sequence[Detector], feed: Feed) -> None:
        self._detectors = detectors
        self._feed = feed
        self.description = f"{detectors[0].description}, {len(detectors)} sessions"

    def run(self, go_on: Callable[[], bool]) -> Times:
        def work(detector: Detector) -> Times:
            times = []
            while go_on():
                begin = perf_counter()
                detector.backend.infer(self._feed)
                times.append((begin, perf_counter()))
            return times

        with ThreadPoolExecutor(len(self._detectors)) as pool:
            return [t for times in pool.map(work, self._detectors) for t in times]

    def close(self) -> None:
        for detector in self._detectors:
            detector.close()


class _Queue:
    """One compiled model with a queue of its own."""

    def __init__(self, backend: Any, feed: Feed, streams: int) -> None:
        self._backend = backend
        self._feed = feed
        self.description = f"{backend.description}, {streams} streams"

    def run(self, go_on: Callable[[], bool]) -> Times:
        times: Times = self._backend.infer_queued(self._feed, go_on)
        return times

    def close(self) -> None:
        self._backend.close()


@dataclass(slots=True)
class Loaded:
    """The samples of one file under load, with `jobs` inferences in flight, as they come."""

    runner: _Runner
    batch: int
    jobs: int
    samples: list[float] = field(default_factory=list)
    sample_rounds: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    @property
    def latency(self) -> Latency:
        """What one inference took while the others ran."""
        return Latency("infer", self.batch, tuple(self.samples))

    @property
    def images_per_s(self) -> float:
        """The median over the rounds."""
        return median([r.images_per_s for r in self.rounds if r.images_per_s is not None])

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.runner.close()


def open_loaded(
    entry: Entry, feed: Feed, batch: int, threads: int, settings: BenchmarkSettings
) -> Loaded:
    """Open a file to be run `settings.concurrency` times at once.

    A runtime that has a queue (OpenVINO) is opened once with as many streams; of the others each
    thread gets a session of its own.

    Args:
        entry: The file.
        feed: Of every inference.
        batch: Pictures in the feed.
        threads: CPU threads of one inference.
        settings: Concurrency and device.

    Raises:
        BackendError: The runtime refuses it.
    """
    jobs = settings.concurrency or 1
    if isinstance(entry.path, str):
        raise RequestError(
            entry.path, "served models are measured under load by themselves", "name no files"
        )
    if entry.runtime == "openvino":
        options = BackendOptions(threads, settings.device, streams=jobs)
        backend = catalog.backend(entry.runtime).open(entry.path, options)
        assert isinstance(backend, Queueing)
        return Loaded(_Queue(backend, feed, jobs), batch, jobs)
    arguments = settings.gpu_arguments()
    if jobs > 1 and entry.runtime == "onnxruntime":
        arguments["cuda_graph"] = False  # one session's capture stops what the others run
    with ExitStack() as stack:
        detectors = [
            stack.enter_context(
                load(
                    entry.path,
                    entry.runtime,  # type: ignore[arg-type]
                    threads=threads,
                    **arguments,
                    family=entry.family,
                    labels=entry.labels,
                    quiet=True,
                )
            )
            for _ in range(jobs)
        ]
        stack.pop_all()  # all are open: the runner closes them
    return Loaded(_Threads(detectors, feed), batch, jobs)


def steady_state(times: Times, in_flight: int, batch: int) -> tuple[list[float], float]:
    """Return the latencies and the rate of the part in which everything was busy.

    The first `in_flight` inferences to end (the ramp-up) and those that end after the last one
    began (the tail, when no new one takes a free place) are left out.

    Args:
        times: (begin, end) of each inference in s, in any order.
        in_flight: How many ran at once.
        batch: Pictures in each.

    Returns:
        Latencies in ms, and pictures per second; nothing and 0 where no steady part is left.

    >>> steady_state([(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)], 1, 8)
    ([1000.0, 1000.0], 8.0)
    """
    ordered = sorted(times, key=lambda t: t[1])
    last_begin = max((begin for begin, _ in times), default=0.0)
    steady = [t for t in ordered[in_flight:] if t[1] <= last_begin]
    if not steady:
        return [], 0.0
    span = steady[-1][1] - ordered[in_flight - 1][1]
    latencies = [round((end - begin) * 1e3, 4) for begin, end in steady]
    return latencies, len(steady) * batch / span if span > 0 else 0.0


def _limit(calls: int | None, seconds: float) -> Callable[[], bool]:
    """Return a function that says whether another inference may begin; safe among threads."""
    lock, until, begun = Lock(), perf_counter() + seconds, 0

    def go_on() -> bool:
        nonlocal begun
        with lock:
            begun += 1
            return begun <= calls if calls is not None else perf_counter() < until

    return go_on


def measure_throughput(
    files: Sequence[Loaded],
    settings: BenchmarkSettings,
    *,
    now: Callable[[], float],
    advance: Callable[[int, int], None],
) -> None:
    """Warm the files up and fill in their samples, in five rounds of turns.

    Args:
        files: Open, all with one batch size.
        settings: How long, and the seed of the order.
        now: Seconds since the benchmark began.
        advance: Told (rounds done, rounds to come).
    """
    for file in files:
        file.runner.run(_limit(settings.warmup * file.jobs, 0.0))
    calls = max(ceil(settings.call_count / _ROUNDS), 2)
    orders = turn_orders(len(files), settings.seed)
    for number in range(_ROUNDS):
        for place in next(orders):
            file = files[place]
            if len(files) > 1:
                sleep(settings.settle_s)
            _run_round(file, settings, number, calls, now())
        advance(number + 1, _ROUNDS)


def _run_round(
    file: Loaded, settings: BenchmarkSettings, number: int, calls: int, started_s: float
) -> None:
    rate = 0.0
    calls += 2 * file.jobs  # the ramp-up and the tail come on top of what was asked for
    samples: list[float] = []
    seconds = (settings.seconds or 0.0) / _ROUNDS
    while not samples:  # a block in which nothing was steady is repeated, twice as long
        limit = _limit(calls if settings.seconds is None else None, seconds)
        samples, rate = steady_state(file.runner.run(limit), file.jobs, file.batch)
        calls, seconds = calls * 2, seconds * 2
    file.samples += samples
    file.sample_rounds += [number] * len(samples)
    file.rounds.append(Round(number, round(started_s, 3), round(rate, 4)))
