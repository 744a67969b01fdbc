"""From the inert records of a YOLOv5, YOLOv6 or YOLOv7 pickle to named tensors and plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from boxwright.sources.inert import Record, TensorRecord

__all__ = ["Recorded", "recorded_from"]

_DEEPEST, _MOST_LAYERS = 64, 20_000
_MOST_NUMBERS = 1 << 30  # of all weights together
_HIDDEN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "yaml", "names")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A network's weights and what its file says of its layers.

    Attributes:
        tensors: By full name, in their stored type.
        facts: By full name of a layer: `class` and its plain attributes, lists as tuples.
    """

    tensors: Mapping[str, npt.NDArray[Any]]
    facts: Mapping[str, Mapping[str, Any]]


def recorded_from(network: Record) -> Recorded:
    """Walk a network's records.

    Raises:
        ValueError: They have no end, or are no layers.
    """
    tensors: dict[str, TensorRecord] = {}
    facts: dict[str, dict[str, Any]] = {}
    _walk(network, "", 0, tensors, facts)
    if sum(t.count for t in tensors.values()) > _MOST_NUMBERS:
        raise ValueError("its weights are too many")
    return Recorded({n: t.array() for n, t in tensors.items()}, facts)


def _walk(
    record: Record,
    path: str,
    depth: int,
    tensors: dict[str, TensorRecord],
    facts: dict[str, dict[str, Any]],
) -> None:
    if depth > _DEEPEST or len(facts) > _MOST_LAYERS:
        raise ValueError("its layers have no end")
    state = record.state if isinstance(record.state, dict) else {}
    facts[path] = {"class": record.name, "module": record.module, **_plain_facts(state)}
    stem = f"{path}." if path else ""
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (state.get(kind) or {}).items():
            if isinstance(tensor, TensorRecord):
                tensors[f"{stem}{name}"] = tensor
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, Record):
            _walk(child, f"{stem}{name}", depth + 1, tensors, facts)


def _plain_facts(state: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(key, str) or key in _HIDDEN:
            continue
        if isinstance(value, (bool, int, float, str)):
            found[key] = value
        elif isinstance(value, (list, tuple)) and len(value) <= 64:
            if all(type(v) in (bool, int, float) for v in value):
                found[key] = tuple(value)
        elif isinstance(value, TensorRecord) and key == "stride" and value.count <= 8:
            found["strides"] = tuple(int(v) for v in value.array().ravel())
    return found
