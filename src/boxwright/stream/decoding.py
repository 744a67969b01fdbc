"""From an item to a picture: on the host, or its JPEG bytes for the GPU's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.detector import Detector
from boxwright.device_arrays import is_on_device
from boxwright.errors import ImageError
from boxwright.images import check_whole, decode_image, read_bytes
from boxwright.types import Image

__all__ = [
    "Encoded",
    "Entry",
    "Picture",
    "Seen",
    "decode_entry",
    "decode_on_host",
    "image_from_picture",
    "read_entry",
]


class Picture:
    """An item that loads itself in a decoder's thread; to be derived from.

    Attributes:
        name: For messages.
        ends_batch: No picture that comes later shares a batch with it.
    """

    __slots__ = ("ends_batch", "name")

    def __init__(self, name: str, ends_batch: bool = False) -> None:
        self.name, self.ends_batch = name, ends_batch

    def load(self) -> bytes | Image:
        """Return the bytes of a picture file, or (H, W, 3) uint8 BGR.

        Raises:
            ImageError: It cannot be read.
        """
        raise NotImplementedError


def image_from_picture(item: Picture) -> Image:
    """Load and decode.

    Raises:
        ImageError: It cannot be read, or is no picture.
    """
    data = item.load()
    if isinstance(data, np.ndarray):
        return data
    check_whole(data, item.name)
    return decode_image(data, item.name)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A JPEG file that the GPU shall decode."""

    name: str
    data: bytes

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one item.

    Attributes:
        index: Its position among the items.
        item: As it was given.
        detections: What was found, or None.
        error: Why it could not be read, or "".
        image: (H, W, 3) uint8 BGR, where pictures are kept.
    """

    index: int
    item: Any
    detections: Any
    error: str = ""
    image: Any = None


@dataclass(slots=True)
class Entry:
    """An item on its way.

    Attributes:
        index, item: As in `Seen`.
        image: A picture on the host or the GPU, or `Encoded`; None after an error.
        error: As in `Seen`.
    """

    index: int
    item: Any
    image: Any = None
    error: str = ""

    @property
    def size_bytes(self) -> int:
        """What it holds on the host."""
        return int(self.image.nbytes) if isinstance(self.image, (np.ndarray, Encoded)) else 0


def decode_entry(entry: Entry) -> Entry:
    """Read and decode an item on the host; a bad picture becomes its own error."""
    try:
        if is_on_device(entry.item):
            entry.image = entry.item
        elif isinstance(entry.item, Picture):
            entry.image = image_from_picture(entry.item)
        else:
            entry.image = Detector.read(entry.item)
    except ImageError as error:
        entry.error = str(error)
    return entry


def read_entry(entry: Entry) -> Entry:
    """Read an item; the bytes of a JPEG file stay as they are, all else is decoded on the host."""
    item = entry.item
    if not isinstance(item, (str, Path, Picture)):
        return decode_entry(entry)
    try:
        if isinstance(item, Picture):
            name, data = item.name, item.load()
            if isinstance(data, np.ndarray):
                entry.image = data
                return entry
            check_whole(data, name)
        else:
            name, data = str(item), read_bytes(item)
        if data.startswith(b"\xff\xd8\xff"):
            entry.image = Encoded(name, data)
        else:
            entry.image = decode_image(data, name)
    except ImageError as error:
        entry.error = str(error)
    return entry


def decode_on_host(entries: Sequence[Entry]) -> int:
    """Decode files that the GPU left, each with its own error; return how many."""
    for entry in entries:
        if isinstance(entry.image, Encoded):
            try:
                entry.image = decode_image(entry.image.data, entry.image.name)
            except ImageError as error:
                entry.image, entry.error = None, str(error)
    return len(entries)
