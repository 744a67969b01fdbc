"""Reads operators and inputs of an ONNX file without the onnx package and without its weights.

A server's Python has no onnx, and a model of many MB is walked over in milliseconds: of what is not
asked for the length alone is read. The wire format is protobuf's (protobuf.dev, "Encoding"), the
field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Sizes", "read_graph"]

Sizes = tuple[int | str | None, ...]
_Bytes = bytes | mmap.mmap
_Field = tuple[int, int, int, int]  # number, begin, end; or of a varint number, 0, 0, value

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 1, 5, 11
_NODE_OPERATOR = 4
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_SHAPE = 2
_SHAPE_SIZE = 1
_SIZE_VALUE, _SIZE_NAME = 1, 2


def read_graph(model: Path | bytes) -> tuple[frozenset[str], dict[str, Sizes]]:
    """Return the operators of a graph, and its inputs without initialisers.

    Operators of subgraphs are left out: what holds one (If, Loop, Scan) is among the operators.

    Returns:
        Names of operators; and by name an input's sizes, a text or None where one is free.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no protobuf message of this kind, or is cut off.
    """
    if isinstance(model, bytes):
        return _graph_of(model)
    with model.open("rb") as file:
        if not file.seek(0, 2):
            return _graph_of(b"")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _graph_of(mapped)


def _graph_of(data: _Bytes) -> tuple[frozenset[str], dict[str, Sizes]]:
    operators: set[str] = set()
    constants: set[str] = set()
    inputs: dict[str, Sizes] = {}
    for begin, end in _messages(data, 0, len(data), _MODEL_GRAPH):
        for number, first, last, _ in _fields(data, begin, end):
            if not last:  # a varint
                continue
            if number == _GRAPH_NODE:
                operators.add(_text(data, first, last, _NODE_OPERATOR))
            elif number == _GRAPH_INITIALIZER:
                constants.add(_text(data, first, last, _TENSOR_NAME))
            elif number == _GRAPH_INPUT:
                inputs[_text(data, first, last, _VALUE_NAME)] = _sizes(data, first, last)
    return frozenset(operators), {n: s for n, s in inputs.items() if n not in constants}


def _sizes(data: _Bytes, begin: int, end: int) -> Sizes:
    """Return the shape of a ValueInfoProto; () for what is no tensor."""
    places = [(begin, end)]
    for number in (_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_SIZE):
        places = [inner for place in places for inner in _messages(data, *place, number)]
    return tuple(_size(data, *place) for place in places)


def _size(data: _Bytes, begin: int, end: int) -> int | str | None:
    """Return a TensorShapeProto.Dimension, of whose value and name the last one holds."""
    found: int | str | None = None
    for number, first, last, value in _fields(data, begin, end):
        if number == _SIZE_VALUE and not last:
            found = value - (1 << 64) if value >> 63 else value
        elif number == _SIZE_NAME and last:
            found = data[first:last].decode() or None
    return found


def _text(data: _Bytes, begin: int, end: int, number: int) -> str:
    found = b""
    for first, last in _messages(data, begin, end, number):
        found = data[first:last]
    return found.decode()


def _messages(data: _Bytes, begin: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Yield where the fields of a number lie: messages and texts."""
    for number, first, last, _ in _fields(data, begin, end):
        if number == wanted and last:
            yield first, last


def _fields(data: _Bytes, begin: int, end: int) -> Iterator[_Field]:
    """Yield the varints of a message, and where its messages and texts lie; skip the others.

    Raises:
        ValueError: The message is damaged.
    """
    place = begin
    while place < end:
        tag, place = _varint(data, place, end)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise ValueError(f"field 0 at byte {place}")
        if kind == _VARINT:
            value, place = _varint(data, place, end)
            yield number, 0, 0, value
            continue
        if kind == _LENGTH:
            length, place = _varint(data, place, end)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ValueError(f"a field of kind {kind} at byte {place}")
        if place + length > end:
            raise ValueError(f"{end - place} of {length} bytes at byte {place}")
        if kind == _LENGTH:
            yield number, place, place + length, 0
        place += length


def _varint(data: _Bytes, place: int, end: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            raise ValueError(f"it ends inside a number, at byte {place}")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & ((1 << 64) - 1), place
    raise ValueError(f"a number of more than ten bytes at byte {place}")
