"""Chance that is the same everywhere: a seed gives one sequence on any machine and any Python.

Only `random.random()` and the raw output of PCG64 are used: Python and NumPy promise both to stay
as they are, and promise nothing of the kind for their distributions. Angles come from a rounded
table, since the last bit of a sine differs between C libraries.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Chance", "cos_deg", "sin_deg"]

T = TypeVar("T")
_SINES = tuple(round(math.sin(math.radians(i / 4)), 9) for i in range(1440))


def sin_deg(angle: float) -> float:
    """Return the sine of an angle in degrees, to the nearest quarter of a degree.

    >>> sin_deg(90.0), sin_deg(-30.0)
    (1.0, -0.5)
    """
    return _SINES[math.floor(angle * 4 + 0.5) % 1440]


def cos_deg(angle: float) -> float:
    """Return the cosine of an angle in degrees, to the nearest quarter of a degree."""
    return sin_deg(angle + 90.0)


class Chance:
    """A seeded sequence of choices."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def unit(self) -> float:
        """Return a number in [0, 1)."""
        return self._random.random()

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.unit()

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def happens(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.unit() < probability

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[int(self.unit() * len(options))]

    def pick_weighted(self, options: Sequence[tuple[T, float]]) -> T:
        """Return one of the options, each as often as its weight says."""
        left = self.unit() * sum(weight for _, weight in options)
        for option, weight in options:
            left -= weight
            if left < 0:
                return option
        return options[-1][0]

    def child(self) -> Chance:
        """Return a sequence of its own, so that one part's draws do not move another's."""
        return Chance(self.whole(0, 2**48))

    def octets(self, *shape: int) -> npt.NDArray[np.uint8]:
        """Return an array of bytes, each 0..255 equally often."""
        count = math.prod(shape)
        words = np.random.PCG64(self.whole(0, 2**48)).random_raw(count // 8 + 1)
        return words.astype("<u8").view(np.uint8)[:count].reshape(shape)
