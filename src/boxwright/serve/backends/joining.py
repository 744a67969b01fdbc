"""Joins requests into batches, runs each batch once, and splits what comes out.

Runs inside Triton's Python stub, beside a `model.py`: NumPy and the standard library only. A batch
that fails is run again in halves, so that only the request at fault gets an error.

Batches are put together in memory that stays: fresh memory of megabytes costs a page fault for each
4 KiB of it, more than the copy itself. Triton copies outputs into shared memory when `execute` has
returned and before it calls it again (python_backend, `Stub::ProcessRequests`), so that what a turn
answers may lie in memory that the next turn writes, but in none that its own next run writes.

Where a runtime pays for every change of the batch size, batches are filled up to a few sizes
(`batch_sizes`, `Padding`), and the rows that were put behind are cut off what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "Buffers",
    "Failed",
    "Padding",
    "Place",
    "Tensor",
    "batch_sizes",
    "check_tensors",
    "free_input",
    "next_run",
    "run_joined",
    "size_for",
    "tensors_of",
]

Arrays = dict[str, npt.NDArray[Any]]
_Given = TypeVar("_Given")
# Where an input of a batch is put together: its name, shape and NumPy's name of its type.
Place = Callable[[str, tuple[int, ...], str], npt.NDArray[Any]]

# What a run costs beside its rows, as rows: yolo11n on an H200 takes 2.1 ms for 1, 18.2 for 64.
_RUN_ROWS = 6

NUMPY_TYPES = {
    "TYPE_BOOL": "bool",
    "TYPE_UINT8": "uint8",
    "TYPE_UINT16": "uint16",
    "TYPE_INT8": "int8",
    "TYPE_INT16": "int16",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
}


@dataclass(frozen=True)
class Failed:
    """What a request is answered instead of outputs."""

    message: str


@dataclass(frozen=True)
class Tensor:
    """An input or output of a file, or of a configuration.

    Attributes:
        name: Of the tensor.
        dtype: NumPy's name.
        shape: None for a size that is free; of a configuration that batches, with the batch.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Buffers:
    """Memory of named tensors that is kept from run to run; it grows and never shrinks."""

    def __init__(self) -> None:
        self._memory: Arrays = {}

    def view(self, name: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Return a tensor's memory, whose content is left as it was; valid until the next call."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        memory = self._memory.get(name)
        if memory is None or memory.nbytes < size:
            self._memory.pop(name, None)  # before the larger one is taken
            memory = self._memory[name] = np.empty(size, np.uint8)
        return memory[:size].view(kind).reshape(shape)


def batch_sizes(largest: int, told: str | None = None) -> tuple[int, ...]:
    """Return the sizes that batches are filled up to, in order; () where they run as they are.

    Args:
        largest: Most rows of a batch; 0 where rows are not joined.
        told: The parameter `batch_sizes`: numbers, or "" or "any" for none; None for the powers of
            4 below the largest, and the largest.

    Raises:
        ValueError: `told` is no such list, or does not end with the largest.

    >>> batch_sizes(128)
    (1, 4, 16, 64, 128)
    >>> batch_sizes(64, "8, 64")
    (8, 64)
    """
    if told is None:
        powers = (4**n for n in range(largest.bit_length()))
        return (*(p for p in powers if p < largest), largest) if largest else ()
    if told.strip().lower() in ("", "any"):
        return ()
    wrong = f"the parameter batch_sizes is {told!r}, "
    words = [word.strip() for word in told.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f'{wrong}not whole numbers with commas between (or "any", for none)')
    sizes = tuple(int(word) for word in words)
    if not largest:
        raise ValueError(f"{wrong}and the model does not batch (max_batch_size 0); leave it out")
    if sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
        raise ValueError(f"{wrong}which is not positive and ascending; say e.g. 1,8,64")
    if sizes[-1] != largest:
        raise ValueError(f"{wrong}and the last of them must be max_batch_size, {largest}")
    return sizes


def size_for(sizes: Sequence[int], count: int) -> int:
    """Return the size that a batch of `count` rows is filled up to.

    Raises:
        ValueError: It is larger than all of them.

    >>> size_for((1, 4, 16), 5)
    16
    """
    for size in sizes:
        if count <= size:
            return size
    raise ValueError(f"a batch of {count} is larger than {max(sizes)}")


@lru_cache(1024)  # every turn asks, of few numbers
def next_run(sizes: tuple[int, ...], count: int) -> int:
    """Return how many of `count` rows run first, in the cheapest way to run them all.

    A run costs its size, filled up, and as much as `_RUN_ROWS` rows besides.

    >>> [next_run((1, 4, 16, 64), n) for n in (1, 3, 5, 9, 17, 48, 70)]
    [1, 3, 4, 9, 16, 16, 64]
    """
    best = [(0, 0)]  # of each number of rows: the cost, and the rows of the largest run
    for rows in range(1, count + 1):
        ways = [
            (best[rows - min(size, rows)][0] + size + _RUN_ROWS, min(size, rows)) for size in sizes
        ]
        cheapest = min(cost for cost, _ in ways)
        best.append((cheapest, max(taken for cost, taken in ways if cost == cheapest)))
    return best[count][1]


def free_input(file: Sequence[Tensor], shared: Mapping[str, int]) -> str:
    """Return the first input with a free size other than the batch; "" where none has one."""
    for tensor in file:
        sizes = tensor.shape if tensor.name in shared else tensor.shape[1:]
        if None in sizes:
            return tensor.name
    return ""


class Padding:
    """Batches that are filled up with rows of zeros, in memory that is kept.

    Attributes:
        sizes: Ascending.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self._memory: Arrays = {}
        self._written: dict[str, npt.NDArray[np.bool_]] = {}

    def batch(self, name: str, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Return rows of several requests as one batch of a size; valid until the next call.

        Every row is copied once, but none where one part has the size already.
        """
        count = sum(len(p) for p in parts)
        size = size_for(self.sizes, count)
        if len(parts) == 1 and count == size:
            return parts[0]
        kind, row = np.result_type(*parts), parts[0].shape[1:]
        memory = self._memory.get(name)
        if memory is None or memory.dtype != kind or memory.shape[1:] != row:
            # Zeros of calloc: pages that no batch writes take no memory.
            memory = self._memory[name] = np.zeros((self.sizes[-1], *row), kind)
            self._written[name] = np.zeros(self.sizes[-1], np.bool_)
        written = self._written[name]
        for index in count + np.flatnonzero(written[count:size]):
            memory[index] = 0  # earlier rows; the others are zero already
        written[:count], written[count:size] = True, False
        np.concatenate(parts, out=memory[:count])
        return memory[:size]


def tensors_of(config: Mapping[str, Any], kind: str) -> list[Tensor]:
    """Return what a configuration says of `input` or `output`, with the batch in front.

    Raises:
        ValueError: A type is one that the file cannot have.
    """
    batch: tuple[int | None, ...] = (None,) if int(config.get("max_batch_size", 0)) else ()
    found = []
    for entry in config[kind]:
        if entry["data_type"] not in NUMPY_TYPES:
            raise ValueError(f"{kind} {entry['name']} is {entry['data_type']}, not a number")
        dims = entry.get("reshape", {}).get("shape", entry["dims"])
        sizes = tuple(None if int(d) < 0 else int(d) for d in dims)
        found.append(Tensor(entry["name"], NUMPY_TYPES[entry["data_type"]], batch + sizes))
    return found


def check_tensors(config: Mapping[str, Any], kind: str, file: Sequence[Tensor]) -> None:
    """Refuse a configuration whose inputs or outputs are not the file's.

    An input of the file that has no batch (a threshold) may be one that batches in the
    configuration.

    Raises:
        ValueError: A name, a type or a shape differs.
    """
    known = {t.name: t for t in file}
    batches = int(config.get("max_batch_size", 0)) > 0
    for asked in tensors_of(config, kind):
        if asked.name not in known:
            raise ValueError(
                f"config.pbtxt has the {kind} {asked.name}, the file has {', '.join(known)}"
            )
        there = known[asked.name]
        if asked.dtype != there.dtype:
            raise ValueError(
                f"{kind} {asked.name} is {asked.dtype} in config.pbtxt, {there.dtype} in the file"
            )
        shapes = [asked.shape]
        if batches and kind == "input":
            shapes.append(asked.shape[1:])
        if not any(_fits(shape, there.shape) for shape in shapes):
            raise ValueError(
                f"{kind} {asked.name} has the shape {_text(asked.shape)} in config.pbtxt, "
                f"{_text(there.shape)} in the file"
            )
        fixed = there.shape[0] if there.shape else None
        one = fixed == 1 and int(config["max_batch_size"]) == 1  # TensorRT fixes what has no choice
        if batches and len(there.shape) == len(asked.shape) and fixed is not None and not one:
            raise ValueError(
                f"{kind} {asked.name}: the file takes {fixed} at once and no other number; "
                "set max_batch_size: 0 and give dims with the batch"
            )


def _fits(asked: tuple[int | None, ...], there: tuple[int | None, ...]) -> bool:
    if len(asked) != len(there):
        return False
    pairs = zip(asked, there, strict=True)
    return all(a is None or b is None or a == b for a, b in pairs)


def _text(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("-1" if d is None else str(d) for d in shape) + "]"


def run_joined(
    feeds: Sequence[Arrays],
    run: Callable[[Arrays], Arrays],
    *,
    batches: bool,
    largest: int,
    shared: Mapping[str, int] | None = None,
    place: Place | None = None,
    reused: bool = False,
    padding: Padding | None = None,
) -> list[Arrays | Failed]:
    """Answer every request, with as few runs as can be.

    Args:
        feeds: Of each request, its inputs by name; with `batches`, (rows, ...).
        run: Computes a batch; any exception is its failure.
        batches: Whether rows of several requests may be joined.
        largest: Most rows of one run.
        shared: Ranks of inputs that have no batch in the file: a row of them holds for a run, and
            requests are joined only where it is the same.
        place: Gives the memory that a batch of several requests is put together in; without it
            it is new.
        reused: Whether `run` writes its outputs where it wrote those of the run before: they are
            copied where one turn takes several runs.
        padding: Fills every batch up to one of its sizes; `run` sees no other, and what it returns
            for the rows behind is cut off. In place of `place`.

    Returns:
        Of each request, its outputs or why there are none.
    """
    shared = shared or {}
    answers: list[Arrays | Failed] = [Failed("it was not run")] * len(feeds)
    if not batches:
        for index, feed in enumerate(feeds):
            found = _attempt(run, feed)
            if reused and len(feeds) > 1 and not isinstance(found, Failed):
                found = {n: np.array(v) for n, v in found.items()}
            answers[index] = found
        return answers
    groups = _groups(feeds, largest, shared, padding.sizes if padding else ())
    joiner = _Joiner(feeds, run, shared, place or _new, reused, padding)
    for places in groups:
        for index, answer in joiner.answers(places, kept=len(groups) > 1):
            answers[index] = answer
    return answers


def _new(name: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    return np.empty(shape, dtype)


def _joined(name: str, parts: Sequence[npt.NDArray[Any]], place: Place) -> npt.NDArray[Any]:
    """Copy the rows of several requests, one behind the other, into the batch's memory."""
    kind = np.result_type(*parts)
    shape = (sum(len(p) for p in parts), *parts[0].shape[1:])
    batch = place(name, shape, kind.name)
    np.concatenate(parts, out=batch)
    return batch


@dataclass(frozen=True)
class _Joiner:
    """Runs requests of one turn together; the attributes are the arguments of `run_joined`."""

    feeds: Sequence[Arrays]
    run: Callable[[Arrays], Arrays]
    shared: Mapping[str, int]
    place: Place
    reused: bool
    padding: Padding | None

    def answers(self, places: list[int], kept: bool) -> list[tuple[int, Arrays | Failed]]:
        """Run requests together; where that fails, each half of them, down to the one at fault.

        Args:
            places: Of the requests.
            kept: The outputs outlive another run of this turn.
        """
        parts = [self.feeds[p] for p in places]
        found = _attempt(self._run, parts)
        if isinstance(found, Failed) and len(places) > 1:
            middle = len(places) // 2
            halves = (places[:middle], places[middle:])
            return [answer for half in halves for answer in self.answers(half, kept=True)]
        rows = [_rows(feed, self.shared) for feed in parts]
        total = sum(rows)
        if self.padding is not None and not isinstance(found, Failed):
            total = size_for(self.padding.sizes, total)
        split = _split(found, rows, total, self.reused and kept)
        return list(zip(places, split, strict=True))

    def _run(self, parts: Sequence[Arrays]) -> Arrays:
        joined: Arrays = {}
        for name, value in parts[0].items():
            if name in self.shared:
                joined[name] = value[0]
            elif self.padding is not None:
                joined[name] = self.padding.batch(name, [part[name] for part in parts])
            elif len(parts) == 1:
                joined[name] = value
            else:
                joined[name] = _joined(name, [part[name] for part in parts], self.place)
        return self.run(joined)


def _rows(feed: Arrays, shared: Mapping[str, int]) -> int:
    return next((len(v) for n, v in feed.items() if n not in shared), 1)


def _groups(
    feeds: Sequence[Arrays], largest: int, shared: Mapping[str, int], sizes: tuple[int, ...]
) -> list[list[int]]:
    """Return the places of the requests of each run: alike but for their rows, in order."""
    alike: dict[Any, list[int]] = {}
    for place, feed in enumerate(feeds):
        key = tuple(
            (name, value[0].tobytes() if name in shared else value.shape[1:])
            for name, value in sorted(feed.items())
        )
        alike.setdefault(key, []).append(place)
    groups: list[list[int]] = []
    for places in alike.values():
        rows = [_rows(feeds[place], shared) for place in places]
        room, left = 0, sum(rows)
        for place, count in zip(places, rows, strict=True):
            if room < count:
                room = max(count, next_run(sizes, left) if sizes else largest)
                groups.append([])
            groups[-1].append(place)
            room, left = room - count, left - count
    return groups


def _attempt(run: Callable[[_Given], Arrays], given: _Given) -> Arrays | Failed:
    try:
        return run(given)
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises is the request's answer
        return Failed(" ".join(str(error).split())[:400] or type(error).__name__)


def _split(
    found: Arrays | Failed, rows: Sequence[int], total: int, copies: bool
) -> list[Arrays | Failed]:
    """Give each request its rows of the outputs, which have `total`."""
    if isinstance(found, Failed):
        return [found] * len(rows)
    odd = [n for n, v in found.items() if v.ndim == 0 or len(v) != total]
    if odd:
        shape = list(found[odd[0]].shape)
        text = f"output {odd[0]} has the shape {shape}, which is not one row for each of {total}"
        return [Failed(text)] * len(rows)
    ends = np.cumsum(rows)
    own = np.array if copies else np.ascontiguousarray
    return [
        {n: own(v[end - count : end]) for n, v in found.items()}
        for count, end in zip(rows, ends, strict=True)
    ]
