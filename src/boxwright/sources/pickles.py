"""Reads Ultralytics `.pt` checkpoints as inert data: no torch, and no code of the file ever runs.

A checkpoint is a pickle inside a zip archive, and a pickle is a program. `open_checkpoint` lets
`pickle_machine` interpret it into `Record` and `TensorRecord` values, of the classes of `ADMITTED`
only; `summarise` says from them what the checkpoint is. `rebuild` makes the real network.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.errors import SourceError, UnsafeCheckpointError
from boxwright.sources.admitted import ADMITTED, NETWORK_MODELS, GlobalRef
from boxwright.sources.inert import MemberRef, Record, RefusedError, TensorRecord
from boxwright.sources.pickle_builders import storage_from_id
from boxwright.sources.pickle_machine import inert_from_pickle
from boxwright.sources.torch_zip import open_archive

__all__ = [
    "ADMITTED",
    "DAMAGE",
    "TRUST_ADVICE",
    "CheckpointSummary",
    "GlobalRef",
    "MemberRef",
    "Record",
    "TensorRecord",
    "check_not_quantised",
    "class_count",
    "class_names_from",
    "damaged",
    "head_record",
    "input_size_from",
    "layers_of",
    "network_record",
    "no_network",
    "open_checkpoint",
    "summarise",
    "task_from_head",
]

# What reading a pickle with wrong bytes in it raises.
DAMAGE = (
    RecursionError,
    MemoryError,
    OverflowError,
    ValueError,  # UnicodeDecodeError too
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    EOFError,
    struct.error,
)

_TASKS: dict[str, str] = {
    "Detect": "detect",
    "v10Detect": "detect",
    "Segment": "segment",
    "Segment26": "segment",
    "Pose": "pose",
    "Pose26": "pose",
    "OBB": "obb",
    "OBB26": "obb",
    "Classify": "classify",
}
TRUST_ADVICE = (
    "if you trust where the file comes from, --trust-checkpoint loads it and may run code from it"
)
_LARGEST_SIDE_PX = 1 << 16
_PLAIN_VALUES = 100_000  # of a configuration; real ones have some hundred


@dataclass(frozen=True)
class CheckpointSummary:
    """What a checkpoint says about itself.

    Attributes:
        task: `detect`, `segment`, `pose`, `obb` or `classify`, by the head.
        class_names: One per class id.
        model_class, head_class: Simple names of the classes.
        yaml: The model configuration, as plain data.
        input_size: (height, width) in pixels that it was trained with, when it says so.
        strides: Of the levels, in pixels; empty for a classifier.
        parameter_count: Numbers that training could change.
        version: Of Ultralytics, which wrote it, when it says so.
        date: As it was written, when it says so.
        has_ema: It holds the averaged weights beside, or instead of, the last ones.
    """

    task: str
    class_names: tuple[str, ...]
    model_class: str
    head_class: str
    yaml: Mapping[str, Any]
    input_size: tuple[int, int] | None
    strides: tuple[int, ...]
    parameter_count: int
    version: str | None
    date: str | None
    has_ema: bool


def damaged(path: Path, error: BaseException) -> SourceError:
    """Return the one-line error of a checkpoint whose bytes are wrong."""
    reason = f"{type(error).__name__}: {str(error)[:120]}".rstrip(": ")
    return SourceError(str(path), f"it is damaged ({reason})", "download or copy it again")


@contextlib.contextmanager
def open_checkpoint(path: Path, *, projects: bool = False) -> Iterator[Any]:
    """Give what a checkpoint holds, as inert data; its tensors can be read inside the block.

    Args:
        path: The file.
        projects: Classes of the projects that `native` rebuilds become inert records too.

    Raises:
        SourceError: The file is missing, damaged or not a checkpoint.
        UnsafeCheckpointError: It wants a class or function that is not admitted.
    """
    with open_archive(path) as archive:
        storage = partial(storage_from_id, size_of=archive.storage_size, read=archive.storage_bytes)
        try:
            root = inert_from_pickle(archive.pickle_bytes(), storage, projects=projects)
        except RefusedError as error:
            found, do = f"it {error}, which is not admitted", TRUST_ADVICE
            if error.project:
                found += f"; it seems to come from {error.project}"
                do = "export it to ONNX with that project and give Boxwright the ONNX file"
            raise UnsafeCheckpointError(str(path), found, do) from error
        except DAMAGE as error:
            raise damaged(path, error) from error
        yield root


def network_record(root: Any, path: Path) -> Record:
    """Return the network of a checkpoint: the averaged one when there is one.

    Raises:
        SourceError: There is none.
    """
    found = root
    if isinstance(root, dict):
        check_not_quantised(root, path)
        found = root.get("ema") if root.get("ema") is not None else root.get("model")
    if isinstance(found, Record) and found.name in NETWORK_MODELS:
        return found
    weights = found if isinstance(found, dict) else root
    if isinstance(weights, dict) and any(isinstance(v, TensorRecord) for v in weights.values()):
        raise SourceError(
            str(path), "it holds weights only, no network", "give the .pt file that training wrote"
        )
    raise no_network(path)


def no_network(path: Path) -> SourceError:
    """Return the error of a file that holds something else than a network."""
    return SourceError(
        str(path), "it holds no Ultralytics network", "give the .pt file that training wrote"
    )


def check_not_quantised(fields: Mapping[Any, Any], path: Path) -> None:
    """Raise `SourceError` for a checkpoint whose network ModelOpt would have to restore."""
    if fields.get("modelopt"):
        raise SourceError(
            str(path),
            "it is a checkpoint of quantisation-aware training, which needs ModelOpt",
            "give the checkpoint from before that training",
        )


def layers_of(record: Record) -> dict[str, Any]:
    """Return the child layers of a network or layer by name; empty when it has none."""
    modules = record.get("_modules")
    return modules if isinstance(modules, dict) else {}


def head_record(network: Record) -> Record:
    """Return the last layer of a network; raises `ValueError` when it has none that is known."""
    body = layers_of(network).get("model")
    layers = list(layers_of(body).values()) if isinstance(body, Record) else []
    if not layers or not isinstance(layers[-1], Record):
        raise ValueError("the network has no layers")
    return layers[-1]


def task_from_head(head_class: str, path: Path) -> str:
    """Return what a head of that class predicts.

    Raises:
        SourceError: The head is of no supported task.
    """
    task = _TASKS.get(head_class)
    if task is None:
        raise SourceError(
            str(path),
            f"its last layer is {head_class}, not a head that Boxwright knows",
            f"give a network that ends in one of {', '.join(_TASKS)}",
        )
    return task


def class_names_from(names: Any, class_count: Any) -> tuple[str, ...]:
    """Return the names of a network by class id, or the ids as text when it has none.

    Args:
        names: A list, or a dictionary by class id, or None.
        class_count: Of the head; read only where there are no names.

    Raises:
        ValueError: The ids are not 0, 1, 2 …

    >>> class_names_from({0: "cat", 1: "dog"}, 2), class_names_from(None, 2)
    (('cat', 'dog'), ('0', '1'))
    """
    if isinstance(names, (list, tuple)) and names:
        return tuple(str(n) for n in names)
    if isinstance(names, dict) and names:
        if any(type(i) is not int for i in names) or set(names) != set(range(len(names))):
            raise ValueError("the class names are not numbered 0, 1, 2 …")
        return tuple(str(names[i]) for i in range(len(names)))
    if type(class_count) is not int or not 0 < class_count <= _PLAIN_VALUES:
        raise ValueError("the network has no classes")
    return tuple(str(i) for i in range(class_count))


def input_size_from(train_args: Any) -> tuple[int, int] | None:
    """Return the (height, width) in pixels that the training arguments name, if they do.

    >>> input_size_from({"imgsz": 320}), input_size_from({"imgsz": [480, 640]})
    ((320, 320), (480, 640))
    """
    if isinstance(train_args, Record):
        train_args = train_args.state
    size = train_args.get("imgsz") if isinstance(train_args, dict) else None
    sides = size if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) == 1:
        sides = (sides[0], sides[0])
    if len(sides) != 2 or not all(type(s) is int and 0 < s <= _LARGEST_SIDE_PX for s in sides):
        return None
    return (sides[0], sides[1])


def summarise(path: Path) -> CheckpointSummary:
    """Say what a checkpoint is, without torch and without running anything from it.

    Raises:
        SourceError: The file is missing, damaged or not a checkpoint of a known task.
        UnsafeCheckpointError: It wants a class or function that is not admitted.
    """
    with open_checkpoint(path) as root:
        network = network_record(root, path)
        fields = root if isinstance(root, dict) else {}
        try:
            head = head_record(network)
            task = task_from_head(head.name, path)
            train_args = fields.get("train_args") or network.get("args")
            yaml = network.get("yaml")
            return CheckpointSummary(
                task=task,
                class_names=class_names_from(network.get("names"), class_count(head)),
                model_class=network.name,
                head_class=head.name,
                yaml=_plain(yaml if isinstance(yaml, dict) else {}, [_PLAIN_VALUES]),
                input_size=input_size_from(train_args),
                strides=_strides(head),
                parameter_count=_parameter_count(network),
                version=_shown(fields.get("version")),
                date=_shown(fields.get("date")),
                has_ema=fields.get("ema") is not None,
            )
        except DAMAGE as error:
            raise damaged(path, error) from error


def class_count(head: Record) -> Any:
    """Return how many classes a head says that it has, unchecked."""
    linear = layers_of(head).get("linear")
    return linear.get("out_features") if isinstance(linear, Record) else head.get("nc")


def _strides(head: Record) -> tuple[int, ...]:
    stride = head.get("stride")
    if not isinstance(stride, TensorRecord):
        return ()
    return tuple(int(s) for s in np.atleast_1d(stride.array()).ravel()[:16])


def _parameter_count(network: Record) -> int:
    """Count the elements of the parameters of all layers, shared ones once."""
    seen: set[int] = set()
    waiting, total = [network], 0
    while waiting:
        record = waiting.pop()
        if id(record) in seen:
            continue
        seen.add(id(record))
        for tensor in (record.get("_parameters") or {}).values():
            if isinstance(tensor, TensorRecord) and id(tensor) not in seen:
                seen.add(id(tensor))
                total += tensor.count
        waiting.extend(m for m in layers_of(record).values() if isinstance(m, Record))
    return total


def _shown(value: Any) -> str | None:
    return None if value is None else str(value)[:100]


def _plain(value: Any, budget: list[int]) -> Any:
    """Copy a configuration as JSON types; other values become their text.

    A dictionary that refers to itself, or that repeats its parts without end, is refused.
    """
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError("its configuration is too large")
    if isinstance(value, dict):
        return {str(k): _plain(v, budget) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, budget) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{type(value).__name__}>"
