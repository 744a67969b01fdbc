"""The listing of a job on disk: an address a line, so that a million of them need no memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from boxwright.errors import StoreError
from boxwright.store import store_error

__all__ = ["Listing", "hash_of_addresses", "open_listing", "write_listing"]

_MARK_EVERY = 256  # lines; how many must be read at most to find one


@dataclass(frozen=True, slots=True)
class Listing:
    """A written listing.

    Attributes:
        path: The file; each line is an address as JSON.
        count: Lines.
        sha256: Of its bytes.
        marks: Where every 256th line begins, in bytes.
    """

    path: Path
    count: int
    sha256: str
    marks: tuple[int, ...]

    def part(self, first: int, count: int) -> list[str]:
        """Return `count` addresses from number `first` on."""
        block, skip = divmod(first, _MARK_EVERY)
        with self.path.open("rb") as stream:
            stream.seek(self.marks[block])
            return [json.loads(line) for line in islice(stream, skip, skip + count)]


def _line(address: str) -> bytes:
    return json.dumps(address).encode() + b"\n"


def hash_of_addresses(addresses: Iterable[str]) -> tuple[str, int]:
    """Return the SHA-256 that `write_listing` would give, and how many they are."""
    digest, count = hashlib.sha256(), 0
    for address in addresses:
        digest.update(_line(address))
        count += 1
    return digest.hexdigest(), count


def write_listing(
    path: Path, addresses: Iterable[str], count: Callable[[int], None] = lambda _: None
) -> Listing:
    """Write a listing so that it appears whole or not at all.

    Args:
        path: The file.
        addresses: In order.
        count: Told now and then how many were written.

    Raises:
        StoreError: The disk is full or the place is not writable.
    """
    digest, lines, place = hashlib.sha256(), 0, 0
    marks: list[int] = []
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            for address in addresses:
                if lines % _MARK_EVERY == 0:
                    marks.append(place)
                line = _line(address)
                stream.write(line)
                digest.update(line)
                place += len(line)
                lines += 1
                if lines % 8192 == 0:
                    count(lines)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise store_error(path, error) from None
    finally:
        part.unlink(missing_ok=True)
    return Listing(path, lines, digest.hexdigest(), tuple(marks))


def open_listing(path: Path) -> Listing:
    """Read where the lines of a listing are.

    Raises:
        StoreError: It is missing or cannot be read.
    """
    digest, lines, place = hashlib.sha256(), 0, 0
    marks: list[int] = []
    try:
        with path.open("rb") as stream:
            for line in stream:
                if lines % _MARK_EVERY == 0:
                    marks.append(place)
                digest.update(line)
                place += len(line)
                lines += 1
    except OSError as error:
        raise StoreError(
            str(path), f"it cannot be read ({error.strerror})", "choose another --out"
        ) from None
    return Listing(path, lines, digest.hexdigest(), tuple(marks))
