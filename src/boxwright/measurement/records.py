"""The records of a benchmark: what was measured, on what, and how far to trust it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from boxwright.types import Latency, Span

__all__ = [
    "SCHEMA",
    "BenchmarkResult",
    "Measured",
    "Mode",
    "ModelCost",
    "Noise",
    "Round",
    "SpeedUp",
]

SCHEMA = 1
Mode: TypeAlias = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of a file: a block of calls without interruption.

    Attributes:
        number: From 0; the same number means the same turn of every file.
        started_s: Seconds from the start of the benchmark.
        images_per_s: In throughput mode, over the steady part of the block.
    """

    number: int
    started_s: float
    images_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """How far numbers can be believed.

    Attributes:
        verdict: `quiet`, `noisy`, or `unknown` where too little could be looked at.
        reasons: What was seen, in words; empty unless noisy.
        advice: What to do about it.
        drift_percent: How much slower the last third of the rounds was; None with under three.
        cv_percent: Standard deviation of the judged samples as a share of their mean.
        steal_percent: Share of the cores' time that the hypervisor took; None where not told.
        other_percent: Share of the cores' time that other programs used; None where not told.
    """

    verdict: Literal["quiet", "noisy", "unknown"]
    reasons: tuple[str, ...] = ()
    advice: str = ""
    drift_percent: float | None = None
    cv_percent: float = 0.0
    steal_percent: float | None = None
    other_percent: float | None = None


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """How many times faster than the baseline: ratio of medians and its 95 % interval.

    Attributes:
        baseline: Name of what was compared with.
        ratio: Over 1 is faster.
        low, high: Bootstrap interval, paired by round; None with fewer than five rounds.
    """

    baseline: str
    ratio: float
    low: float | None
    high: float | None

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 1, or there is none."""
        if self.low is None or self.high is None:
            return True
        return self.low <= 1.0 <= self.high


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model costs by counting.

    Attributes:
        parameters: Weights and biases of layers.
        flops: Of one picture at `input_size`: two per multiply-add; None where the graph has
            shapes that cannot be told.
        input_size: (height, width) in pixels.
    """

    parameters: int
    flops: int | None
    input_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Measured:
    """One file in one setting.

    Attributes:
        name: As tables show it; unique among the files of a benchmark.
        file: Path as it was given.
        size_bytes: Of the file.
        runtime: Name of the runtime.
        description: Runtime, version, device and threads, in words.
        precision: Of the network's body, as the file says.
        outputs: `raw` or `end2end`.
        threads: CPU threads of one inference; None is the runtime's default.
        batch: Pictures in one call.
        mode: `latency`: the whole path from picture file to detections, one call at a time;
            `throughput`: inference alone, `concurrency` calls in flight.
        concurrency: Calls in flight at once.
        warmup: Calls before the first sample.
        latencies: By span; `throughput` has `infer` alone, under load.
        sample_rounds: Round number of each sample.
        rounds: The turns.
        images_per_s: Pictures over time; in `throughput` the median of the rounds.
        noise: The verdict.
        peak_memory_mb: Most resident memory of a fresh process that does nothing else, in MB
            (10^6 bytes); None when it was not measured.
        speed_up: Against the baseline in the same setting; None for the baseline itself.
        cost: Parameters and FLOPs; None where they were not counted.
        random_weights: The file was made of a configuration, so it has no accuracy.
        network: The network alone, its input on the GPU already; None on the CPU, and in throughput
            mode.
        network_clock: What `network` was timed by, in words.
    """

    name: str
    file: str
    size_bytes: int
    runtime: str
    description: str
    precision: str
    outputs: str
    threads: int | None
    batch: int
    mode: Mode
    concurrency: int
    warmup: int
    latencies: Mapping[Span, Latency]
    sample_rounds: tuple[int, ...]
    rounds: tuple[Round, ...]
    images_per_s: float
    noise: Noise
    peak_memory_mb: float | None = None
    speed_up: SpeedUp | None = None
    cost: ModelCost | None = None
    random_weights: bool = False
    network: Latency | None = None
    network_clock: str = ""

    @property
    def main_span(self) -> Span:
        """What users wait for: `total`, or `infer` in throughput mode."""
        return "total" if "total" in self.latencies else "infer"

    @property
    def main(self) -> Latency:
        """The latency of `main_span`."""
        return self.latencies[self.main_span]

    @property
    def setting(self) -> tuple[int | None, int, Mode, int]:
        """What must be equal for two measurements to be compared."""
        return self.threads, self.batch, self.mode, self.concurrency

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types; every latency with its raw samples."""
        return {
            **dataclasses.asdict(dataclasses.replace(self, latencies={}, network=None)),
            "network": self.network.as_dict() if self.network else None,
            "latencies": {span: latency.as_dict() for span, latency in self.latencies.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        """Read what `as_dict` wrote."""
        values = dict(data)
        noise, cost, faster = values["noise"], values["cost"], values["speed_up"]
        values["latencies"] = {
            span: Latency.from_dict(latency) for span, latency in values["latencies"].items()
        }
        if values.get("network"):
            values["network"] = Latency.from_dict(values["network"])
        values["sample_rounds"] = tuple(values["sample_rounds"])
        values["rounds"] = tuple(Round(**r) for r in values["rounds"])
        values["noise"] = Noise(**{**noise, "reasons": tuple(noise["reasons"])})
        values["speed_up"] = SpeedUp(**faster) if faster else None
        if cost:
            values["cost"] = ModelCost(**{**cost, "input_size": tuple(cost["input_size"])})
        return cls(**values)


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Everything that a benchmark measured, and on what.

    Attributes:
        started_at: Wall clock, ISO 8601 with time zone.
        environment: Machine, conditions before the start, and library versions.
        settings: What was asked for, in JSON types.
        pictures: What was looked at, in words.
        measured: One for each file and setting.
    """

    started_at: str
    environment: Mapping[str, str]
    settings: Mapping[str, Any]
    pictures: str
    measured: tuple[Measured, ...]
    schema: int = field(default=SCHEMA)

    @property
    def noisy(self) -> tuple[Measured, ...]:
        """The measurements that are not to be believed."""
        return tuple(m for m in self.measured if m.noise.verdict == "noisy")

    def over_budget(self, max_latency_ms: float) -> tuple[Measured, ...]:
        """Return what exceeds a budget: the p95 of `total` (under load: of `infer`) in ms."""
        return tuple(m for m in self.measured if m.main.p95 > max_latency_ms)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "schema": self.schema,
            "started_at": self.started_at,
            "environment": dict(self.environment),
            "settings": dict(self.settings),
            "pictures": self.pictures,
            "measured": [m.as_dict() for m in self.measured],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BenchmarkResult:
        """Read what `as_dict` wrote."""
        values = dict(data)
        values["measured"] = tuple(Measured.from_dict(m) for m in values["measured"])
        return cls(**values)
