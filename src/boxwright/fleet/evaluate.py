"""`fleet evaluate`: mAP over a large data set, from parts, equal to that of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxwright.datasets import Dataset
from boxwright.errors import BackendError, RequestError, SourceError, StoreError
from boxwright.evaluate import Totals, accuracy_from_table
from boxwright.fleet.builds import Executor
from boxwright.fleet.coco_parts import Part, table_from_parts
from boxwright.fleet.evaluate_node import MeasuredPart, Wanted, part_name, read_part
from boxwright.fleet.predict import FleetListener
from boxwright.overlaps import Overlap
from boxwright.scoring import Counts, precisions_from_table
from boxwright.store import changed_settings, locked, store_error, write_atomic
from boxwright.types import Accuracy

__all__ = ["fleet_evaluate"]

EVALUATION_FILE = "evaluation.json"
RESULT_FILE = "accuracy.json"
_PARTS = "parts"
_SCHEMA = 1
_PIECE = 4  # parts that a process does before it ends, at most
_ATTEMPTS = 2


class _Files:
    """Reads parts, of one kind of overlap, anew each time that they are gone through."""

    def __init__(self, folder: Path, count: int, by: Overlap) -> None:
        self._folder, self._count, self._by = folder, count, by

    def __iter__(self) -> Iterator[Part]:
        for number in range(self._count):
            yield read_part(self._folder / part_name(number)).parts[self._by]


def fleet_evaluate(
    wanted: Wanted,
    out: Path,
    executor: Executor,
    workers: int,
    *,
    environment: Mapping[str, str] | None = None,
    listener: FleetListener | None = None,
) -> Accuracy:
    """Measure a file on a data set in parts; what an earlier run left in `out` is kept.

    Args:
        wanted: What, on what and how; its `fingerprint` is filled in.
        out: Folder of the parts and the result.
        executor: Does the parts.
        workers: How many pieces of work are made at least, where there are as many parts.
        environment: Recorded in the result.
        listener: Told what happens.

    Raises:
        StoreError: Another process works in `out`, or another evaluation was begun in it.
        BackendError: A part cannot be measured.
        BoxwrightError: The request or an input is wrong.
    """
    listener = listener or FleetListener()
    if wanted.part_size < 1:
        raise RequestError(f"--part-size {wanted.part_size}", "it is not positive", "use e.g. 500")
    dataset = wanted.dataset()
    wanted = replace(wanted, fingerprint=dataset.fingerprint)
    try:
        with locked(out / EVALUATION_FILE, "wait for it, or choose another --out"):
            parts = _begin(wanted, out)
            _do_missing(wanted, dataset, parts, executor, workers, listener)
            accuracy = _merged(wanted, dataset, parts, environment)
            text = json.dumps(accuracy.as_dict(), indent=1, ensure_ascii=False) + "\n"
            write_atomic(out / RESULT_FILE, text.encode())
            return accuracy
    finally:
        executor.close()


def _begin(wanted: Wanted, out: Path) -> Path:
    """Write the manifest, or compare it with the one that is there; return the parts' folder."""
    manifest = out / EVALUATION_FILE
    own = {"schema": _SCHEMA, **wanted.identity()}
    if manifest.exists():
        try:
            there = json.loads(manifest.read_text(encoding="utf-8"))
            different = list(changed_settings(_flat(there), _flat(own)))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"[:160]
            raise StoreError(
                str(manifest), f"it is not a manifest of ours ({reason})", "choose another --out"
            ) from None
        if different:
            raise StoreError(
                str(out),
                f"it was begun otherwise ({'; '.join(different)[:300]})",
                "choose another --out",
            )
    else:
        write_atomic(manifest, (json.dumps(own, indent=1) + "\n").encode())
    folder = out / _PARTS
    try:
        folder.mkdir(exist_ok=True)
        for part in folder.glob(".part-*.part"):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise store_error(folder, error) from None
    return folder


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, **data["settings"], "settings": ""}


def _count(wanted: Wanted, dataset: Dataset) -> int:
    return -(-len(dataset.items) // wanted.part_size)


def _do_missing(
    wanted: Wanted,
    dataset: Dataset,
    folder: Path,
    executor: Executor,
    workers: int,
    listener: FleetListener,
) -> None:
    """Have the missing parts measured, some at a time in each process."""
    count, total = _count(wanted, dataset), len(dataset.items)
    before = sum((folder / part_name(n)).exists() for n in range(count)) * wanted.part_size
    for _ in range(_ATTEMPTS):
        missing = [n for n in range(count) if not (folder / part_name(n)).exists()]
        if not missing:
            return
        listener.pictures(total - len(missing) * wanted.part_size, total, before)
        size = max(1, min(_PIECE, -(-len(missing) // workers)))
        pieces = [missing[i : i + size] for i in range(0, len(missing), size)]
        error = _do_pieces(pieces, wanted, folder, executor, listener, total)
        if error:
            asked, found, do = error
            raise BackendError(asked, found, do)
    raise BackendError(str(folder), "parts are still missing after a second try", "check the disk")


def _do_pieces(
    pieces: list[list[int]],
    wanted: Wanted,
    folder: Path,
    executor: Executor,
    listener: FleetListener,
    total: int,
) -> list[str] | None:
    """Do pieces of work; return the first error, after all that had begun have ended."""
    error: list[str] | None = None
    running = done = 0
    left = list(enumerate(pieces))
    while left or running:
        while left and executor.free() and error is None:
            number, parts = left.pop(0)
            executor.begin(
                str(number),
                {
                    "kind": "evaluate",
                    "wanted": wanted.as_dict(),
                    "parts": parts,
                    "folder": str(folder.absolute()),
                    "cwd": str(Path.cwd()),
                    "label": f"part {parts[0]}",
                },
            )
            running += 1
        if not running:
            break
        key, answer = executor.next_done()
        running -= 1
        done += len(pieces[int(key)])
        listener.pictures(min(total, done * wanted.part_size), total, 0)
        error = error or answer.get("error")
    return error


def _merged(
    wanted: Wanted, dataset: Dataset, folder: Path, environment: Mapping[str, str] | None
) -> Accuracy:
    """Sum up all parts.

    Raises:
        SourceError: No picture can be measured, or parts were measured differently.
    """
    count = _count(wanted, dataset)
    first: MeasuredPart | None = None
    problems = dict(dataset.problems)
    totals: Totals | None = None
    runs_on: list[str] = []
    for number in range(count):
        path = folder / part_name(number)
        one = read_part(path)
        if first is not None and one.plan != first.plan:
            raise SourceError(str(path), "it was measured at other settings", "remove it")
        first = first or one
        totals = _sum(totals, one.totals)
        if one.runs_on not in runs_on:
            runs_on.append(one.runs_on)
        for what, times in one.problems.items():
            problems[what] = problems.get(what, 0) + times
    if first is None or totals is None or not totals.pictures:
        found = f"not one of its {len(dataset.items)} pictures can be measured"
        raise SourceError(dataset.name, found, "check the pictures")
    classes = len(dataset.class_names)
    tables = {
        by: precisions_from_table(table_from_parts(_Files(folder, count, by), classes))
        for by in first.plan.measure.compared
    }
    return accuracy_from_table(
        Path(wanted.artifact).name,
        "; ".join(runs_on),
        dataset,
        first.plan,
        totals,
        tables,
        problems,
        environment,
    )


def _sum(first: Totals | None, second: Totals) -> Totals:
    if first is None:
        return second
    a, b = first.counts, second.counts
    return Totals(
        first.pictures + second.pictures,
        first.objects + second.objects,
        first.crowded + second.crowded,
        Counts(a.right + b.right, a.wrong + b.wrong, a.missed + b.missed),
        (first.top[0] + second.top[0], first.top[1] + second.top[1]),
    )
