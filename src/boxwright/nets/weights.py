"""The weights of a checkpoint, handed out by name while a network is built around them.

The projects' checkpoints differ in width and depth, and most do not say them. So a network here
is built from its weights: a block asks for the tensors it needs, in the shapes that its input
allows, and tells how many channels it returns. What is missing, misshapen or left over at the end
is an error that names the tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Weights", "WeightsDifferError"]

_SHOWN = 5  # names in an error
_COUNTERS = "num_batches_tracked"


class WeightsDifferError(Exception):
    """The weights are not those of the network; its text names the first that differ."""


class Weights:
    """Named tensors of a network, or of a part of it.

    Args:
        tensors: By full name.
        eps: Of the batch norms; no checkpoint stores it.
        fused: Blocks fold their batch norms and branches into one convolution each.
        spelled: Names as the file spells them, where those of `tensors` were changed.
        facts: What a file says of its layers, by their full names: `class`, and plain attributes.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        eps: float = 1e-3,
        fused: bool = False,
        spelled: Mapping[str, str] | None = None,
        facts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._tensors = {n: t for n, t in tensors.items() if not n.endswith(_COUNTERS)}
        self._spelled, self._facts = spelled or {}, facts or {}
        self._taken: set[str] = set()
        self._prefix = ""
        self.eps, self.fused = eps, fused

    def at(self, name: str, eps: float | None = None) -> Weights:
        """Return the part below a name; taking from it takes from the whole."""
        part = Weights({}, eps=self.eps if eps is None else eps, fused=self.fused)
        part._tensors, part._taken, part._spelled = self._tensors, self._taken, self._spelled
        part._facts = self._facts
        part._prefix = f"{self._prefix}{name}."
        return part

    def __contains__(self, name: str) -> bool:
        full = self._prefix + name
        return any(n == full or n.startswith(full + ".") for n in self._tensors)

    def count(self, name: str = "") -> int:
        """Return how many parts are numbered 0, 1, 2 … below a name."""
        start, number = f"{name}." if name else "", 0
        while f"{start}{number}" in self:
            number += 1
        return number

    def count_layers(self) -> int:
        """Return how many layers numbered 0, 1, 2 … the file tells of, with weights or without."""
        number = 0
        while f"{self._prefix}{number}" in self._facts:
            number += 1
        return number

    @property
    def tells(self) -> bool:
        """Whether the file says what its layers are."""
        return bool(self._facts)

    def fact(self, name: str, key: str) -> Any:
        """Return what the file says of a layer, such as its `class`; None when it does not."""
        full = (self._prefix + name).rstrip(".")
        return self._facts.get(full, {}).get(key)

    def whole(self, name: str, key: str, default: int) -> int:
        """Return a small whole number that the file says of a layer; of a pair the first.

        Raises:
            WeightsDifferError: It is something else.
        """
        value = self.fact(name, key)
        if isinstance(value, tuple) and value and len(set(value)) == 1:
            value = value[0]
        if value is None:
            return default
        if type(value) is not int or not 0 <= value <= 1 << 16:
            raise WeightsDifferError(f"{self._prefix}{name} has the {key} {str(value)[:40]!r}")
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            WeightsDifferError: There is none of that name.
        """
        full = self._prefix + name
        if full not in self._tensors:
            raise WeightsDifferError(self._missing(full))
        return tuple(self._tensors[full].shape)

    def take(self, name: str, shape: Iterable[int | None]) -> Tensor:
        """Return a tensor in float32; None in its shape stands for any size.

        Raises:
            WeightsDifferError: It is missing or of another shape, or holds NaN or infinity.
        """
        full, wanted, found = self._prefix + name, tuple(shape), self.shape(name)
        if len(found) != len(wanted) or any(
            w is not None and w != f for w, f in zip(wanted, found, strict=True)
        ):
            text = " x ".join("any" if w is None else str(w) for w in wanted) or "a number"
            here = " x ".join(str(f) for f in found) or "a number"
            raise WeightsDifferError(f"{self._as_spelled(full)} is {here} where {text} is needed")
        tensor = self._tensors[full].float()
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsDifferError(f"{self._as_spelled(full)} holds NaN or infinity")
        self._taken.add(full)
        return tensor

    def pass_over(self, name: str) -> None:
        """Mark a part as known and not needed, such as a head that only training uses."""
        full = self._prefix + name
        self._taken.update(n for n in self._tensors if n == full or n.startswith(full + "."))

    def check_all_taken(self) -> None:
        """Raise `WeightsDifferError` when tensors are left over."""
        left = self._left()
        if left:
            raise WeightsDifferError(f"{len(left)} of its weights have no place: {_listed(left)}")

    def _left(self) -> list[str]:
        return [self._as_spelled(n) for n in self._tensors if n not in self._taken]

    def _as_spelled(self, full: str) -> str:
        return self._spelled.get(full, full)

    def _missing(self, full: str) -> str:
        left = self._left()
        place = f", and {len(left)} weights have no place yet: {_listed(left)}" if left else ""
        return f"{self._as_spelled(full)} is missing{place}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
