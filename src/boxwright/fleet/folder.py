"""The folder of a job: its manifest, its listing, its shards, and one process at a time in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.errors import SourceError, StoreError
from boxwright.fleet.inputs import addresses
from boxwright.fleet.job import Job
from boxwright.fleet.listing import Listing, hash_of_addresses, open_listing, write_listing
from boxwright.fleet.shard_files import rows_from_file, shard_name, sweep_parts
from boxwright.store import changed_settings, locked, store_error, write_atomic

__all__ = ["JobFolder", "Tally", "check_shard", "open_folder"]

JOB_FILE = "job.json"
_LISTING = "inputs.txt"
_SHARDS = "shards"


@dataclass(frozen=True, slots=True)
class JobFolder:
    """An open, locked folder.

    Attributes:
        path: The folder.
        listing: The inputs.
        resumed: A job was begun here before.
    """

    path: Path
    listing: Listing
    resumed: bool

    @property
    def shards(self) -> Path:
        """Where the shards lie."""
        return self.path / _SHARDS

    def begin(self, job: Job) -> None:
        """Write the manifest, or compare it with the one that is there.

        Raises:
            StoreError: Another job was begun here.
        """
        manifest = self.path / JOB_FILE
        if manifest.exists():
            _refuse_other(manifest, job)
        else:
            write_atomic(manifest, (json.dumps(job.as_dict(), indent=1) + "\n").encode())
        try:
            self.shards.mkdir(exist_ok=True)
            sweep_parts(self.shards)
        except OSError as error:
            raise store_error(self.shards, error) from None

    def abandon(self) -> None:
        """Take the manifest back where not one shard was done, so that another job may begin."""
        with contextlib.suppress(OSError):
            sweep_parts(self.shards)
            self.shards.rmdir()  # only when it is empty
            (self.path / JOB_FILE).unlink()
            (self.path / _LISTING).unlink()


@contextlib.contextmanager
def open_folder(
    path: Path,
    text: str,
    *,
    keep_listing: bool = False,
    count: Callable[[int], None] = lambda _: None,
) -> Iterator[JobFolder]:
    """Lock a folder and list the inputs, or compare them with the listing that is there.

    Args:
        path: The folder; made where it is missing.
        text: INPUT.
        keep_listing: Take the listing that is there as it is.
        count: Told how many inputs are listed.

    Raises:
        StoreError: Another process works in it, it holds something else, or the inputs changed.
        ImageError: There are no inputs.
    """
    with locked(path / JOB_FILE, "wait for it, or choose another --out"):
        resumed = (path / JOB_FILE).exists()
        listing_file = path / _LISTING
        if not resumed:
            others = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
            if [n for n in others if n not in (_LISTING, _SHARDS)]:
                raise StoreError(
                    str(path), f"it holds other files ({others[0]})", "choose another --out"
                )
            listing = write_listing(listing_file, addresses(text), count)
            try:
                yield JobFolder(path, listing, False)
            finally:
                if not (path / JOB_FILE).exists():
                    listing_file.unlink(missing_ok=True)
            return
        listing = open_listing(listing_file)
        if not keep_listing:
            sha256, now = hash_of_addresses(addresses(text))
            if sha256 != listing.sha256:
                raise StoreError(
                    str(path),
                    f"its listing of {listing.count} inputs is not that of {text} now ({now})",
                    "choose another --out, or keep the old listing with --keep-listing",
                )
        yield JobFolder(path, listing, True)


def _refuse_other(manifest: Path, job: Job) -> None:
    try:
        there = Job.from_dict(json.loads(manifest.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"[:160]
        raise StoreError(
            str(manifest), f"it is not a manifest of ours ({reason})", "choose another --out"
        ) from None
    if there == job:
        return
    old, new = there.as_dict(), job.as_dict()
    flat_old = {**old, **old.pop("settings")}
    flat_new = {**new, **new.pop("settings")}
    changes = "; ".join(changed_settings(flat_old, flat_new))[:300]
    raise StoreError(
        str(manifest.parent),
        f"it was begun with another artefact or other settings ({changes})",
        "choose another --out",
    )


@dataclass(slots=True)
class Tally:
    """What the rows of a whole job add up to.

    Attributes:
        rows, failed, detections: Counts.
        digest: Over the digests of the rows, in order.
        runs_on: How many rows each runtime and device made.
    """

    rows: int
    failed: int
    detections: int
    digest: Any
    runs_on: dict[str, int]

    @classmethod
    def empty(cls) -> Tally:
        """Return the tally of no rows."""
        return cls(0, 0, 0, hashlib.sha256(), {})


def check_shard(folder: JobFolder, job: Job, shard: int, tally: Tally) -> str:
    """Read a shard back, and add it to the tally when it is what it should be.

    Returns:
        What is wrong with it, or "".
    """
    path = folder.shards / shard_name(job, shard)
    first, count = job.first(shard), job.rows(shard)
    wanted = folder.listing.part(first, count)
    try:
        rows = list(rows_from_file(job, path))
    except SourceError as error:
        return error.found
    if [r.id for r in rows] != list(range(first, first + count)):
        return f"it holds {len(rows)} rows, not those numbered {first} to {first + count - 1}"
    if [r.path for r in rows] != wanted:
        return "its paths are not those of the listing"
    for row in rows:
        tally.digest.update(row.digest())
        tally.rows += 1
        tally.failed += bool(row.error)
        tally.detections += len(row)
        tally.runs_on[row.runs_on] = tally.runs_on.get(row.runs_on, 0) + 1
    return ""
