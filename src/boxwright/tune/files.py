"""Has the pipeline make and prove the files; those that fail are left out with their reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from boxwright.errors import CheckFailedError
from boxwright.outcome import Listener
from boxwright.pipeline import run
from boxwright.recipe import CalibrationOptions, Recipe, TargetOptions
from boxwright.store import Entry, Store
from boxwright.tune.request import BASELINE, Request
from boxwright.types import Parity

__all__ = ["Files", "make_files"]


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

    A file that fails its verification, and INT8 that does not keep its accuracy budget, are left
    out; without the FP32 raw file there is nothing to compare with.

    Raises:
        CheckFailedError: The FP32 raw file failed.
        BoxwrightError: An input is wrong.
    """
    recipe, reason = request.recipe, ""
    try:
        _run(request, recipe, listener, force=request.force)
    except CheckFailedError as error:
        reason = error.found
        listener.note(f"{error.asked}: {error.found}")
    files = _look(request, reason)
    if reason and _unmade(request, files):  # INT8 stopped it; the others go on
        rest = tuple(
            t for t in recipe.targets if t.precision != "int8" and _open(request, files, t)
        )
        if rest:
            try:
                _run(request, _without_int8(recipe, rest), listener, force=False)
            except CheckFailedError as error:
                listener.note(f"{error.asked}: {error.found}")
        files = _look(request, reason)
    baseline = request.file_of(BASELINE)
    if baseline not in files.sha256:
        raise CheckFailedError(
            baseline,
            files.failed.get(baseline, "it was not made"),
            "nothing can be tuned without the FP32 file that all others are compared with",
        )
    return files


def _run(request: Request, recipe: Recipe, listener: Listener, *, force: bool) -> None:
    run(recipe, request.out, models=request.models, force_convert=force, listener=listener)


def _without_int8(recipe: Recipe, targets: tuple[TargetOptions, ...]) -> Recipe:
    return recipe.model_copy(
        update={
            "targets": targets,
            "calibration": CalibrationOptions(),
            "data": None,
            "max_drop": None,
        }
    )


def _open(request: Request, files: Files, target: TargetOptions) -> bool:
    """Whether a target was neither published nor rejected by its own verification."""
    name = request.file_of(target)
    return name not in files.sha256 and not files.failed.get(name, "").startswith("parity")


def _unmade(request: Request, files: Files) -> bool:
    return any(_open(request, files, target) for target in request.recipe.targets)


def _look(request: Request, reason: str) -> Files:
    """Return what stands in the run directory.

    Args:
        request: What was asked for.
        reason: Why the run stopped, for files that it did not come to.
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
            files.failed[name] = reason or "it was not made"
    return files


def _failure(entry: Entry) -> str:
    parity = Parity.from_dict(entry.parity) if entry.parity else None
    checks = [] if parity is None else [
        f"{c.name} is {c.measured:.4g}, at most {c.limit:.4g} is allowed" for c in parity.failures
    ]  # fmt: skip
    return f"parity failed: {'; '.join(checks) or 'nothing could be measured'}"
