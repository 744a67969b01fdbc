"""INPUT of a job: which pictures, in which order, under which addresses.

An address is a path, a URL that fsspec opens, `synthetic://...#i`, or `parquet:FILE#i` for the
bytes in row i of a Parquet file. The same INPUT always yields the same addresses in the same order.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from boxwright.errors import ImageError, MissingExtraError
from boxwright.fleet.extras import fsspec_module, parquet_modules
from boxwright.fleet.parquet_bytes import PREFIX as PARQUET
from boxwright.fleet.parquet_bytes import bytes_column, load_row
from boxwright.fleet.synthetic import PREFIX as SYNTHETIC
from boxwright.fleet.synthetic import Synthetic, synthetic_from_text
from boxwright.images import IMAGE_SUFFIXES, read_bytes
from boxwright.stream import Picture
from boxwright.types import Image

__all__ = ["FleetPicture", "addresses"]

_LIST = ".txt"
_PARQUET = (".parquet", ".pq")
_PATH_COLUMNS = ("path", "uri", "url", "file_name", "image_path")
_ATTEMPTS = 3  # of an address that is not a file of this machine


class FleetPicture(Picture):
    """An input that loads itself."""

    __slots__ = ("id",)

    def __init__(self, index: int, address: str, ends_batch: bool) -> None:
        super().__init__(address, ends_batch)
        self.id = index

    def load(self) -> bytes | Image:
        """Return its bytes, or the picture itself where it is generated.

        Raises:
            ImageError: It cannot be read.
        """
        address = self.name
        if address.startswith(SYNTHETIC):
            whole, _, index = address.rpartition("#")
            return _synthetic(whole).load(int(index))
        if address.startswith(PARQUET):
            return load_row(address)
        if "://" in address:
            return _fetched(address)
        return read_bytes(address)


@lru_cache(maxsize=8)
def _synthetic(text: str) -> Synthetic:
    return synthetic_from_text(text)


def _fetched(address: str) -> bytes:
    """Read an object; a failure may be the network's, so that it is tried again."""
    fsspec = fsspec_module(address)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with fsspec.open(address, "rb") as stream:
                data: bytes = stream.read()
                return data
        except FileNotFoundError:
            raise ImageError(address, "there is no such object", "check the address") from None
        except Exception as error:  # noqa: BLE001 - each store has exceptions of its own
            if attempt == _ATTEMPTS:
                reason = f"{type(error).__name__}: {error}"[:160]
                raise ImageError(
                    address, f"it cannot be read ({reason})", "check the address"
                ) from None
    raise AssertionError("the last attempt returns or raises")


def addresses(text: str) -> Iterator[str]:
    """Yield the address of every input, always in the same order.

    Folders and globs yield picture files, sorted folder by folder; a list (.txt) and a Parquet file
    yield their rows as they are. Lines of a list that are relative are so to the list's folder.

    Args:
        text: A folder, glob, picture, list, Parquet file, URL of one of these, or `synthetic://N`.

    Raises:
        ImageError: There is no such place, or it yields nothing.
        RequestError: It cannot be understood.
        MissingExtraError: A package that reads it is not installed.
    """
    found = False
    for address in _addresses(text):
        found = True
        yield address
    if not found:
        known = ", ".join(sorted(s.lstrip(".") for s in IMAGE_SUFFIXES))
        raise ImageError(text, "it yields no pictures", f"known are {known}")


def _addresses(text: str) -> Iterator[str]:
    if text.startswith(SYNTHETIC):
        whole = synthetic_from_text(text)
        yield from (f"{text}#{i}" for i in range(whole.count))
        return
    if "://" in text:
        yield from _remote(text)
        return
    path = Path(text)
    if path.is_dir():
        yield from _walk(path)
    elif path.is_file() and path.suffix.lower() in _PARQUET:
        yield from _parquet(text)
    elif path.is_file() and path.suffix.lower() == _LIST:
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:
            yield from _listed(lines, str(path.parent))
    elif path.is_file():
        yield text
    elif glob.has_magic(text):
        matches = glob.iglob(text, recursive=True)  # noqa: PTH207
        yield from sorted(m for m in matches if _is_picture(m) and Path(m).is_file())
    else:
        raise ImageError(text, "there is no such file or folder", "check the path")


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a million times


def _walk(folder: Path) -> Iterator[str]:
    """Yield the pictures of a folder, searched in depth, one folder in memory at a time."""

    def refuse(error: OSError) -> None:
        raise ImageError(
            str(error.filename), f"it cannot be read ({error.strerror})", "check it"
        ) from None

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        yield from (os.path.join(place, f) for f in sorted(files) if _is_picture(f))  # noqa: PTH118


def _listed(lines: Iterable[str], folder: str) -> Iterator[str]:
    for line in lines:
        address = line.strip()
        if not address or address.startswith("#"):
            continue
        if "://" in address or os.path.isabs(address):  # noqa: PTH117
            yield address
        else:
            yield f"{folder}/{address}" if folder not in ("", ".") else address


def _remote(text: str) -> Iterator[str]:
    """List a place that fsspec knows."""
    fsspec = fsspec_module(text)
    try:
        store, path = fsspec.core.url_to_fs(text)
        lower = path.lower()
        if lower.endswith(_LIST):
            with fsspec.open(text, "rt", encoding="utf-8") as lines:
                yield from _listed(lines, text.rpartition("/")[0])
            return
        if lower.endswith(_PARQUET):
            yield from _parquet(text)
            return
        if glob.has_magic(path):
            found = store.glob(path)
        elif store.isdir(path):
            found = store.find(path)
        else:
            yield text
            return
    except (ImageError, MissingExtraError):
        raise
    except ImportError as error:  # s3fs, gcsfs and the like
        raise ImageError(
            text, f"its file system is not installed ({error})", "install it"
        ) from None
    except Exception as error:  # noqa: BLE001 - each store has exceptions of its own
        reason = f"{type(error).__name__}: {error}"[:160]
        raise ImageError(text, f"it cannot be listed ({reason})", "check the address") from None
    yield from (store.unstrip_protocol(p) for p in sorted(found) if _is_picture(p))


def _parquet(text: str) -> Iterator[str]:
    """Yield the paths of a Parquet file, or the places of the bytes in it."""
    _, parquet = parquet_modules(text)
    source: Any = fsspec_module(text).open(text, "rb").open() if "://" in text else text
    try:
        with parquet.ParquetFile(source) as file:
            column = bytes_column(file)
            if column is not None:
                yield from (f"{PARQUET}{text}#{i}" for i in range(file.metadata.num_rows))
                return
            name = next((n for n in _PATH_COLUMNS if n in file.schema_arrow.names), None)
            if name is None:
                raise ImageError(
                    text,
                    f"its columns are {', '.join(file.schema_arrow.names)}",
                    f"name one of paths {_PATH_COLUMNS[0]}, or one of bytes image",
                )
            for batch in file.iter_batches(batch_size=8192, columns=[name]):
                yield from _listed((str(v) for v in batch.column(0).to_pylist()), "")
    except (ValueError, OSError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        reason = f"{type(error).__name__}: {error}"[:160]
        raise ImageError(text, f"it is no Parquet file ({reason})", "check it") from None
