"""Reads pictures from files, and refuses those that only look like pictures."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from boxwright.errors import ImageError
from boxwright.preprocess import bgr_from_array
from boxwright.types import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "check_whole",
    "decode_image",
    "expand_paths",
    "read_bytes",
    "read_image",
]

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
VIDEO_SUFFIXES = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
)


def read_image(path: Path) -> Image:
    """Read a picture file as (H, W, 3) uint8 BGR, upright as its EXIF orientation says.

    Grey is repeated, alpha dropped, 16 bits cut to the upper 8. A JPEG or PNG that ends too early
    is refused: OpenCV would fill the rest with grey and say nothing.

    Raises:
        ImageError: There is no such file, or it is empty, cut off, or no picture.
    """
    return decode_image(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """Read a picture file as it is.

    Raises:
        ImageError: There is no such file, or it is empty or cut off.
    """
    try:
        data = _whole_file(path)
    except FileNotFoundError:
        fault, remedy = "there is no such file", "check the path"
    except IsADirectoryError:
        fault, remedy = "it is a folder", "name a picture"
    except OSError as error:
        fault, remedy = f"it cannot be read ({error.strerror})", "check it"
    else:
        fault, remedy = _fault(data), "replace the file"
        if not fault:
            return data
    raise ImageError(str(Path(path)), fault, remedy)


def _whole_file(path: str | Path) -> bytes:
    """Read a file with four system calls: at each a thread lets go of the interpreter."""
    handle = os.open(path, _READ)
    try:
        size = os.fstat(handle).st_size
        data = os.read(handle, size + 1)
        if len(data) == size > 0:  # one byte more was asked for: it is the end
            return data
        parts = [data]  # a pipe, or a file that changes meanwhile
        while parts[-1]:
            parts.append(os.read(handle, 1 << 20))
        return b"".join(parts)
    finally:
        os.close(handle)


def check_whole(data: bytes, name: str) -> None:
    """Refuse the bytes of a picture file that lack its end.

    Raises:
        ImageError: They are none, or cut off.
    """
    fault = _fault(data)
    if fault:
        raise ImageError(name, fault, "replace the file")


def decode_image(data: bytes, name: str) -> Image:
    """Decode the bytes of a picture file, as `read_image` says.

    Raises:
        ImageError: It is no picture.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        reason = str(getattr(error, "err", "") or "OpenCV refuses it")
        raise ImageError(
            name, f"it cannot be decoded ({reason[:120]})", "replace the file"
        ) from None
    if image is None:
        raise ImageError(
            name, "it is not a picture, or it is damaged", "give JPEG, PNG, WebP, TIFF or BMP"
        )
    return bgr_from_array(image, name)


def _fault(data: bytes) -> str:
    """Return what a picture file lacks, or "".

    A JPEG needs its end marker after the last scan, a PNG its end chunk.
    """
    if data.startswith(b"\xff\xd8\xff"):
        if data.endswith(b"\xff\xd9"):  # nearly always, and it saves a search that holds the GIL
            return ""
        # Inside scan data 0xFF is always followed by 0x00 or a restart marker, never by 0xD9.
        whole = data.find(b"\xff\xd9", max(data.rfind(b"\xff\xda"), 0)) >= 0
        return "" if whole else "the picture is cut off"
    if not data:
        return "it is empty"
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data.rfind(b"IEND") < 0:
        return "the picture is cut off"
    return ""


def expand_paths(texts: Sequence[str], suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the files that paths, folders (searched in depth) and globs name, without repeats.

    A file that is named outright is kept whatever its suffix; folders and globs yield only files
    with one of the suffixes, sorted.

    Raises:
        ImageError: A path does not exist, or a folder or glob yields nothing.
    """
    found: list[Path] = []
    for text in texts:
        path = Path(text)
        if path.is_dir():
            below = path.rglob("*")
            here = sorted(p for p in below if p.suffix.lower() in suffixes and p.is_file())
        elif path.is_file():
            here = [path]
        elif glob.has_magic(text):
            matches = (Path(m) for m in glob.iglob(text, recursive=True))  # noqa: PTH207
            here = sorted(p for p in matches if p.suffix.lower() in suffixes and p.is_file())
        else:
            raise ImageError(text, "there is no such file or folder", "check the path")
        if not here:
            known = ", ".join(sorted(s.lstrip(".") for s in suffixes))
            raise ImageError(text, "it yields no pictures", f"known are {known}")
        found += here
    return list(dict.fromkeys(found))
