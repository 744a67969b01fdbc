"""Has the pipeline make and prove the files; those that fail are left out with their reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from boxwright.errors import CheckFailedError
from boxwright.outcome import Listener, Outcome
from boxwright.pipeline import run
from boxwright.recipe import TargetOptions
from boxwright.store import Entry, Store
from boxwright.tune.request import BASELINE, Request, body_of, raw_target, with_targets
from boxwright.types import Parity

__all__ = ["Files", "make_files", "plan_files"]


@dataclass(slots=True)
class Files:
    """What there is to tune.

    Attributes:
        sha256: Of each proven file, by name.
        failed: Why a file is not there, by name.
        unproven: Files whose detections could not be compared, since the source found nothing.
    """

    sha256: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unproven: list[str] = field(default_factory=list)


def make_files(request: Request, listener: Listener) -> Files:
    """Make and prove every file; what is there unchanged is skipped.

    A file that fails its verification, and a precision that does not keep the accuracy budget, are
    left out; without the FP32 raw file there is nothing to compare with.

    Raises:
        CheckFailedError: The FP32 raw file failed.
        BoxwrightError: An input is wrong.
    """
    excluded: dict[str, str] = {}
    force = request.force
    while True:
        targets = tuple(t for t in request.recipe.targets if body_of(t) not in excluded)
        try:
            run(
                with_targets(request.recipe, targets),
                request.out,
                models=request.models,
                force_convert=force,
                listener=listener,
            )
            break
        except CheckFailedError as error:
            listener.note(f"{error.asked}: {error.found}")
            stopped = _stopped_at(request, targets)
            if stopped is None:  # verifications failed, and the other files are in place
                break
            excluded[stopped], force = error.found, False
    files = _look(request, excluded)
    baseline = request.file_of(BASELINE)
    if baseline not in files.sha256:
        raise CheckFailedError(
            baseline,
            files.failed[baseline],
            "nothing can be tuned without the FP32 file that all others are compared with",
        )
    return files


def plan_files(request: Request) -> Outcome:
    """Return what `make_files` would do, without doing it.

    Raises:
        BoxwrightError: A file is in the way, or an input is wrong.
    """
    return run(
        request.recipe,
        request.out,
        models=request.models,
        dry_run=True,
        force_convert=request.force,
    )


def _stopped_at(request: Request, targets: Sequence[TargetOptions]) -> str | None:
    """Return the body whose budget stopped a run; None when the run came to its end.

    Raw files are made in the order FP32, FP16, INT8, and none is published before all are made.
    """
    entries = Store.peek(request.folder).entries
    states = {t: e.state if (e := entries.get(request.file_of(t))) else "" for t in targets}
    if all(state in ("published", "rejected") for state in states.values()):
        return None
    for body in ("fp16", *(body_of(t) for t in targets if t.precision == "int8")):
        raw = states.get(raw_target(body))
        if raw is not None and raw not in ("built", "published"):
            return body
    return None


def _look(request: Request, excluded: Mapping[str, str]) -> Files:
    """Return what stands in the run directory.

    Args:
        request: What was asked for.
        excluded: Why a body is left out.
    """
    entries = Store.peek(request.folder).entries
    files = Files()
    for target in request.recipe.targets:
        name = request.file_of(target)
        entry = entries.get(name)
        parity = Parity.from_dict(entry.parity) if entry and entry.parity else None
        if entry is not None and entry.state == "published" and parity and parity.passed:
            files.sha256[name] = entry.sha256
            if not parity.detections:
                files.unproven.append(name)
        elif entry is not None and entry.state == "rejected":
            files.failed[name] = _failure(entry)
        else:
            files.failed[name] = excluded.get(body_of(target), "it was not made")
    return files


def _failure(entry: Entry) -> str:
    parity = Parity.from_dict(entry.parity) if entry.parity else None
    checks = [] if parity is None else [
        f"{c.name} is {c.measured:.4g}, at most {c.limit:.4g} is allowed" for c in parity.failures
    ]  # fmt: skip
    return f"parity failed: {'; '.join(checks) or 'nothing could be measured'}"
