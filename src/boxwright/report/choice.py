"""Which file to ship, as far as the figures tell; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from boxwright.measurement.records import BenchmarkResult, Measured
from boxwright.report.records import SOURCE, Choice, Evaluated, Made
from boxwright.types import Parity, Target

__all__ = ["DEFAULT_DROP", "choose", "raw_twin"]

DEFAULT_DROP = 0.005  # of mAP50-95, where no budget was named
_NEAR = 1.05  # medians closer than this are not told apart by one run


@dataclass(frozen=True, slots=True)
class _Candidate:
    made: Made
    measured: Measured
    drop: float | None


def raw_twin(target: Target, artifacts: Sequence[Made]) -> Made | None:
    """Return the raw file with the same body as an end-to-end one; itself for a raw one."""
    # One of a single picture size has no accuracy of its own.
    for made in sorted(artifacts, key=lambda a: a.artifact.target.source_size is not None):
        other = made.artifact.target
        same = (other.precision, other.deployment, other.batch) == (
            target.precision,
            target.deployment,
            target.batch,
        )
        if same and other.outputs == "raw":
            return made
    return None


def choose(
    artifacts: Sequence[Made],
    parity: Mapping[str, Parity],
    accuracy: Sequence[Evaluated],
    benchmark: BenchmarkResult | None,
    max_drop: float | None,
) -> Choice:
    """Return the fastest file whose proofs hold and whose accuracy is within the budget.

    The accuracy of an end-to-end file is that of the raw file with the same body in the same
    runtime: its own curve ends at the threshold that is baked in. Without labelled pictures INT8 is
    not recommended, because nobody knows what it costs.

    Args:
        artifacts: All files.
        parity: By file name.
        accuracy: Of each file and runtime.
        benchmark: Latency; None when it was not measured.
        max_drop: The most accuracy (mAP50-95, or the task's own figure) that may be lost; None
            takes 0.005.
    """
    limit = DEFAULT_DROP if max_drop is None else max_drop
    sound = [a for a in artifacts if a.state == "published" and _passed(a, parity)]
    cautions = []
    unproven = [a for a in artifacts if a.artifact.path.name not in parity]
    if unproven:
        cautions.append(f"{len(unproven)} files were not verified and are left out")
    if not sound:
        return Choice("", "", "No file passed its verification.", tuple(cautions))
    if benchmark is None:
        cautions.append("latency was not measured")
        first = min(sound, key=lambda a: _order(a.artifact.target))
        reason = "Verified, and of the highest precision; nothing is known about its speed."
        return Choice(first.artifact.path.name, "", reason, tuple(cautions))
    candidates, left_out = _candidates(sound, artifacts, accuracy, benchmark, limit)
    if not accuracy:
        cautions.append(
            "accuracy was not measured (no --data): INT8 files are left out, and the others rest "
            "on parity alone"
        )
    cautions += left_out
    if not candidates:
        return Choice("", "", "No measured file is within the budget.", tuple(cautions))
    best = min(candidates, key=lambda c: c.measured.main.p50)
    cautions += _cautions(best, candidates, benchmark)
    return Choice(
        best.made.artifact.path.name,
        best.measured.runtime,
        _reason(best, _measure(accuracy)),
        tuple(cautions),
    )


def _passed(made: Made, parity: Mapping[str, Parity]) -> bool:
    found = parity.get(made.artifact.path.name)
    return found is not None and found.passed


def _order(target: Target) -> tuple[int, bool, bool]:
    precision = ("fp32", "fp16", "int8").index(target.precision)
    return precision, target.outputs == "raw", target.input == "image"


def _candidates(
    sound: Sequence[Made],
    artifacts: Sequence[Made],
    accuracy: Sequence[Evaluated],
    benchmark: BenchmarkResult,
    limit: float,
) -> tuple[list[_Candidate], list[str]]:
    by_name = {a.artifact.path.name: a for a in sound}
    found, over = [], []
    for measured in benchmark.measured:
        made = by_name.get(PurePath(measured.file).name)
        if made is None or measured.name == SOURCE or measured.mode != "latency":
            continue
        drop = _drop(made, measured.runtime, artifacts, accuracy)
        if drop is None and (made.artifact.target.precision == "int8" or accuracy):
            continue
        if _is_broken(made, measured.runtime, accuracy, limit):
            over.append(f"{made.artifact.path.name} in {measured.runtime} (not as in FP32)")
            continue
        if drop is not None and drop > limit:
            over.append(f"{made.artifact.path.name} in {measured.runtime} ({drop:.4f})")
            continue
        found.append(_Candidate(made, measured, drop))
    told = (
        [f"over the allowed drop of {limit:g} {_measure(accuracy)}: {', '.join(over)}"]
        if over
        else []
    )
    return found, told


def _is_broken(made: Made, runtime: str, accuracy: Sequence[Evaluated], limit: float) -> bool:
    """Whether an end-to-end file finds clearly less than the FP32 one does in some runtime.

    What is baked into both cuts both curves, so that their difference is less exact than that of
    the raw files; but a runtime can compute the whole graph wrongly that computes the raw one well.
    """
    for row in accuracy:
        if (row.file, row.runtime) == (made.artifact.path.name, runtime) and row.change:
            worst = row.change.difference if row.change.high is None else row.change.high
            return made.artifact.target.outputs == "end2end" and worst < -2 * limit
    return False


def _drop(
    made: Made, runtime: str, artifacts: Sequence[Made], accuracy: Sequence[Evaluated]
) -> float | None:
    """Return how much accuracy the body of a file loses in a runtime."""
    twin = raw_twin(made.artifact.target, artifacts)
    if twin is None:
        return None
    name = twin.artifact.path.name
    for row in accuracy:
        if (row.file, row.runtime) == (name, runtime) and row.change is not None:
            return -row.change.difference
    return None


def _measure(accuracy: Sequence[Evaluated]) -> str:
    """Return the name of the figure that was measured."""
    return accuracy[0].accuracy.measure if accuracy else "mAP50-95"


def _reason(best: _Candidate, measure: str) -> str:
    measured = best.measured
    text = f"The fastest file that keeps its promises: {measured.main.p50:.1f} ms a call (p50"
    text += f", batch {measured.batch})" if measured.batch > 1 else ")"
    faster = measured.speed_up
    if faster is not None:
        span = f" [{faster.low:.2f}, {faster.high:.2f}]" if faster.low and faster.high else ""
        text += f", {faster.ratio:.2f}{span} times the speed of {faster.baseline}"
    if best.drop is not None:
        text += f", {measure} {-best.drop:+.4f} against the source"
    return text + "."


def _cautions(
    best: _Candidate, candidates: Sequence[_Candidate], benchmark: BenchmarkResult
) -> list[str]:
    cautions = []
    near = [
        f"{c.made.artifact.path.name} in {c.measured.runtime}"
        for c in candidates
        if c is not best
        and c.measured.setting == best.measured.setting
        and c.measured.main.p50 <= best.measured.main.p50 * _NEAR
    ]
    if near:
        cautions.append(f"within 5 % of it, so that one run cannot tell: {', '.join(near)}")
    if benchmark.noisy:
        first = benchmark.noisy[0].noise
        cautions.append(
            f"the machine was noisy for {len(benchmark.noisy)} of {len(benchmark.measured)} "
            f"measurements ({', '.join(first.reasons)}): measure again before you rely on the times"
        )
    cautions.append("latency is of this machine; measure where the file shall run")
    return cautions
