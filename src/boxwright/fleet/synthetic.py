"""Pictures that are made when they are looked at: `synthetic://100000?seed=1&size=64x64&corrupt=0.01`.

For measurements and tests of many pictures without their files. Each is a function of the seed and
its number alone: coarse blocks of colour, as an array, as a JPEG, or as one that is cut off.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

import cv2
import numpy as np
import numpy.typing as npt

from boxwright.errors import RequestError, nearest_name
from boxwright.types import Image

__all__ = ["PREFIX", "Synthetic", "synthetic_from_text"]

PREFIX = "synthetic://"
_KEYS = ("seed", "size", "corrupt", "jpeg")
_CELLS = 5
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A set of generated pictures.

    Attributes:
        count: How many.
        seed: Of all of them.
        size: (height, width) in pixels.
        corrupt: Share of them that cannot be read, 0..1; which ones is told by `is_corrupt`.
        jpeg: They come as the bytes of JPEG files, not as arrays.
    """

    count: int
    seed: int = 0
    size: tuple[int, int] = (64, 64)
    corrupt: float = 0.0
    jpeg: bool = False

    def is_corrupt(self, index: int) -> bool:
        """Whether picture `index` is one that cannot be read."""
        return self._is_bad(self._raw(index, 1))

    def _is_bad(self, words: npt.NDArray[np.uint64]) -> bool:
        return int(words[0]) % _MILLION < round(self.corrupt * _MILLION)

    def load(self, index: int) -> bytes | Image:
        """Return picture `index`: (H, W, 3) uint8 BGR, or the bytes of a file."""
        height, width = self.size
        words = self._raw(index, 1 + _CELLS * _CELLS)
        colors = words[1:].view(np.uint8).reshape(_CELLS, _CELLS, 8)[..., :3]
        rows = np.arange(height) * _CELLS // height
        columns = np.arange(width) * _CELLS // width
        image: Image = np.ascontiguousarray(colors[rows[:, None], columns[None]])
        bad = self._is_bad(words)
        if not (self.jpeg or bad):
            return image
        done, data = cv2.imencode(".jpg", image)
        assert done, "an array of three bytes a pixel can be a JPEG"
        whole: bytes = data.tobytes()
        return whole[: len(whole) // 2] if bad else whole

    def _raw(self, index: int, count: int) -> npt.NDArray[np.uint64]:
        """Return numbers of 64 bits; NumPy promises that PCG64's stay what they are."""
        return np.asarray(np.random.PCG64([self.seed, index]).random_raw(count), "<u8")


def synthetic_from_text(text: str) -> Synthetic:
    """Read `synthetic://COUNT?seed=S&size=HxW&corrupt=SHARE&jpeg=1`.

    Raises:
        RequestError: The count is missing, or a key or value is wrong.

    >>> synthetic_from_text("synthetic://10?size=48x64").size
    (48, 64)
    """
    body = text.removeprefix(PREFIX)
    count, _, query = body.partition("?")
    example = "use e.g. synthetic://1000?seed=1&size=64x64&corrupt=0.01"
    if not re.fullmatch("[1-9][0-9]{0,11}", count):
        raise RequestError(text, "it does not say how many pictures", example)
    values: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _KEYS:
            near = nearest_name(key, _KEYS)
            hint = f"did you mean {near}?" if near else example
            raise RequestError(f"{text}: {key}", "known are " + ", ".join(_KEYS), hint)
        values[key] = value
    try:
        size = re.fullmatch("([0-9]{1,5})x([0-9]{1,5})", values.get("size", "64x64"))
        share = float(values.get("corrupt", "0"))
        if size is None or not all(8 <= int(s) <= 8192 for s in size.groups()):
            raise ValueError("size is no HxW from 8 to 8192")
        if not 0 <= share <= 1:
            raise ValueError("corrupt is not between 0 and 1")
        seed = int(values.get("seed", "0"))
        if seed < 0:
            raise ValueError("seed is negative")
        jpeg = bool(int(values.get("jpeg", "0")))
    except ValueError as error:
        raise RequestError(text, str(error), example) from None
    return Synthetic(int(count), seed, (int(size[1]), int(size[2])), share, jpeg)
