"""How fast files are, in numbers that one can answer for; docs/benchmark.md says how.

>>> from boxwright.benchmark import BenchmarkSettings, Entry, benchmark
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

from boxwright.benchmark.comparison import baseline_name, compared
from boxwright.benchmark.memory import measure_peak_memory
from boxwright.benchmark.settings import BenchmarkSettings, Entry, entries_named
from boxwright.benchmark.subjects import (
    chosen_batches,
    cost_of,
    pictures_for,
    pictures_of_one_size,
)
from boxwright.benchmark.throughput import Loaded, measure_throughput, open_loaded
from boxwright.benchmark.timing import Timed, measure_latency, time_network
from boxwright.detector import Detector
from boxwright.environment import describe_machine
from boxwright.loading import load
from boxwright.machine import CpuUsage, read_cpu_counters, usable_cores, usage_between
from boxwright.measurement.noise import judge_noise
from boxwright.measurement.records import BenchmarkResult, Measured, ModelCost
from boxwright.measurement.statistics import samples_by_round
from boxwright.outcome import Listener

__all__ = ["BenchmarkResult", "BenchmarkSettings", "Entry", "Measured", "benchmark"]


def benchmark(
    entries: Sequence[Entry],
    *,
    settings: BenchmarkSettings | None = None,
    listener: Listener | None = None,
    before_load: Callable[[], None] | None = None,
) -> BenchmarkResult:
    """Measure files in turns, in every setting that was asked for.

    Args:
        entries: Files with their runtimes; each is measured in every setting.
        settings: How; None takes the defaults.
        listener: Told what happens.
        before_load: Called before each measurement of throughput, when all is open: waits for
            processes that measure at the same time.

    Returns:
        One measurement for each file, number of threads and batch size, with raw samples.

    Raises:
        RequestError: A setting or a name is wrong.
        SourceError: A file is missing or damaged.
        ImageError: A picture cannot be read.
        BackendError: A runtime refuses a file.
    """
    settings = settings or BenchmarkSettings()
    settings.check()
    named = entries_named(list(entries), settings.device)
    baseline_name(settings.baseline, [e.name for e in named])
    return _Benchmark(named, settings, listener, before_load).result()


class _Benchmark:
    """One benchmark: opens files, has them measured and collects what was found."""

    def __init__(
        self,
        entries: list[Entry],
        settings: BenchmarkSettings,
        listener: Listener | None,
        before_load: Callable[[], None] | None,
    ) -> None:
        self.entries = entries
        self.settings = settings
        self.listener = listener or Listener()
        self.before_load = before_load or (lambda: None)
        self.started = perf_counter()
        self.pictures: list[Path] = []
        self.fitted: dict[tuple[str, int], list[Path]] = {}  # by name and batch
        self.costs: dict[Path | str, ModelCost | None] = {}
        self.measured: list[Measured] = []

    def now(self) -> float:
        """Return seconds since the benchmark began."""
        return perf_counter() - self.started

    def result(self) -> BenchmarkResult:
        started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        environment = describe_machine()
        what = ""
        with tempfile.TemporaryDirectory(prefix="boxwright-") as name:
            for number, threads in enumerate(self.settings.threads):
                with ExitStack() as stack:
                    detectors = [stack.enter_context(self._open(e, threads)) for e in self.entries]
                    batches = [
                        chosen_batches(self.settings.batches, d, e.name)
                        for d, e in zip(detectors, self.entries, strict=True)
                    ]
                    if number == 0:
                        wanted = self.settings
                        self.pictures, what = pictures_for(
                            wanted.images, wanted.max_images, detectors[0], Path(name), wanted.seed
                        )
                        self._count_costs(detectors)
                    self._fit_pictures(detectors, batches, Path(name))
                    self._measure(detectors, batches, threads)
            if self.settings.memory and self.settings.concurrency is None:
                self._add_memory()
        return BenchmarkResult(
            started_at=started_at,
            environment=environment,
            settings=self.settings.as_dict(),
            pictures=what,
            measured=compared(self.measured, self.settings.baseline, self.settings.seed),
        )

    def _open(self, entry: Entry, threads: int | None) -> Detector:
        detector = load(
            entry.path,
            entry.runtime,  # type: ignore[arg-type]
            threads=threads,
            **self.settings.gpu_arguments(),
            family=entry.family,
            labels=entry.labels,
            quiet=True,
        )
        self.listener.note(f"{entry.name} runs on {detector.description}")
        return detector

    def _count_costs(self, detectors: Sequence[Detector]) -> None:
        for entry, detector in zip(self.entries, detectors, strict=True):
            if entry.path not in self.costs:
                self.costs[entry.path] = cost_of(entry.path, detector.spec.input_size)

    def _fit_pictures(
        self, detectors: Sequence[Detector], batches: list[list[int]], folder: Path
    ) -> None:
        """Bring the pictures to the size that a file takes, before anything is timed."""
        for entry, detector, sizes in zip(self.entries, detectors, batches, strict=True):
            for batch in sizes:
                if (entry.name, batch) not in self.fitted:
                    own = pictures_of_one_size(self.pictures, detector, batch, folder)
                    self.fitted[entry.name, batch] = own
                    if own != self.pictures:
                        self.listener.note(f"{entry.name}: its pictures are stretched to one size")

    def _measure(
        self, detectors: Sequence[Detector], batches: list[list[int]], threads: int | None
    ) -> None:
        """Measure open files at each batch size; those that take it run in turns."""
        for batch in dict.fromkeys(b for sizes in batches for b in sizes):
            chosen = [i for i, sizes in enumerate(batches) if batch in sizes]
            entries, opened = [self.entries[i] for i in chosen], [detectors[i] for i in chosen]
            if self.settings.concurrency is None:
                self._measure_latency(entries, opened, batch, threads)
            else:
                self._measure_throughput(entries, opened, batch, threads)

    def _measure_latency(
        self, entries: list[Entry], detectors: list[Detector], batch: int, threads: int | None
    ) -> None:
        files = [
            Timed(d, batch, self.fitted[e.name, batch])
            for e, d in zip(entries, detectors, strict=True)
        ]
        label = f"latency, threads {threads or 'default'}, batch {batch}"
        before = read_cpu_counters()
        measure_latency(
            files,
            self.pictures,
            self.settings,
            now=self.now,
            advance=lambda done, total: self.listener.count(label, done, total),
        )
        usage = usage_between(before, read_cpu_counters())
        for entry, file in zip(entries, files, strict=True):
            latencies = file.latencies()
            network, clock = time_network(file.detector, self.pictures, batch, self.settings)
            self._keep(
                entry,
                file.detector,
                usage,
                description=file.detector.description,
                threads=threads,
                batch=batch,
                mode="latency",
                concurrency=1,
                latencies=latencies,
                sample_rounds=tuple(file.sample_rounds),
                rounds=tuple(file.rounds),
                images_per_s=round(1e3 * batch / latencies["total"].mean, 4),
                network=network,
                network_clock=clock,
            )

    def _measure_throughput(
        self, entries: list[Entry], detectors: list[Detector], batch: int, threads: int | None
    ) -> None:
        """Measure under load; cores are shared out where no number of threads was asked for."""
        jobs = self.settings.concurrency or 1
        each = threads or max(1, usable_cores() // jobs)
        label = f"throughput, {jobs} in flight, threads {each}, batch {batch}"
        with ExitStack() as stack:
            files: list[Loaded] = []
            for entry, detector in zip(entries, detectors, strict=True):
                own = self.fitted[entry.name, batch]
                images = [own[i % len(own)] for i in range(batch)]
                tensor, _ = detector.preprocess([detector.read(path) for path in images])
                feed = detector.feed(tensor.copy(), detector.nms)
                opened = open_loaded(entry, feed, batch, each, self.settings)
                files.append(stack.enter_context(opened))
            self.before_load()
            before = read_cpu_counters()
            measure_throughput(
                files,
                self.settings,
                now=self.now,
                advance=lambda done, total: self.listener.count(label, done, total),
            )
            usage = usage_between(before, read_cpu_counters())
        for entry, detector, file in zip(entries, detectors, files, strict=True):
            self._keep(
                entry,
                detector,
                usage,
                description=file.runner.description,
                threads=each,
                batch=batch,
                mode="throughput",
                concurrency=jobs,
                latencies={"infer": file.latency},
                sample_rounds=tuple(file.sample_rounds),
                rounds=tuple(file.rounds),
                images_per_s=round(file.images_per_s, 4),
            )

    def _keep(self, entry: Entry, detector: Detector, usage: CpuUsage | None, **facts: Any) -> None:
        """Add a measurement with its verdict, which is about `infer`: its work never changes."""
        judged = samples_by_round(facts["latencies"]["infer"].samples_ms, facts["sample_rounds"])
        self.measured.append(
            Measured(
                name=entry.name,
                file=str(entry.path),
                size_bytes=entry.path.stat().st_size if isinstance(entry.path, Path) else 0,
                runtime=entry.runtime,
                precision=detector.target.precision,
                outputs=detector.target.outputs,
                warmup=self.settings.warmup,
                noise=judge_noise(judged, usage),
                cost=self.costs[entry.path],
                random_weights=entry.random_weights,
                **facts,
            )
        )

    def _add_memory(self) -> None:
        """Measure memory last, when no process of ours is timed any more."""
        by_name = {e.name: e for e in self.entries}
        for index, measured in enumerate(self.measured):
            if measured.runtime == "triton":  # its memory is the server's
                continue
            self.listener.count("memory", index, len(self.measured))
            peak = measure_peak_memory(
                by_name[measured.name],
                self.fitted[measured.name, measured.batch],
                threads=measured.threads,
                batch=measured.batch,
                device=self.settings.device,
                gpu=self.settings.gpu_settings_as_dict(),
            )
            if peak is None:
                self.listener.note(f"{measured.name}: its peak memory could not be measured")
            self.measured[index] = dataclasses.replace(measured, peak_memory_mb=peak)
        self.listener.count("memory", len(self.measured), len(self.measured))
