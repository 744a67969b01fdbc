"""`fleet predict`: detections of every input, once each, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from boxwright import __version__
from boxwright.errors import BackendError, BoxwrightError, RequestError
from boxwright.fleet.artifact import spec_from_file
from boxwright.fleet.coco_file import write_coco
from boxwright.fleet.engines import Engine, Errand, Report
from boxwright.fleet.extras import parquet_modules
from boxwright.fleet.folder import JobFolder, Tally, check_shard, open_folder
from boxwright.fleet.job import Format, Job, Pace, Settings
from boxwright.fleet.shard_files import shard_name, whole_shards
from boxwright.fleet.worker import NOT_CHECKED, BatchCheck, Task
from boxwright.loading import choose_runtime
from boxwright.store import sha256_of_file, write_atomic

__all__ = ["FleetListener", "FleetSummary", "Places", "fleet_predict"]

SUMMARY_FILE = "summary.json"
DEFAULT_SHARD = 1000
_ROUNDS = 2  # of shards that are damaged when they are read back


class FleetListener:
    """Told what happens; this one keeps silent. The command line prints."""

    def note(self, text: str) -> None:
        """Something is worth a line."""

    def pictures(self, done: int, total: int, before: int) -> None:
        """So many pictures are done, `before` of them by an earlier run; 0: so many are listed."""


class Places(Protocol):
    """Makes the engine when the job is known."""

    def __call__(self, job: Job) -> Engine: ...


@dataclass(frozen=True, slots=True)
class FleetSummary:
    """What a job came to; equal jobs have equal `results_sha256`.

    Attributes:
        out: The folder.
        rows, failed, detections: Counts.
        done_before: Rows that an earlier run had left.
        seconds: From the first shard to the last of this run, without listing and the last check.
        results_sha256: Over every row's id, path, size, error and detections, in the order of ids.
        listing_sha256, artifact_sha256: As in `Job`.
        runs_on: How many rows each runtime and device made.
        batch_check: Whether batches change results on this runtime, tried on a few pictures.
        files: What is to be read.
    """

    out: Path
    rows: int
    failed: int
    detections: int
    done_before: int
    seconds: float
    results_sha256: str
    listing_sha256: str
    artifact_sha256: str
    runs_on: dict[str, int]
    batch_check: BatchCheck
    files: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        data = dataclasses.asdict(self)
        return {**data, "out": str(self.out), "files": list(self.files)}


def fleet_predict(
    artifact: Path,
    text: str,
    out: Path,
    places: Places,
    *,
    settings: Settings,
    pace: Pace,
    format: Format = "parquet",
    shard_size: int = DEFAULT_SHARD,
    labels: str | None = None,
    classes: Callable[[Sequence[str]], Sequence[int] | None] = lambda _: None,
    keep_listing: bool = False,
    redo_failed: bool = False,
    listener: FleetListener | None = None,
) -> FleetSummary:
    """Detect in every input; what an earlier run left in `out` is kept.

    Args:
        artifact: A model file.
        text: INPUT, see `boxwright.fleet.inputs.addresses`.
        out: Folder of the results.
        places: Makes the engine.
        settings: What decides the numbers; a runtime `auto` is chosen here, once for all workers.
        pace: What decides how fast.
        format: Of the shards; `coco` makes one COCO JSON file of them.
        shard_size: Inputs of a shard.
        labels: Class names for a file that has none: a file, or `coco`.
        classes: Reads which classes are wanted, given the model's names.
        keep_listing: Do not list the inputs again.
        redo_failed: Do shards again in which pictures failed.
        listener: Told what happens.

    Raises:
        StoreError: Another process works in `out`, or another job was begun in it.
        BackendError: A worker fails again and again.
        BoxwrightError: The request or an input is wrong.
    """
    listener = listener or FleetListener()
    if format == "parquet":
        parquet_modules("--format parquet")
    if shard_size < 1 or settings.batch < 1:
        raise RequestError(f"--shard-size {shard_size}", "it is not positive", "use e.g. 1000")
    spec = spec_from_file(artifact, settings.family, labels)
    wanted = classes(spec.class_names)
    with open_folder(
        out, text, keep_listing=keep_listing, count=lambda n: listener.pictures(0, n, 0)
    ) as folder:
        runtime = settings.runtime
        if runtime == "auto":
            runtime = choose_runtime(artifact.suffix.lower(), settings.device, folder.listing.count)
        settings = dataclasses.replace(
            settings, runtime=runtime, class_ids=None if wanted is None else tuple(wanted)
        )
        job = Job(
            input=text,
            count=folder.listing.count,
            listing_sha256=folder.listing.sha256,
            shard_size=shard_size,
            format=format,
            artifact=artifact.name,
            artifact_sha256=sha256_of_file(artifact),
            task=spec.task,
            class_names=tuple(spec.class_names),
            settings=settings,
            boxwright=__version__,
        )
        engine = places(job)
        folder.begin(job)
        errand = Errand(job, artifact, pace, folder.shards)
        if redo_failed:
            _forget_failed(folder, job, listener)
        try:
            return _carry_out(folder, job, engine, errand, listener)
        except BoxwrightError:
            folder.abandon()
            raise


def _carry_out(
    folder: JobFolder, job: Job, engine: Engine, errand: Errand, listener: FleetListener
) -> FleetSummary:
    """Do the missing shards, read all of them back, and sum up."""
    there = whole_shards(folder.shards, job)
    before = sum(job.rows(s) for s in there)
    check, seconds = NOT_CHECKED, 0.0
    for left in reversed(range(_ROUNDS)):
        missing = [s for s in range(job.shards) if s not in there]
        done = sum(job.rows(s) for s in there)
        start = monotonic()
        listener.pictures(done, job.count, before)
        for report in _reports(folder, job, engine, errand, missing):
            check = check.plus(report.check)
            there.add(report.shard)
            done += report.rows
            listener.pictures(done, job.count, before)
        seconds += monotonic() - start if missing else 0.0
        tally, damaged = _read_back(folder, job)
        if not damaged:
            return _sum_up(folder, job, tally, check, before, seconds)
        shard, wrong = next(iter(damaged.items()))
        name = shard_name(job, shard)
        if not left:
            break
        listener.note(f"{len(damaged)} shards are damaged and done again ({name}: {wrong})")
        for shard in damaged:
            (folder.shards / shard_name(job, shard)).unlink(missing_ok=True)
            there.discard(shard)
    raise BackendError(str(folder.shards / name), f"written twice, and {wrong}", "check the disk")


def _reports(
    folder: JobFolder, job: Job, engine: Engine, errand: Errand, missing: Sequence[int]
) -> Iterator[Report]:
    """Have the missing shards done; a shard that is reported twice counts once."""

    def tasks() -> Iterator[Task]:
        for shard in missing:
            first = job.first(shard)
            yield Task(shard, first, folder.listing.part(first, job.rows(shard)))

    waiting = set(missing)
    if not missing:
        return
    for report in engine.run(errand, tasks(), len(missing)):
        if report.shard in waiting:
            waiting.discard(report.shard)
            yield report
    if waiting:
        raise BackendError(
            f"{len(waiting)} shards", "the engine ended without them", "start the command again"
        )


def _read_back(folder: JobFolder, job: Job) -> tuple[Tally, dict[int, str]]:
    """Read every shard; return what they add up to, and what is wrong with which."""
    tally, damaged = Tally.empty(), {}
    for shard in range(job.shards):
        wrong = check_shard(folder, job, shard, tally)
        if wrong:
            damaged[shard] = wrong
    return tally, damaged


def _forget_failed(folder: JobFolder, job: Job, listener: FleetListener) -> None:
    """Remove the shards in which pictures failed."""
    gone = 0
    for shard in sorted(whole_shards(folder.shards, job)):
        tally = Tally.empty()
        if check_shard(folder, job, shard, tally) or tally.failed:
            (folder.shards / shard_name(job, shard)).unlink()
            gone += 1
    listener.note(f"{gone} shards with failed pictures are done again")


def _sum_up(
    folder: JobFolder, job: Job, tally: Tally, check: BatchCheck, before: int, seconds: float
) -> FleetSummary:
    """Write what is made of all shards, and the summary."""
    if tally.rows != job.count:
        raise AssertionError(f"{tally.rows} rows were read of {job.count}")
    files = ["shards/"]
    if job.format == "coco":
        files = write_coco(folder.path, folder.shards, job)
    summary = FleetSummary(
        out=folder.path,
        rows=tally.rows,
        failed=tally.failed,
        detections=tally.detections,
        done_before=before,
        seconds=seconds,
        results_sha256=tally.digest.hexdigest(),
        listing_sha256=job.listing_sha256,
        artifact_sha256=job.artifact_sha256,
        runs_on=dict(sorted(tally.runs_on.items())),
        batch_check=check,
        files=tuple(files),
    )
    text = json.dumps(summary.as_dict(), indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder.path / SUMMARY_FILE, text.encode())
    return summary
