"""Accuracy and latency of two reports, held against each other as far as that is fair."""

from __future__ import annotations

import math
from collections.abc import Mapping

from boxwright.comparison.records import (
    AccuracyChange,
    AccuracyVerdict,
    ClassChange,
    LatencyChange,
    LatencyVerdict,
)
from boxwright.measurement.noise import LIMITS
from boxwright.measurement.records import BenchmarkResult, Measured
from boxwright.measurement.statistics import independent_ratio_interval, median, rounds_of
from boxwright.report import Evaluated, Report
from boxwright.significance import (
    LEAST_PICTURES,
    Matches,
    change,
    default_resamples,
    difference_of_pictures,
    map_of,
)
from boxwright.types import Accuracy

__all__ = ["MatchesByFile", "accuracy_changes", "latency_changes"]

MatchesByFile = Mapping[tuple[str, str], Matches]

_MOST_CLASSES = 5
_LEAST_CLASS_CHANGE = 0.005  # of AP50-95; less does not stand out
_SAME_FIGURE = 1e-6
# A quiet run may drift so far, so one run each cannot tell less; no interval of theirs shows it.
_BETWEEN_RUNS = 1.0 + LIMITS.drift_percent / 100
# What else the time of a call depends on; clocks and load are judged as noise.
_MACHINE = ("processor", "cores", "cores_quota", "instructions", "governor")


def accuracy_changes(
    before: Report,
    after: Report,
    before_matches: MatchesByFile | None,
    after_matches: MatchesByFile | None,
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> tuple[tuple[AccuracyChange, ...], tuple[str, ...]]:
    """Compare what both reports measured of a file in a runtime, on the same data.

    Args:
        before, after: The reports.
        before_matches, after_matches: By (file, runtime), for intervals; None where none were kept.
        resamples: Draws of the bootstrap; None takes what the size of the data allows.
        seed: Of the draws.

    Returns:
        The changes, and what could not be compared, in words.
    """
    first = {(e.file, e.runtime): e for e in before.accuracy}
    second = {(e.file, e.runtime): e for e in after.accuracy}
    changes: list[AccuracyChange] = []
    notes = _absent("accuracy", bool(first), bool(second))
    if not notes:
        notes = [
            f"only run {'B' if key in second else 'A'} measured accuracy of {key[0]} in {key[1]}"
            for key in dict.fromkeys([*first, *second])
            if (key in first) != (key in second)
        ]
    for key, new in second.items():
        old = first.get(key)
        if old is None:
            continue
        note = _not_comparable(old.accuracy, new.accuracy)
        if note:
            notes.append(note)
            continue
        matches = [m.get(key) if m else None for m in (before_matches, after_matches)]
        changes.append(_accuracy_change(old, new, matches[0], matches[1], resamples, seed))
    return tuple(changes), tuple(dict.fromkeys(notes))


def _absent(what: str, first: bool, second: bool) -> list[str]:
    """Say which of the runs has no figures; none where neither or both have."""
    if first == second:
        return []
    return [f"{what} is not compared: run {'B' if first else 'A'} has none"]


def _not_comparable(before: Accuracy, after: Accuracy) -> str:
    if before.fingerprint != after.fingerprint:
        same = " (of the same name)" if before.dataset == after.dataset else ""
        return (
            "accuracy is not compared: run A measured on "
            f"{before.dataset}, run B on {after.dataset}, which are different data{same}"
        )
    if before.measure != after.measure:
        return f"accuracy is not compared: run A measured {before.measure}, run B {after.measure}"
    if before.figure is None or after.figure is None:
        return f"accuracy is not compared: {after.dataset} shows no objects"
    return ""


def _accuracy_change(
    before: Evaluated,
    after: Evaluated,
    before_matches: Matches | None,
    after_matches: Matches | None,
    resamples: int | None,
    seed: int,
) -> AccuracyChange:
    old, new = before.accuracy, after.accuracy
    assert old.figure is not None and new.figure is not None
    notes = []
    if old.evaluation != new.evaluation:
        notes.append("the curves were measured at other settings")
    if old.pictures != new.pictures:
        notes.append(f"run A measured {old.pictures} pictures, run B {new.pictures}")
    low = high = None
    verdict: AccuracyVerdict = "unknown"
    why = _no_interval(old, new, before_matches, after_matches)
    if why:
        notes.append(f"significance unknown: {why}")
    else:
        assert before_matches is not None and after_matches is not None
        count = resamples or default_resamples(before_matches, after_matches)
        found = change(after_matches, before_matches, before.file, seed, count)
        low, high = found.low, found.high
        if low is None or high is None:
            notes.append(f"significance unknown: under {LEAST_PICTURES} pictures show objects")
        else:
            verdict = "better" if low > 0 else "worse" if high < 0 else "no significant change"
    return AccuracyChange(
        after.file, after.runtime, old.figure, new.figure, low, high, verdict,
        "; ".join(notes), (old.precision, new.precision), (old.recall, new.recall),
        (old.f1, new.f1), _class_changes(old, new), new.measure,
    )  # fmt: skip


def _no_interval(
    before: Accuracy, after: Accuracy, first: Matches | None, second: Matches | None
) -> str:
    """Return why there can be no interval, or ""."""
    for run, matches, accuracy in (("A", first, before), ("B", second, after)):
        if matches is None:
            return f"run {run} kept no matches of it"
        own = map_of(matches)
        figure = accuracy.figure
        fits = matches.fingerprint == accuracy.fingerprint
        if figure is None or not fits or not math.isclose(own, figure, abs_tol=_SAME_FIGURE):
            return f"the matches of run {run} are not of its report"
    assert first is not None and second is not None
    return difference_of_pictures(first, second)


def _class_changes(before: Accuracy, after: Accuracy) -> tuple[ClassChange, ...]:
    """Return the classes whose AP changed most, the largest change first."""
    shared = [
        ClassChange(name, new.objects, before.per_class[name].ap50_95, new.ap50_95)
        for name, new in after.per_class.items()
        if name in before.per_class
    ]
    moved = [c for c in shared if abs(c.after - c.before) >= _LEAST_CLASS_CHANGE]
    moved.sort(key=lambda c: -abs(c.after - c.before))
    return tuple(moved[:_MOST_CLASSES])


def latency_changes(
    before: Report, after: Report, *, seed: int = 0
) -> tuple[tuple[LatencyChange, ...], tuple[str, ...]]:
    """Compare what both reports timed of the same file in the same runtime and setting.

    Returns:
        The changes, and what could not be compared, in words.
    """
    old, new = before.benchmark, after.benchmark
    if old is None or new is None:
        return (), tuple(_absent("latency", old is not None, new is not None))
    threads = [{m.threads for m in result.measured} for result in (old, new)]
    single = len(threads[0]) == len(threads[1]) == 1  # then files meet even where it differs
    first, second = _by_setting(old, not single), _by_setting(new, not single)
    notes = []
    for run, own, other in (("A", first, second), ("B", second, first)):
        alone = [_setting_text(m) for key, m in own.items() if key not in other]
        if alone:
            notes.append(f"only run {run} timed {', '.join(alone)}")
    common = _other_conditions(before, after, old, new)
    changes = [
        _latency_change(key[0], first[key], measured, common, seed)
        for key, measured in second.items()
        if key in first
    ]
    return tuple(changes), tuple(notes)


_Setting = tuple[str, str, int | None, int, str, int]


def _by_setting(result: BenchmarkResult, by_threads: bool) -> dict[_Setting, Measured]:
    """Return the measurements by what must be equal; a file counts by its name, not its folder."""
    plain = {m.name: m.name.removesuffix(f" ({m.runtime})") for m in result.measured}
    short = {name: text.rsplit("/", 1)[-1] for name, text in plain.items()}
    names = short if len(set(short.values())) == len(set(plain.values())) else plain
    found: dict[_Setting, Measured] = {}
    for m in result.measured:
        threads = m.threads if by_threads else None
        found[names[m.name], m.runtime, threads, m.batch, m.mode, m.concurrency] = m
    return found


def _setting_text(measured: Measured) -> str:
    threads = f"threads {measured.threads}, " if measured.threads else ""
    return f"{measured.name} in {measured.runtime} ({threads}batch {measured.batch})"


def _other_conditions(
    before: Report, after: Report, old: BenchmarkResult, new: BenchmarkResult
) -> tuple[str, ...]:
    """Say what of the machine differs, as it changes the time of every call."""
    first, second = (
        {**r.environment, **result.environment} for r, result in ((before, old), (after, new))
    )
    pairs = [(name, first.get(name, "none"), second.get(name, "none")) for name in _MACHINE]
    pairs.append(("GPU", _gpu(first), _gpu(second)))
    reasons = [f"other {name}: {a} and {b}" for name, a, b in pairs if a != b]
    if old.pictures != new.pictures:
        reasons.append(f"other pictures: {old.pictures} and {new.pictures}")
    return tuple(reasons)


def _gpu(environment: Mapping[str, str]) -> str:
    """Return name and driver; the clocks behind them change all the time."""
    return ",".join(environment.get("gpu0", "none").split(",")[:2])


def _latency_change(
    file: str, before: Measured, after: Measured, common: tuple[str, ...], seed: int
) -> LatencyChange:
    rounds = [rounds_of(m) for m in (before, after)]
    old, new = (median([v for r in side for v in r]) for side in rounds)
    found = independent_ratio_interval(rounds[1], rounds[0], seed=seed)
    reasons = list(common)
    if before.threads != after.threads:
        old_threads, new_threads = (m.threads or "default" for m in (before, after))
        reasons.append(f"other threads: {old_threads} and {new_threads}")
    if before.description != after.description:
        reasons.append(f"other runtime: {before.description} and {after.description}")
    for run, measured in (("A", before), ("B", after)):
        if measured.noise.verdict == "noisy":
            reasons.append(f"run {run} was noisy: {'; '.join(measured.noise.reasons)}")
    if found is None:
        reasons.append("too few rounds for an interval")
    ratio, low, high = found or (new / old, None, None)
    verdict: LatencyVerdict = "undecided"
    if not reasons and low is not None and high is not None:
        slower = low > 1 and ratio > _BETWEEN_RUNS
        faster = high < 1 and 1 / ratio > _BETWEEN_RUNS
        verdict = "slower" if slower else "faster" if faster else "no significant change"
    return LatencyChange(
        file, after.runtime, after.threads, after.batch, after.mode, after.concurrency,
        after.main_span, old, new, ratio, low, high, verdict, tuple(reasons),
    )  # fmt: skip
