"""Says what a picture file is from its first bytes, before anything is decoded.

A server decodes what strangers send: a few kilobytes can name a picture of gigabytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from boxwright.errors import ImageError

__all__ = ["PictureHeader", "read_header"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
# Start-of-frame markers; C4, C8 and CC between them are tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """What a file says of its picture.

    Attributes:
        kind: `JPEG` or `PNG`.
        width, height: In pixels, before any turning that EXIF asks for.
        channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha (JPEG: CMYK).
        bits: Of each channel.
    """

    kind: str
    width: int
    height: int
    channels: int
    bits: int


def read_header(data: bytes, name: str) -> PictureHeader | None:
    """Return what a JPEG or PNG says of itself; None for files of another kind.

    Raises:
        ImageError: It begins as one of them and goes on as something else.

    >>> start = bytes.fromhex("89504e470d0a1a0a 0000000d 49484452 00000002 00000001 0802")
    >>> read_header(start, "a.png")
    PictureHeader(kind='PNG', width=2, height=1, channels=3, bits=8)
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(_PNG):
            if data[12:16] != b"IHDR":
                raise ValueError
            width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
            return PictureHeader("PNG", width, height, _PNG_CHANNELS[color], bits)
    except (ValueError, IndexError, KeyError, struct.error):
        kind = "JPEG" if data[:1] == b"\xff" else "PNG"
        raise ImageError(
            name, f"it begins as a {kind}, but its header is damaged", "replace the file"
        ) from None
    return None


def _jpeg(data: bytes) -> PictureHeader:
    """Walk the segments up to the start of the frame."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        if marker in _BARE:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            return PictureHeader("JPEG", width, height, channels, bits)
        if length < 2 or marker in (0xD9, 0xDA):
            raise ValueError
        at += 2 + length
