"""What an engine is: it does shards somewhere, and has each written once it is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from boxwright.fleet.job import Job, Pace
from boxwright.fleet.shard_files import bytes_from_rows, shard_name, write_shard
from boxwright.fleet.worker import NOT_CHECKED, BatchCheck, Done, Task

__all__ = ["Engine", "Errand", "Report", "report_of", "write_done"]


@dataclass(frozen=True, slots=True)
class Errand:
    """What every worker of a job is told.

    Attributes:
        job: What was asked for.
        artifact: The file; each worker checks its hash.
        pace: How fast.
        folder: Of the shards.
    """

    job: Job
    artifact: Path
    pace: Pace
    folder: Path


@dataclass(frozen=True, slots=True)
class Report:
    """What is told of a shard that lies in its place.

    Attributes:
        shard: Its number.
        rows, failed, detections: Counts.
        check: Whether batches change results, where it was tried.
    """

    shard: int
    rows: int
    failed: int
    detections: int
    check: BatchCheck = NOT_CHECKED

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        own = {n: getattr(self, n) for n in ("shard", "rows", "failed", "detections")}
        return {**own, "check": [self.check.pictures, self.check.differ, self.check.score]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Read what `as_dict` returned."""
        return cls(**{**data, "check": BatchCheck(*data["check"])})


class Engine(Protocol):
    """Does shards."""

    def run(self, errand: Errand, tasks: Iterable[Task], count: int) -> Iterator[Report]:
        """Yield a report of each shard when its file is there; `tasks` is drawn as needed.

        Args:
            errand: What every worker is told.
            tasks: The shards to do.
            count: How many they are.

        Raises:
            BoxwrightError: A worker refuses the artefact or the settings, or fails again and again.
        """
        ...


def report_of(done: Done, check: BatchCheck = NOT_CHECKED) -> Report:
    """Return the report of a shard that was done."""
    rows = done.rows
    return Report(
        done.task.shard,
        len(rows),
        sum(bool(r.error) for r in rows),
        sum(len(r) for r in rows),
        check,
    )


def write_done(errand: Errand, done: Done) -> None:
    """Put a shard into its place.

    Raises:
        StoreError: The disk is full or the place is not writable.
    """
    data = bytes_from_rows(errand.job, done.rows)
    write_shard(errand.folder, shard_name(errand.job, done.task.shard), data)
