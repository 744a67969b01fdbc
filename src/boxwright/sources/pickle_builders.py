"""Builders of the functions that a checkpoint's pickle may call, on inert data only.

A builder gets the arguments that the pickle gave to a function and returns plain data of the same
meaning. Arguments that `torch.save` never writes raise `ValueError` or `TypeError`, which the
reader reports as damage; those that would need code raise `RefusedError`.
"""

from __future__ import annotations

import datetime
import math
import pathlib
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from boxwright.sources.admitted import DTYPES, GlobalRef, storage_dtype
from boxwright.sources.inert import MemberRef, Record, RefusedError, Storage, TensorRecord

__all__ = ["BUILDERS", "checked_key", "storage_from_id"]

_EXPANDED_LIMIT = 1 << 24  # elements of a tensor that repeats its storage
_CODECS = frozenset({"latin1", "latin-1", "ascii", "utf-8", "utf8"})
_DILL_TYPES = frozenset({"set", "frozenset", "dict", "list", "tuple"})
_NUMPY_SCALAR = re.compile(r"[fiubUS][0-9]{1,4}")

Builder: TypeAlias = Callable[[tuple[Any, ...]], Any]


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("a size is not a whole number")
    return value


def _wholes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise ValueError("a shape is not a tuple")
    return tuple(_whole(v) for v in value)


def _tensor(args: tuple[Any, ...], dtype: str | None = None) -> TensorRecord:
    """Describe a tensor: storage, offset, shape, stride, requires_grad."""
    storage, offset, shape, stride, requires_grad = args
    if not isinstance(storage, Storage):
        raise ValueError("a tensor has no storage")
    offset, shape, stride = _whole(offset), _wholes(shape), _wholes(stride)
    if len(shape) != len(stride):
        raise ValueError("a tensor's shape and stride differ in length")
    dtype = dtype or storage.dtype
    available = storage.count
    if dtype != storage.dtype:
        sizes = [np.dtype(DTYPES[d]).itemsize for d in (storage.dtype, dtype)]
        if storage.count * sizes[0] % sizes[1] or storage.dtype == "bool" or dtype == "bool":
            raise ValueError("a tensor's type does not fit its storage")
        available = storage.count * sizes[0] // sizes[1]
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if count and last >= available:
        raise ValueError("a tensor reaches beyond its storage")
    if count > max(available, _EXPANDED_LIMIT) or offset > available:
        raise ValueError("a tensor is larger than its storage")
    return TensorRecord(dtype, shape, stride, offset, storage, bool(requires_grad))


def _tensor_v2(args: tuple[Any, ...]) -> TensorRecord:
    if not 6 <= len(args) <= 7:  # the hooks and the metadata are dropped
        raise ValueError("a tensor has the wrong number of arguments")
    return _tensor(args[:5])


def _tensor_v3(args: tuple[Any, ...]) -> TensorRecord:
    if not 7 <= len(args) <= 8 or not isinstance(args[6], GlobalRef) or args[6].kind != "dtype":
        raise ValueError("a tensor has the wrong arguments")
    return _tensor(args[:5], args[6].name)


def _parameter(args: tuple[Any, ...]) -> TensorRecord:
    data, requires_grad = args[0], args[1]  # hooks and attributes are dropped
    if not isinstance(data, TensorRecord):
        raise ValueError("a parameter has no tensor")
    return replace(data, requires_grad=bool(requires_grad), is_parameter=True)


def _pairs(args: tuple[Any, ...]) -> OrderedDict[Any, Any]:
    """Build an ordered dictionary from nothing, or from a list of pairs as protocol 0 wrote it."""
    result: OrderedDict[Any, Any] = OrderedDict()
    for pair in _values(args):
        key, value = pair
        result[checked_key(key)] = value
    return result


def _default_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    if len(args) > 1:
        raise ValueError("a defaultdict has the wrong arguments")
    return {}


def _values(args: tuple[Any, ...]) -> list[Any]:
    """Return the items of the one plain container that a container is built from."""
    if not args:
        return []
    (source,) = args
    if not isinstance(source, (list, tuple, set, frozenset, bytes)):
        raise ValueError("a container is built from something else than a container")
    return list(source)


def _set(args: tuple[Any, ...]) -> set[Any]:
    return {checked_key(v) for v in _values(args)}


def _bytearray(args: tuple[Any, ...]) -> bytearray:
    if len(args) == 2 and isinstance(args[0], str):
        return bytearray(_encode(args))
    return bytearray(bytes(_values(args)))


def _slice(args: tuple[Any, ...]) -> slice:
    if not all(a is None or type(a) is int for a in args):
        raise ValueError("a slice has the wrong arguments")
    return slice(*args)


def _complex(args: tuple[Any, ...]) -> complex:
    if not all(type(a) in (int, float) for a in args):
        raise ValueError("a complex number has the wrong arguments")
    return complex(*args)


def _encode(args: tuple[Any, ...]) -> bytes:
    text, codec = args if len(args) == 2 else (args[0], "utf-8")
    if not isinstance(text, str) or codec not in _CODECS:
        raise RefusedError(f"wants the codec {str(codec)[:40]!r}")
    return text.encode(codec)


def _member(args: tuple[Any, ...]) -> MemberRef:
    """Note a member of an admitted class or instance, as old heads and fused layers kept one."""
    owner, name = args
    classes = ("network", "bookkeeping")
    known = isinstance(owner, Record) or (isinstance(owner, GlobalRef) and owner.kind in classes)
    if not known or not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise RefusedError(f"wants builtins.getattr of {str(name)[:40]!r}")
    return MemberRef(owner, name)


def _reconstructed(args: tuple[Any, ...]) -> Record:
    """Build an instance as protocols 0 and 1 wrote it: class, object, None."""
    ref, base, state = args
    if not isinstance(ref, GlobalRef) or ref.kind not in ("network", "bookkeeping"):
        raise RefusedError("wants copyreg._reconstructor of something else than a class")
    if not isinstance(base, GlobalRef) or base.name != "object" or state is not None:
        raise RefusedError(f"wants copyreg._reconstructor of {ref.path} with a base of its own")
    return Record(ref)


def _dill_type(args: tuple[Any, ...]) -> GlobalRef:
    """Return the built-in container that dill names: set, or SetType as some releases spell it."""
    (name,) = args
    plain = str(name).removesuffix("Type").lower()
    if plain not in _DILL_TYPES:
        raise RefusedError(f"wants dill._dill._load_type of {str(name)[:40]!r}")
    return GlobalRef("builtins", plain, "function")


def _posix_path(args: tuple[Any, ...]) -> str:
    return str(pathlib.PurePosixPath(*(_text(a) for a in args)))


def _windows_path(args: tuple[Any, ...]) -> str:
    return str(pathlib.PureWindowsPath(*(_text(a) for a in args)))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a path or device is not text")
    return value


def _device(args: tuple[Any, ...]) -> str:
    return ":".join([_text(args[0]), *(str(_whole(a)) for a in args[1:2])])


def _dated(kind: Callable[..., Any]) -> Builder:
    """Return a builder of a date or time; the real types only check numbers."""
    plain = (int, bytes, type(None), datetime.timezone, datetime.timedelta)

    def build(args: tuple[Any, ...]) -> Any:
        if not all(type(a) in plain for a in args):
            raise ValueError("a date has the wrong arguments")
        return kind(*args)

    return build


def _numpy_scalar(args: tuple[Any, ...]) -> Any:
    """Return a NumPy scalar as a plain number or text."""
    dtype, data = args
    if not isinstance(dtype, Record) or dtype.ref.path != "numpy.dtype" or not dtype.args:
        raise ValueError("a NumPy scalar has no dtype")
    code = dtype.args[0]
    if not isinstance(code, str) or not _NUMPY_SCALAR.fullmatch(code):
        raise ValueError("a NumPy scalar has an unknown dtype")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "="
    kind = np.dtype(code).newbyteorder(">" if order == ">" else "<")
    if not isinstance(data, bytes) or len(data) != kind.itemsize:
        raise ValueError("a NumPy scalar has the wrong size")
    return np.frombuffer(data, kind)[0].item()


def _numpy_array(args: tuple[Any, ...]) -> Record:
    if not args or not isinstance(args[0], GlobalRef) or args[0].path != "numpy.ndarray":
        raise ValueError("a NumPy array has the wrong arguments")
    return Record(args[0])


def checked_key(value: Any) -> Any:
    """Return a value that may be a dictionary key; nested ones would let hashing recurse deeply."""
    plain = (str, int, float, complex, bytes, type(None), GlobalRef, Record, TensorRecord)
    parts = value if type(value) is tuple else (value,)
    if not all(isinstance(p, plain) for p in parts):
        raise ValueError("a key of a dictionary or set is not plain")
    return value


def storage_from_id(
    identity: Any, size_of: Callable[[str], int], read: Callable[[str], bytes]
) -> Storage:
    """Return the storage that a persistent id of torch names.

    Args:
        identity: ("storage", storage class, key, device, element count).
        size_of: Gives the bytes of a key; raises `KeyError` when there are none.
        read: Gives the bytes themselves.

    Raises:
        ValueError: It is no such id, or its storage is too small.
    """
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise ValueError("a storage has an unknown id")
    ref, key, count = identity[1], identity[2], _whole(identity[4])
    if not isinstance(ref, GlobalRef) or ref.kind != "storage" or not isinstance(key, str):
        raise ValueError("a storage has an unknown class")
    dtype = storage_dtype(ref)
    if count * np.dtype(DTYPES[dtype]).itemsize > size_of(key):
        raise ValueError(f"the storage {key} is cut short")
    return Storage(key, dtype, count, read)


# By simple name: the modules that may name each stand in `admitted.FUNCTIONS`.
BUILDERS: dict[str, Builder] = {
    "_rebuild_tensor_v2": _tensor_v2,
    "_rebuild_tensor_v3": _tensor_v3,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "OrderedDict": _pairs,
    "defaultdict": _default_dict,
    "set": _set,
    "frozenset": lambda args: frozenset(_set(args)),
    "dict": lambda args: dict(_pairs(args)),
    "list": _values,
    "tuple": lambda args: tuple(_values(args)),
    "slice": _slice,
    "complex": _complex,
    "bytearray": _bytearray,
    "getattr": _member,
    "_reconstructor": _reconstructed,
    "_load_type": _dill_type,
    "encode": _encode,
    "Size": lambda args: _wholes(args[0]),
    "device": _device,
    "datetime": _dated(datetime.datetime),
    "date": _dated(datetime.date),
    "time": _dated(datetime.time),
    "timedelta": _dated(datetime.timedelta),
    "timezone": _dated(datetime.timezone),
    "Path": _posix_path,
    "PurePath": _posix_path,
    "PosixPath": _posix_path,
    "PurePosixPath": _posix_path,
    "WindowsPath": _windows_path,
    "PureWindowsPath": _windows_path,
    "scalar": _numpy_scalar,
    "_reconstruct": _numpy_array,
}
