"""Which shapes of input earn a context and a CUDA graph of their own. Pure: counts and numbers.

A graph of its own saves some 1.5 ms a picture and costs tens of milliseconds to make, so that it
must go to shapes that come back. How often a shape comes is a count that halves every 128
inferences. A free place goes to a shape of its third arrival in a row, or soon after; a taken one
changes hands only for a shape that comes clearly more often than the rarest of those that have
places (twice, and by eight), and at most once in 64 inferences. Chance alone does not reach that
margin: with more equally frequent shapes than places the first ones stay. The rest of 64 bounds
what an order made to deceive it can cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

__all__ = ["DEFAULT_PLACES", "MOST_PLACES", "SEEN_BEFORE_PLACE", "ShapePolicy", "Verdict"]

DEFAULT_PLACES = 8
MOST_PLACES = 64
SEEN_BEFORE_PLACE = 3  # arrivals in a row after which a free place is given

_HALF_LIFE = 128
_ENOUGH = SEEN_BEFORE_PLACE - 0.5  # three arrivals in a row count 2.98
_TIMES_AS_OFTEN = 2.0
_MARGIN = 8.0
_REST = 64  # inferences between two changes of hands
_MOST_KNOWN = 512
_MOST_REFUSED = 256

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Verdict(Generic[_Key]):
    """What an arrival means.

    Attributes:
        place: `own` where the shape has a place, `new` where it was given one just now, `none`.
        instead_of: Whose place that was, of `new`; None for a free one.
    """

    place: Literal["own", "new", "none"]
    instead_of: _Key | None = None


class ShapePolicy(Generic[_Key]):
    """Gives places to shapes.

    >>> policy = ShapePolicy[str](1)
    >>> [policy.arrived("640x480").place for _ in range(4)]
    ['none', 'none', 'new', 'own']
    """

    def __init__(self, places: int) -> None:
        """Start with free places.

        Args:
            places: How many shapes have one at most.
        """
        self._places = places
        self._holders: set[_Key] = set()
        self._refused: set[_Key] = set()
        self._counts: dict[_Key, tuple[float, int]] = {}  # as it was, and when
        self._now = 0
        self._changed = -_REST

    @property
    def holders(self) -> frozenset[_Key]:
        """The shapes that have places."""
        return frozenset(self._holders)

    def arrived(self, key: _Key) -> Verdict[_Key]:
        """Count an arrival, and say where it runs; what is `new` has the place from now on."""
        self._now += 1
        count = self._count(key) + 1
        self._counts[key] = (count, self._now)
        if len(self._counts) > _MOST_KNOWN:
            self._forget_the_rarest()
        if key in self._holders:
            return Verdict("own")
        if count < _ENOUGH or key in self._refused or len(self._refused) >= _MOST_REFUSED:
            return Verdict("none")
        if len(self._holders) < self._places:
            self._holders.add(key)
            return Verdict("new")
        if not self._holders or count < _MARGIN or self._now - self._changed < _REST:
            return Verdict("none")
        rarest = min(self._holders, key=self._count)
        if count < _TIMES_AS_OFTEN * self._count(rarest) + _MARGIN:
            return Verdict("none")
        self._changed = self._now
        self._holders.remove(rarest)
        self._holders.add(key)
        return Verdict("new", rarest)

    def refuse(self, key: _Key, *, place_is_lost: bool = False) -> None:
        """Take a shape's place away for good.

        Args:
            key: The shape.
            place_is_lost: Nobody else gets it.
        """
        self._holders.discard(key)
        self._refused.add(key)
        self._places -= place_is_lost

    def _count(self, key: _Key) -> float:
        """Return how often a shape came of late."""
        count, when = self._counts.get(key, (0.0, 0))
        return float(count * 0.5 ** ((self._now - when) / _HALF_LIFE))

    def _forget_the_rarest(self) -> None:
        """Forget the rarer half of the shapes; those with places stay."""
        ranked = sorted(self._counts, key=self._count)
        for key in ranked[: _MOST_KNOWN // 2]:
            if key not in self._holders:
                del self._counts[key]
