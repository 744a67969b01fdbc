"""The picture that a server warms up with: one that shows something, so that NMS has work."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from boxwright.images import decode_image, read_bytes
from boxwright.types import Image

__all__ = ["warm_up_picture"]

_SEED = 30_000
_QUALITY = 90


def warm_up_picture(path: Path | None) -> tuple[bytes, Image]:
    """Return an encoded picture and its pixels: a named file, or a generated page as a JPEG.

    Args:
        path: A picture file, or None.

    Raises:
        ImageError: It cannot be read.
    """
    if path is not None:
        data = read_bytes(path)
        return data, decode_image(data, str(path))
    from boxwright.sample import generate_page

    _, encoded = cv2.imencode(
        ".jpg", generate_page(_SEED).image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    data = np.asarray(encoded).tobytes()
    return data, decode_image(data, "warm-up picture")
