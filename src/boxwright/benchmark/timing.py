"""Latency: the whole path from picture file to detections, one call at a time, span by span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.backends import Launching, StepTimes, Stepwise
from boxwright.benchmark.settings import BenchmarkSettings
from boxwright.benchmark.turns import block_sizes, turn_orders
from boxwright.detector import Detector
from boxwright.measurement.records import Round
from boxwright.types import SPANS, FloatArray, Latency, Span

__all__ = ["Timed", "measure_latency", "time_call", "time_network"]

_SECONDS_ROUNDS = 20  # how many rounds share the seconds of a file
_LEAST_ROUNDS = 5
_DIGITS = 4  # of a millisecond


@dataclass(slots=True)
class Timed:
    """The samples of one file, as they come."""

    detector: Detector
    batch: int
    pictures: Sequence[Path] = ()  # its own, in the place of those of all files
    samples: dict[Span, list[float]] = field(default_factory=lambda: {s: [] for s in SPANS})
    sample_rounds: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    @property
    def measured_s(self) -> float:
        """Seconds that the samples took."""
        return sum(self.samples["total"]) / 1e3

    def call(self, pictures: Sequence[Path], index: int) -> dict[Span, float]:
        """Time the call number `index`; the same number means the same pictures for all files."""
        pictures = self.pictures or pictures
        first = index * self.batch
        return time_call(
            self.detector, [pictures[(first + i) % len(pictures)] for i in range(self.batch)]
        )

    def keep(self, spans: dict[Span, float], number: int) -> None:
        for span, value in spans.items():
            self.samples[span].append(round(value, _DIGITS))
        self.sample_rounds.append(number)

    def latencies(self) -> dict[Span, Latency]:
        return {s: Latency(s, self.batch, tuple(v)) for s, v in self.samples.items()}


def time_call(detector: Detector, pictures: Sequence[Path]) -> dict[Span, float]:
    """Detect in picture files as `detector(pictures)` does, and return what each span took in ms.

    `copy_in` and `copy_out` are 0 where the runtime reads the prepared batch in place and its
    outputs have the type that postprocessing wants, so that nothing is copied.
    """
    clock = perf_counter
    begin = clock()
    images = [detector.read(path) for path in pictures]
    read = clock()
    batch, places = detector.preprocess(images)
    prepared = clock()
    feed = detector.feed(batch, detector.nms)
    fed = clock()
    outputs, steps = _infer(detector, feed)
    done = clock()
    wanted = _single(outputs)
    copied = clock()
    detector.postprocess(wanted, places)
    end = clock()
    cast_in = (fed - prepared) * 1e3 if _is_copy(feed, batch) else 0.0
    cast_out = 0.0 if wanted is outputs else (copied - done) * 1e3
    return {
        "read": (read - begin) * 1e3,
        "preprocess": (prepared - read) * 1e3,
        "copy_in": cast_in + steps.copy_in_ms,
        "infer": steps.infer_ms,
        "copy_out": cast_out + steps.copy_out_ms,
        "postprocess": (end - copied) * 1e3,
        "total": (end - begin) * 1e3,
    }


def time_network(
    detector: Detector, pictures: Sequence[Path], batch: int, settings: BenchmarkSettings
) -> tuple[Latency | None, str]:
    """Time the network alone, its input on the GPU already, after everything else.

    Returns:
        As many samples as `settings` counts, and what timed them; None and "" on the CPU.
    """
    backend = detector.backend
    if not isinstance(backend, Launching) or not backend.launch_clock:
        return None, ""
    images = [detector.read(pictures[i % len(pictures)]) for i in range(batch)]
    tensor, _ = detector.preprocess(images)
    feed = detector.feed(tensor, detector.nms)
    backend.launch_times(feed, settings.warmup)
    samples = backend.launch_times(feed, settings.call_count)
    return Latency("infer", batch, tuple(round(s, _DIGITS) for s in samples)), backend.launch_clock


def _infer(
    detector: Detector, feed: dict[str, npt.NDArray[Any]]
) -> tuple[dict[str, npt.NDArray[Any]], StepTimes]:
    backend = detector.backend
    if isinstance(backend, Stepwise):
        return backend.infer_in_steps(feed)
    start = perf_counter()
    outputs = backend.infer(feed)
    return outputs, StepTimes(0.0, (perf_counter() - start) * 1e3, 0.0)


def _is_copy(feed: dict[str, npt.NDArray[Any]], batch: FloatArray) -> bool:
    """Whether the batch was cast on its way into the feed."""
    return all(value is not batch for value in feed.values())


def _single(outputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return half-precision outputs as float32, or the very same mapping where there are none."""
    if all(value.dtype != np.float16 for value in outputs.values()):
        return outputs
    return {
        name: value.astype(np.float32) if value.dtype == np.float16 else value
        for name, value in outputs.items()
    }


def measure_latency(
    files: Sequence[Timed],
    pictures: Sequence[Path],
    settings: BenchmarkSettings,
    *,
    now: Callable[[], float],
    advance: Callable[[int, int], None],
) -> None:
    """Warm the files up and fill in their samples, in turns.

    Args:
        files: Open, all with one batch size.
        pictures: What to look at, over and over.
        settings: How long, and the seed of the order.
        now: Seconds since the benchmark began.
        advance: Told (rounds done, rounds to come).
    """
    for file in files:
        for index in range(settings.warmup):
            file.call(pictures, index)
    sizes = block_sizes(settings.call_count)
    total = len(sizes) if settings.seconds is None else _SECONDS_ROUNDS
    orders = turn_orders(len(files), settings.seed)
    for number in count():
        if _is_enough(number, files, settings, total):
            break
        for place in next(orders):
            file = files[place]
            if len(files) > 1:
                sleep(settings.settle_s)
                file.call(pictures, len(file.sample_rounds))  # the first after a switch is lost
            file.rounds.append(Round(number, round(now(), 3)))
            if settings.seconds is None:
                _run_block(file, pictures, number, sizes[number], 0.0)
            else:
                _run_block(file, pictures, number, 1, settings.seconds / _SECONDS_ROUNDS)
        advance(min(number + 1, total), total)


def _is_enough(
    number: int, files: Sequence[Timed], settings: BenchmarkSettings, total: int
) -> bool:
    if settings.seconds is None:
        return number >= total
    return number >= _LEAST_ROUNDS and all(f.measured_s >= settings.seconds for f in files)


def _run_block(
    file: Timed, pictures: Sequence[Path], number: int, calls: int, seconds: float
) -> None:
    """Take at least `calls` samples, and as many as fit into `seconds`."""
    until = perf_counter() + seconds
    taken = 0
    while taken < calls or perf_counter() < until:
        file.keep(file.call(pictures, len(file.sample_rounds)), number)
        taken += 1
