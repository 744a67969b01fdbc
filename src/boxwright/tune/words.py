"""What came of a tuning, in words and tables. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from boxwright.measurement.records import SpeedUp
from boxwright.measurement.tables import Table
from boxwright.tune.front import TIE_PERCENT, Choice
from boxwright.tune.records import Budgets, Candidate, TuneResult

__all__ = ["dropped_table", "result_table", "summary_lines", "why_none", "why_winner"]


def why_winner(winner: Candidate, choice: Choice, candidates: Sequence[Candidate]) -> str:
    """Return how the winner was chosen, in one sentence."""
    figures = f"{winner.name}: {_speed_words(winner)}"
    if winner.drop is not None:
        figures += f", {winner.measure} {winner.figure:.4f} (drop {_signed(winner.drop)})"
    doubt = ""
    if choice.unsure:
        doubt = (
            f"; in this noise {_names(choice.unsure)} may be as fast as {choice.fastest}: measure "
            "longer, or on an idle machine"
        )
    if not choice.tied:
        rivals = sum(c.eligible for c in candidates)
        alone = "the only one" if rivals == 1 else f"the fastest of the {rivals}"
        return f"{figures}; {alone} in the final round that may win{doubt}"
    rule = "fewer threads, then FP32 before FP16 before INT8, then ONNX Runtime, then raw outputs"
    if winner.name == choice.fastest:
        return (
            f"{figures}; the fastest, but {_names(choice.tied)} cannot be told from it (within "
            f"noise, and at most {TIE_PERCENT:g} % slower); it is preferred for {rule}{doubt}"
        )
    return (
        f"{figures}; it cannot be told from the fastest, {choice.fastest} (within noise, and at "
        f"most {TIE_PERCENT:g} % slower), and is preferred for {rule}{doubt}"
    )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}"


def _speed_words(candidate: Candidate) -> str:
    measured = candidate.measured
    if measured is None:
        return "not timed"
    if measured.mode == "throughput":
        return f"{measured.images_per_s:.1f} images/s"
    return f"p50 {measured.main.p50:.2f} ms, p95 {measured.main.p95:.2f} ms"


def why_none(candidates: Sequence[Candidate], budgets: Budgets) -> tuple[str, str, str]:
    """Return what was asked, the best that was found, and what to do, when nobody wins."""
    tried = [c for c in candidates if not c.baseline]
    asked = budgets.words() or "tune"
    proven = [c for c in tried if c.sha256]
    if not proven:
        return asked, "no file passed its checks", "see why with --verbose"
    best = min(proven, key=lambda c: (_misses(c, budgets), _cost(c), c.name))
    parts = [_speed_words(best)]
    if best.drop is not None:
        parts.append(f"drop {best.drop:.4f}")
    if best.peak_memory_mb is not None:
        parts.append(f"{best.peak_memory_mb:.0f} MB")
    found = (
        f"none of {len(tried)} candidates keeps it; the nearest is {best.name} ({', '.join(parts)})"
    )
    return asked, found, "raise what it exceeds, or start from a smaller model or --image-size"


def _misses(candidate: Candidate, budgets: Budgets) -> float:
    """Return by how much a candidate exceeds the budgets, as a sum of shares; unknown is much."""
    p95 = candidate.measured.main.p95 if candidate.measured else None
    pairs = (
        (candidate.drop, budgets.max_drop),
        (p95, budgets.max_latency_ms),
        (candidate.peak_memory_mb, budgets.max_memory_mb),
    )
    total = 0.0
    for value, limit in pairs:
        if limit is None:
            continue
        total += 1.0 if value is None else max(0.0, value - limit) / max(limit, 1e-4)
    return total


def _cost(candidate: Candidate) -> float:
    measured = candidate.measured
    if measured is None:
        return float("inf")
    return 1e3 / measured.images_per_s if measured.images_per_s else float("inf")


def result_table(result: TuneResult) -> Table:
    """Return a row for each candidate of the final round, the fastest first, then the baselines."""
    load = result.sweep.objective == "throughput"
    rows = [c for c in result.candidates if c.dropped is None and c.measured is not None]
    bases = [c for c in rows if c.baseline]
    measure = next((c.measure for c in rows if c.figure is not None), "mAP50-95")
    head = [
        "file", "runtime", "threads", *(["in flight"] if load else []), "p50 ms", "p95 ms",
        "images/s", measure, "drop (95 %)", "peak MB", "front", "budgets",
        *(f"x {_base_words(b)} (95 %)" for b in bases), "noise",
    ]  # fmt: skip
    cells = tuple(_row(c, bases, load, c is result.winner) for c in rows)
    title = "final round: " + ("infer under load" if load else "total, per call")
    if result.sweep.batch > 1:
        title += f", batch {result.sweep.batch}"
    return Table(title, tuple(head), cells)


def _base_words(base: Candidate) -> str:
    which = base.combination
    return "source in PyTorch" if which.runtime == "pytorch" else "FP32 in ONNX Runtime"


def _row(
    candidate: Candidate, bases: Sequence[Candidate], load: bool, wins: bool
) -> tuple[str, ...]:
    which, measured = candidate.combination, candidate.measured
    assert measured is not None, "only measured ones have a row"
    mark = "~" if measured.noise.verdict == "noisy" else ""
    by_base = {s.baseline: s for s in candidate.speed_ups}
    budgets = "baseline" if candidate.baseline else "over" if candidate.over else "within"
    return (
        f"{which.file}{' <- winner' if wins else ''}",
        which.runtime,
        str(which.threads or "default"),
        *([str(which.in_flight)] if load else []),
        f"{mark}{measured.main.p50:.2f}",
        f"{mark}{measured.main.p95:.2f}",
        f"{mark}{measured.images_per_s:.1f}",
        "-" if candidate.figure is None else f"{candidate.figure:.4f}",
        _drop(candidate),
        "-" if candidate.peak_memory_mb is None else f"{candidate.peak_memory_mb:.0f}",
        "yes" if candidate.on_front else "-",
        budgets,
        *(_ratio(by_base.get(b.name), mark) for b in bases),
        "NOISY" if mark else measured.noise.verdict,
    )


def _drop(candidate: Candidate) -> str:
    """Word the drop; its interval is that of the change with the sign turned."""
    if candidate.drop is None:
        return "-"
    text, change = _signed(candidate.drop), candidate.change
    if change is None or change.low is None or change.high is None:
        return text
    return f"{text} ({_signed(-change.high)} to {_signed(-change.low)})"


def _signed(value: float) -> str:
    """Word a change of mAP; what rounds to nothing has no minus.

    >>> _signed(-0.00001), _signed(-0.01)
    ('+0.0000', '-0.0100')
    """
    return f"{round(value, 4) + 0.0:+.4f}"


def _ratio(faster: SpeedUp | None, mark: str) -> str:
    if faster is None:
        return "-"
    text = f"{mark}{faster.ratio:.2f}"
    if faster.low is None or faster.high is None:
        return f"{text} (too few rounds)"
    note = ", within noise" if faster.within_noise else ""
    return f"{text} ({faster.low:.2f}-{faster.high:.2f}{note})"


def dropped_table(result: TuneResult) -> Table:
    """Return a row for each candidate that left before the final round, with the reason."""
    rows = tuple(
        (
            c.name,
            c.dropped.stage,
            f"{c.measured.main.p50:.2f}" if c.measured else "-",
            "-" if c.drop is None else _signed(c.drop),
            c.dropped.reason,
        )
        for c in result.candidates
        if c.dropped is not None
    )
    return Table("dropped", ("candidate", "in", "p50 ms", "drop", "dropped because"), rows)


def summary_lines(result: TuneResult) -> list[str]:
    """Return what stands below the table: noise, shared figures, notes, winner and commands."""
    lines = []
    if result.final is not None:
        lines += [
            f"noisy: {m.name}: {'; '.join(m.noise.reasons)} -> {m.noise.advice}"
            for m in result.final.noisy
        ]
        lines.append(f"pictures: {result.pictures}")
    if result.accuracy:
        data = result.data
        lines.append(
            f"{result.accuracy[0][2].measure} on {data['name']} ({data['pictures']} pictures, "
            f"{data['objects']} objects) was measured on raw files; an end-to-end file shares the "
            "figure of its body, since its verification proved that both detect the same at the "
            "operating thresholds"
        )
    lines += [f"note: {note}" for note in result.notes]
    gone = sum(c.dropped is not None for c in result.candidates)
    if gone:
        lines.append(f"{gone} candidates were dropped before the final round; --verbose says why")
    if result.winner is not None:
        lines.append(f"winner: {result.why}")
        lines += [f"{what}: {line}" for what, line in result.commands]
    return lines
