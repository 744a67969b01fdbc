"""The inert data that a checkpoint's pickle becomes: records of what it said, nothing that runs.

Standard library and NumPy only; `pickle_builders` makes these records, `rebuild` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.sources.admitted import DTYPES, GlobalRef

__all__ = ["MemberRef", "Record", "RefusedError", "Storage", "TensorRecord"]


class RefusedError(Exception):
    """A pickle wants something that is not admitted.

    Args:
        wants: What it wants, in words that follow "it".
        project: The project that it seems to come from instead, if one is known.
    """

    def __init__(self, wants: str, project: str = "") -> None:
        self.project = project
        super().__init__(wants)


@dataclass(eq=False, slots=True)
class Record:
    """An instance of an admitted class: what the pickle said of it, and nothing that runs.

    Records compare by identity, so shared references and cycles survive.

    Attributes:
        ref: Its class.
        args: What the class was called with; always empty for a network layer.
        state: What was to become its attributes, usually a dictionary.
        items: Pairs that were set, and values that were appended, in order.
    """

    ref: GlobalRef
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    @property
    def module(self) -> str:
        """Module of the class, as the pickle spelt it."""
        return self.ref.module

    @property
    def name(self) -> str:
        """Simple name of the class."""
        return self.ref.name

    def get(self, key: str) -> Any:
        """Return an attribute of the state, or None when there is none."""
        return self.state.get(key) if isinstance(self.state, dict) else None

    def set_state(self, state: Any) -> None:
        """Take what BUILD gave; slots (the second of a pair) join the attributes."""
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = {**(state[0] or {}), **state[1]}
        if isinstance(self.state, dict) and isinstance(state, dict):
            state = {**self.state, **state}
        self.state = state


@dataclass(frozen=True, eq=False, slots=True)
class MemberRef:
    """What `getattr(owner, name)` of a class or an instance would have been."""

    owner: Record | GlobalRef
    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A run of bytes that tensors share.

    Attributes:
        key: Its name in the archive.
        dtype: Element type, as torch names it.
        count: Number of elements.
        read: Returns its bytes.
    """

    key: str
    dtype: str
    count: int
    read: Callable[[str], bytes]

    def elements(self) -> npt.NDArray[Any]:
        """Return the elements, writable, (count,); bfloat16 as its bits in uint16."""
        dtype = np.dtype(DTYPES[self.dtype])
        if not self.count:
            return np.empty(0, dtype)
        raw = bytearray(self.read(self.key))
        if self.dtype == "bool":  # any byte may stand in the file, only 0 and 1 are booleans
            return np.frombuffer(raw, np.uint8, self.count).astype(np.bool_)
        return np.frombuffer(raw, dtype, self.count)


@dataclass(frozen=True, eq=False, slots=True)
class TensorRecord:
    """A tensor as the pickle described it: a view of a storage, checked against its bounds.

    Attributes:
        dtype: As torch names it.
        shape, stride, offset: In elements.
        storage: Where the elements are.
        requires_grad: Whether training changed it.
        is_parameter: Whether it is a parameter of a layer.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: Storage
    requires_grad: bool = False
    is_parameter: bool = False

    @property
    def storage_key(self) -> str:
        """Name of the storage in the archive."""
        return self.storage.key

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def array(self) -> npt.NDArray[Any]:
        """Return a copy of the elements, of `shape`; bfloat16 becomes float32.

        Raises:
            SourceError: The bytes cannot be read.
        """
        flat = self.storage.elements()
        if self.storage.dtype != self.dtype:
            flat = flat.view(np.dtype(DTYPES[self.dtype]))
        steps = tuple(s * flat.itemsize for s in self.stride)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps)
        if self.dtype == "bfloat16":
            return (view.astype(np.uint32) << 16).view(np.float32)
        return view.copy()
