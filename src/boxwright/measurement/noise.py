"""Whether a measurement can be believed: drift, spread, stolen time and other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from boxwright.machine import CpuUsage
from boxwright.measurement.records import Noise
from boxwright.measurement.statistics import Rounds, median
from boxwright.types import Latency

__all__ = ["LIMITS", "NoiseLimits", "drift_percent", "judge_noise"]

_LEAST_CORE_SECONDS = 1.0  # the system counts in ticks of 10 ms; less time tells nothing


@dataclass(frozen=True, slots=True)
class NoiseLimits:
    """What is still quiet; docs/benchmark.md prints these numbers.

    Attributes:
        drift_percent: Between the median of the first and of the last third of the rounds.
        cv_percent: Standard deviation of a sample, as a share of the mean.
        steal_percent: Of the cores' time, taken by the hypervisor.
        other_percent: Of the cores' time, used by other programs.
    """

    drift_percent: float = 5.0
    cv_percent: float = 10.0
    steal_percent: float = 1.0
    other_percent: float = 5.0


LIMITS = NoiseLimits()


def drift_percent(rounds: Rounds) -> float | None:
    """Return by how much the last third of the rounds is slower than the first (medians), in %.

    None with fewer than three rounds.

    >>> drift_percent([[10.0], [10.0], [10.5], [11.0]])
    10.0
    """
    third = len(rounds) // 3
    if third == 0:
        return None
    first = median([v for r in rounds[:third] for v in r])
    last = median([v for r in rounds[-third:] for v in r])
    return round(100.0 * (last / first - 1.0), 3) if first > 0 else None


def judge_noise(rounds: Rounds, usage: CpuUsage | None, limits: NoiseLimits = LIMITS) -> Noise:
    """Return the verdict on the samples of one span, whose work is the same every time.

    Args:
        rounds: Samples of each round, in ms.
        usage: What the cores did meanwhile; None where the system does not tell.
        limits: What is still quiet.
    """
    samples = tuple(v for r in rounds for v in r)
    cv = Latency("infer", 1, samples).cv_percent
    drift = drift_percent(rounds)
    if usage is not None and usage.seconds < _LEAST_CORE_SECONDS:
        usage = None
    reasons: list[str] = []
    if drift is not None and abs(drift) > limits.drift_percent:
        direction = "slower" if drift > 0 else "faster"
        reasons.append(f"drift: the last third of the rounds is {abs(drift):.1f} % {direction}")
    if cv > limits.cv_percent:
        reasons.append(f"spread: the samples vary by {cv:.1f} % (standard deviation)")
    if usage is not None and usage.steal_percent > limits.steal_percent:
        reasons.append(f"steal: the hypervisor took {usage.steal_percent:.1f} % of the cores' time")
    if usage is not None and usage.other_percent > limits.other_percent:
        reasons.append(f"load: other programs used {usage.other_percent:.1f} % of the cores' time")
    return Noise(
        verdict="noisy" if reasons else _verdict(usage, drift, len(samples)),
        reasons=tuple(reasons),
        advice=_advice(reasons),
        drift_percent=drift,
        cv_percent=round(cv, 3),
        steal_percent=round(usage.steal_percent, 3) if usage else None,
        other_percent=round(usage.other_percent, 3) if usage else None,
    )


def _verdict(
    usage: CpuUsage | None, drift: float | None, samples: int
) -> Literal["quiet", "unknown"]:
    """Return `quiet` only where everything could be looked at."""
    return "unknown" if usage is None or drift is None or samples < 2 else "quiet"


def _advice(reasons: Sequence[str]) -> str:
    """Return what to do about what was seen."""
    advice = {
        "load": "stop other programs",
        "steal": "use a machine that is not shared",
        "drift": "let it warm up longer, or fix its clock",
        "spread": "take more samples on an idle machine",
    }
    seen = {reason.split(":")[0] for reason in reasons}
    return "; ".join(text for kind, text in advice.items() if kind in seen)
