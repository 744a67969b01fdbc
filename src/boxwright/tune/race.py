"""Measures candidates in turns, whatever their runtimes and threads, as one round of a tuning.

`boxwright.benchmark.benchmark` sweeps threads one after the other; here candidates with different
numbers of threads run in turns too, so that drift of the machine falls on all alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

from boxwright.backends import BackendOptions
from boxwright.benchmark import BenchmarkSettings, Entry
from boxwright.benchmark.memory import measure_peak_memory
from boxwright.benchmark.subjects import pictures_for
from boxwright.benchmark.throughput import Loaded, measure_throughput, open_loaded
from boxwright.benchmark.timing import Timed, measure_latency
from boxwright.detector import Detector
from boxwright.environment import describe_machine
from boxwright.errors import BackendError
from boxwright.loading import load
from boxwright.machine import CpuUsage, read_cpu_counters, usable_cores, usage_between
from boxwright.measurement.noise import judge_noise
from boxwright.measurement.records import BenchmarkResult, Measured, Mode, Round
from boxwright.measurement.statistics import median, median_interval, rounds_of, samples_by_round
from boxwright.outcome import Listener
from boxwright.tune.front import Point
from boxwright.tune.records import Combination
from boxwright.tune.request import Request
from boxwright.types import Latency, Span

__all__ = ["SOURCE_FILE", "Track", "point_of"]

SOURCE_FILE = "source"


class Track:
    """Where candidates run: the pictures, and how files are opened; a context manager."""

    def __init__(self, request: Request, listener: Listener) -> None:
        self.request = request
        self.listener = listener
        self.started = perf_counter()
        self.what = ""
        self._pictures: list[Path] = []
        self._stack = ExitStack()

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def now(self) -> float:
        """Return seconds since the first round began."""
        return perf_counter() - self.started

    def open(self, which: Combination, threads: int | None = None) -> Detector:
        """Open a candidate, or the source itself in PyTorch.

        Raises:
            BackendError: The runtime refuses it.
        """
        if which.file == SOURCE_FILE:
            resolved = self.request.resolved
            backend = resolved.source.reference(resolved.request, BackendOptions(threads, "cpu"))
            return Detector(backend, self.request.spec)
        return load(which.path, which.runtime, threads=threads, device="cpu", quiet=True)  # type: ignore[arg-type]

    def pictures(self, detector: Detector) -> list[Path]:
        """Return the pictures to detect in; generated ones are made for the first detector."""
        if not self._pictures:
            given = list(self.request.pictures)
            if given:
                self._pictures, self.what = given, f"{len(given)} pictures"
            else:
                folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="boxwright-"))
                self._pictures, self.what = pictures_for((), 1, detector, Path(folder), 0)
        return self._pictures

    def run(
        self, chosen: Sequence[Combination], settings: BenchmarkSettings, label: str
    ) -> tuple[BenchmarkResult, dict[str, str]]:
        """Measure candidates in turns.

        Args:
            chosen: At most a dozen, since all are open at once.
            settings: How long.
            label: Of the progress bar.

        Returns:
            What was measured, and why candidates could not be opened, by name.
        """
        started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        environment = describe_machine()
        refused: dict[str, str] = {}
        with ExitStack() as stack:
            detectors: list[tuple[Combination, Detector]] = []
            for which in chosen:
                try:
                    detector = stack.enter_context(self.open(which, which.threads))
                except BackendError as error:
                    refused[which.name] = error.found
                    continue
                detectors.append((which, detector))
            measured: list[Measured] = []
            if detectors:
                measure = (
                    self._latency if self.request.sweep.objective == "latency" else self._throughput
                )
                measured = measure(detectors, settings, label)
        record = {
            **settings.as_dict(),
            "threads": [which.threads for which in chosen],
            "concurrency": [which.in_flight for which in chosen],
        }
        result = BenchmarkResult(started_at, environment, record, self.what, tuple(measured))
        return result, refused

    def _latency(
        self,
        opened: list[tuple[Combination, Detector]],
        settings: BenchmarkSettings,
        label: str,
    ) -> list[Measured]:
        pictures = self.pictures(opened[0][1])
        files = [Timed(detector, which.batch) for which, detector in opened]
        before = read_cpu_counters()
        measure_latency(files, pictures, settings, now=self.now, advance=self._counter(label))
        usage = usage_between(before, read_cpu_counters())
        return [
            _measured(
                which,
                detector,
                settings,
                usage,
                file.latencies(),
                file.sample_rounds,
                file.rounds,
                1e3 * which.batch / file.latencies()["total"].mean,
                file.detector.description,
                "latency",
            )
            for (which, detector), file in zip(opened, files, strict=True)
        ]

    def _throughput(
        self,
        opened: list[tuple[Combination, Detector]],
        settings: BenchmarkSettings,
        label: str,
    ) -> list[Measured]:
        pictures = self.pictures(opened[0][1])
        with ExitStack() as stack:
            files: list[Loaded] = []
            for which, detector in opened:
                images = [detector.read(pictures[i % len(pictures)]) for i in range(which.batch)]
                tensor, _ = detector.preprocess(images)
                feed = detector.feed(tensor.copy(), detector.nms)
                loaded = open_loaded(
                    Entry(which.path, which.runtime),
                    feed,
                    which.batch,
                    which.threads or max(1, usable_cores() // which.in_flight),
                    BenchmarkSettings(device="cpu", concurrency=which.in_flight),
                )
                files.append(stack.enter_context(loaded))
            before = read_cpu_counters()
            measure_throughput(files, settings, now=self.now, advance=self._counter(label))
            usage = usage_between(before, read_cpu_counters())
            return [
                _measured(
                    which,
                    detector,
                    settings,
                    usage,
                    {"infer": file.latency},
                    file.sample_rounds,
                    file.rounds,
                    file.images_per_s,
                    file.runner.description,
                    "throughput",
                )
                for (which, detector), file in zip(opened, files, strict=True)
            ]

    def _counter(self, label: str) -> Callable[[int, int], None]:
        return lambda done, total: self.listener.count(label, done, total)

    def peak_memory(self, which: Combination) -> float | None:
        """Return the peak memory of a fresh process in MB, or None where it cannot be told."""
        if not self._pictures:
            with self.open(which, which.threads) as detector:
                self.pictures(detector)
        recipe = self.request.recipe
        own = which.file != SOURCE_FILE
        entry = Entry(
            which.path,
            which.runtime,
            family=None if own else recipe.family,
            labels=None if own else recipe.labels,
        )
        return measure_peak_memory(
            entry, self._pictures, threads=which.threads, batch=which.batch, device="cpu"
        )


def _measured(
    which: Combination,
    detector: Detector,
    settings: BenchmarkSettings,
    usage: CpuUsage | None,
    latencies: dict[Span, Latency],
    sample_rounds: list[int],
    rounds: list[Round],
    images_per_s: float,
    description: str,
    mode: Mode,
) -> Measured:
    """Return the record of one candidate; the verdict is about `infer`, the same work each time."""
    judged = samples_by_round(latencies["infer"].samples_ms, sample_rounds)
    return Measured(
        name=which.name,
        file=str(which.path),
        size_bytes=which.path.stat().st_size if which.path.is_file() else 0,
        runtime=which.runtime,
        description=description,
        precision=detector.target.precision,
        outputs=detector.target.outputs,
        threads=which.threads,
        batch=which.batch,
        mode=mode,
        concurrency=which.in_flight,
        warmup=settings.warmup,
        latencies=latencies,
        sample_rounds=tuple(sample_rounds),
        rounds=tuple(rounds),
        images_per_s=round(images_per_s, 4),
        noise=judge_noise(judged, usage),
    )


def point_of(
    measured: Measured, drop: float | None, memory_mb: float | None, seed: int = 0
) -> Point:
    """Return what decides about a measured candidate."""
    rounds = rounds_of(measured)
    interval = median_interval(rounds, seed=seed)
    calls = interval
    if measured.mode == "throughput":
        samples = samples_by_round(measured.main.samples_ms, measured.sample_rounds)
        calls = median_interval(samples, seed=seed)
    return Point(
        name=measured.name,
        cost_ms=median([v for r in rounds for v in r]),
        low_ms=interval[0] if interval else None,
        high_ms=interval[1] if interval else None,
        p95_ms=measured.main.p95,
        call_low_ms=calls[0] if calls else None,
        drop=drop,
        memory_mb=memory_mb,
    )
