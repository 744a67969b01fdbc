"""Two runs, held against each other: what changed, and whether that means anything. Pure."""

from __future__ import annotations

from boxwright.comparison.facts import differences, file_changes, parity_changes, parity_flips
from boxwright.comparison.figures import MatchesByFile, accuracy_changes, latency_changes
from boxwright.comparison.records import Comparison, Respect, Side
from boxwright.report import Report

__all__ = ["Comparison", "MatchesByFile", "Respect", "Side", "compare"]


def compare(
    before: Report,
    after: Report,
    *,
    before_matches: MatchesByFile | None = None,
    after_matches: MatchesByFile | None = None,
    names: tuple[str, str] = ("A", "B"),
    resamples: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare run B (`after`) with run A (`before`).

    Args:
        before, after: Their reports.
        before_matches, after_matches: By (file, runtime), for the significance of accuracy; None
            where a run kept none.
        names: What the runs are called.
        resamples: Draws for accuracy; None takes what the size of the data allows.
        seed: Of every draw.
    """
    accuracy, accuracy_notes = accuracy_changes(
        before, after, before_matches, after_matches, resamples=resamples, seed=seed
    )
    latency, latency_notes = latency_changes(before, after, seed=seed)
    sides = [
        Side(name, r.created_at, r.boxwright)
        for name, r in zip(names, (before, after), strict=True)
    ]
    environments = [{"boxwright": r.boxwright, **r.environment} for r in (before, after)]
    return Comparison(
        before=sides[0],
        after=sides[1],
        request=differences(before.request, after.request),
        source=differences(before.source, after.source),
        environment=differences(environments[0], environments[1]),
        files=file_changes(before, after),
        parity=parity_changes(before, after),
        flips=parity_flips(before, after),
        accuracy=accuracy,
        latency=latency,
        notes={"accuracy": accuracy_notes, "latency": latency_notes},
    )
