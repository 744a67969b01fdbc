"""What decides between candidates: budgets, dominance, the Pareto front and the winner. Pure.

Measured times are noisy, so that a candidate is only dropped on the way when the intervals leave no
doubt; the front and the winner are told from the medians of the final round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boxwright.measurement.statistics import Rounds, median, median_ratio_interval
from boxwright.tune.records import Budgets

__all__ = [
    "DROP_TOLERANCE",
    "MEMORY_TOLERANCE",
    "TIE_PERCENT",
    "Choice",
    "Point",
    "Rival",
    "choose",
    "dominates",
    "excesses",
    "front",
    "prune",
]

DROP_TOLERANCE = 0.0005  # of mAP50-95: runtimes differ by so much in the order of additions alone
MEMORY_TOLERANCE = 0.02  # a process needs so much more or less when it is started again
TIE_PERCENT = 5.0  # a preferred candidate may be so much slower than the fastest, not more


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate as numbers; None or NaN is what was not measured.

    Attributes:
        name: Of the candidate.
        cost_ms: What is to be small: the median of a call, or of throughput the time of a picture.
        low_ms, high_ms: 95 % interval of it.
        p95_ms: Of a call.
        call_low_ms: Lower end of the 95 % interval of a call's median.
        drop: mAP50-95 lost against FP32.
        memory_mb: Peak memory.
    """

    name: str
    cost_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    p95_ms: float | None = None
    call_low_ms: float | None = None
    drop: float | None = None
    memory_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Rival:
    """A candidate within all budgets.

    Attributes:
        name: Of the candidate.
        rounds: Its cost in ms, round by round, measured in turns with the other rivals.
        simplicity: What is compared among those as fast as each other; smaller is preferred.
    """

    name: str
    rounds: Rounds
    simplicity: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Who wins.

    Attributes:
        winner: Name.
        fastest: Who has the smallest median.
        tied: Who is as good as the fastest, itself left out.
        unsure: Who may be as fast, for all that the noise lets one tell, but is slower by more
            than a tie allows.
    """

    winner: str
    fastest: str
    tied: tuple[str, ...]
    unsure: tuple[str, ...] = ()


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _no_more(a: float | None, b: float | None, share: float, absolute: float) -> bool:
    """Whether a is no more than b, but for a tolerance; two unknown values are equal."""
    if a is None or b is None or not _known(a) or not _known(b):
        return not _known(a) and not _known(b)
    return a <= b * (1.0 + share) + absolute


def _less(a: float | None, b: float | None, share: float, absolute: float) -> bool:
    """Whether a is less than b by more than a tolerance."""
    if a is None or b is None or not _known(a) or not _known(b):
        return False
    return a * (1.0 + share) + absolute < b


def _as_good(a: Point, b: Point) -> bool:
    """Whether a loses no more accuracy and takes no more memory than b."""
    return _no_more(a.drop, b.drop, 0.0, DROP_TOLERANCE) and _no_more(
        a.memory_mb, b.memory_mb, MEMORY_TOLERANCE, 0.0
    )


def dominates(a: Point, b: Point) -> bool:
    """Whether a is no worse than b in everything, and better in something.

    Differences in accuracy and memory below their tolerances count as none.

    >>> dominates(Point("a", 9.0, drop=0.001), Point("b", 10.0, drop=0.001))
    True
    >>> dominates(Point("a", 9.0, drop=0.003), Point("b", 10.0, drop=0.001))
    False
    """
    if a.cost_ms is None or b.cost_ms is None or not _known(a.cost_ms) or not _known(b.cost_ms):
        return _known(a.cost_ms) and not _known(b.cost_ms) and _as_good(a, b)
    if a.cost_ms > b.cost_ms or not _as_good(a, b):
        return False
    return (
        a.cost_ms < b.cost_ms
        or _less(a.drop, b.drop, 0.0, DROP_TOLERANCE)
        or _less(a.memory_mb, b.memory_mb, MEMORY_TOLERANCE, 0.0)
    )


def front(points: Sequence[Point]) -> tuple[str, ...]:
    """Return the names of those that nothing dominates, the fastest first; equals all stay.

    >>> front([Point("a", 10.0, drop=0.0), Point("b", 5.0, drop=0.01), Point("c", 6.0, drop=0.02)])
    ('b', 'a')
    """
    measured = [p for p in points if _known(p.cost_ms)]
    best = [p for p in measured if not any(dominates(o, p) for o in measured)]
    return tuple(p.name for p in sorted(best, key=lambda p: (p.cost_ms or 0.0, p.name)))


def excesses(point: Point, budgets: Budgets, measure: str = "mAP50-95") -> tuple[str, ...]:
    """Return in words what exceeds the budgets; what was not measured keeps none.

    `measure` is the name of the figure that `drop` is of.

    >>> excesses(Point("a", p95_ms=12.0, drop=0.001), Budgets(max_drop=0.01, max_latency_ms=10.0))
    ('p95 12.00 ms, at most 10 allowed',)
    """
    asked = (
        (budgets.max_drop, point.drop, f"loses {{:.4f}} {measure}", "accuracy unknown"),
        (budgets.max_latency_ms, point.p95_ms, "p95 {:.2f} ms", "latency unknown"),
        (budgets.max_memory_mb, point.memory_mb, "peak {:.1f} MB", "memory unknown"),
    )
    found = []
    for limit, value, words, unknown in asked:
        if limit is None:
            continue
        if value is None or not _known(value):
            found.append(unknown)
        elif value > limit:
            found.append(f"{words.format(value)}, at most {limit:g} allowed")
    return tuple(found)


def prune(points: Sequence[Point], budgets: Budgets) -> dict[str, str]:
    """Return who cannot win any more, with the reason; all points were measured in turns.

    Dropped are those without a measurement, those whose median is over the latency budget beyond
    doubt, and those whose optimistic cost (the lower end of its interval) is worse than the
    pessimistic cost of another that is as accurate, takes no more memory and keeps the budgets.
    """
    reasons: dict[str, str] = {}
    limit = budgets.max_latency_ms
    for point in points:
        if not _known(point.cost_ms):
            reasons[point.name] = "it could not be measured"
        elif limit is not None and point.call_low_ms is not None and point.call_low_ms > limit:
            reasons[point.name] = (
                f"its median is at least {point.call_low_ms:.2f} ms, over --max-latency-ms "
                f"{limit:g} beyond doubt"
            )
    alive = [p for p in points if p.name not in reasons]
    able = [p for p in alive if not excesses(p, budgets)]
    for point in alive:
        better = [o for o in able if _beyond_doubt(o, point) and _as_good(o, point)]
        if better:
            best = min(better, key=lambda o: (o.high_ms or 0.0, o.name))
            reasons[point.name] = (
                f"{best.name} is no less accurate and faster beyond doubt "
                f"({best.low_ms:.2f}-{best.high_ms:.2f} ms against "
                f"{point.low_ms:.2f}-{point.high_ms:.2f})"
            )
    return reasons


def _beyond_doubt(a: Point, b: Point) -> bool:
    """Whether a is faster than b: their intervals do not meet."""
    if a.high_ms is None or b.low_ms is None:
        return False
    return a.high_ms < b.low_ms


def choose(rivals: Sequence[Rival], *, seed: int = 0) -> Choice | None:
    """Return who wins: the fastest, or who is simpler among those that are as fast.

    As fast is whoever is at most 5 % slower by the median, and whose 95 % interval of the ratio,
    paired by round, holds 1 (or who has too few rounds to tell). None where nobody is within the
    budgets.

    >>> quick = Rival("quick", [[9.8], [10.1]] * 3, (2,))
    >>> choose([quick, Rival("simple", [[10.0]] * 6, (1,))])
    Choice(winner='simple', fastest='quick', tied=('simple',), unsure=())
    """
    if not rivals:
        return None
    medians: Mapping[str, float] = {
        r.name: median([v for samples in r.rounds for v in samples]) for r in rivals
    }
    ordered = sorted(rivals, key=lambda r: (medians[r.name], r.simplicity, r.name))
    fastest = ordered[0]
    alike = [r for r in ordered[1:] if _within_noise(fastest, r, seed)]
    limit = medians[fastest.name] * (1.0 + TIE_PERCENT / 100.0)
    tied = [r for r in alike if medians[r.name] <= limit]
    winner = min([fastest, *tied], key=lambda r: (r.simplicity, medians[r.name]))
    return Choice(
        winner.name,
        fastest.name,
        tuple(r.name for r in tied),
        tuple(r.name for r in alike if r not in tied),
    )


def _within_noise(fastest: Rival, other: Rival, seed: int) -> bool:
    interval = median_ratio_interval(fastest.rounds, other.rounds, seed=seed)
    return interval is None or interval[1] <= 1.0 <= interval[2]
