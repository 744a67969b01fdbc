"""Arrays of other libraries that lie on the GPU, read without a copy.

Two protocols are known: `__cuda_array_interface__` (version 3: CuPy, Numba, torch, nvImageCodec)
and DLPack (`__dlpack__`: torch, CuPy, JAX and others), whose struct is read through ctypes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from boxwright.errors import BackendError
from boxwright.nvidia import cuda_result

__all__ = ["DeviceArray", "device_array", "is_on_device"]

_ON_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_KINDS = {0: "int", 1: "uint", 2: "float", 6: "bool"}  # DLPack's type codes that NumPy has, too
_NAME, _USED = b"dltensor", b"used_dltensor"


class DeviceArray:
    """Memory on the GPU that somebody else owns, held until `release`.

    Attributes:
        pointer: Address of its first element.
        shape: As usual.
        strides: In bytes.
        dtype: NumPy's name.
        device: Number of the GPU, or None when the protocol does not say.
    """

    __slots__ = ("_keep", "_managed", "device", "dtype", "pointer", "shape", "strides")

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        dtype: str,
        device: int | None,
        keep: Any,
        managed: int = 0,
    ) -> None:
        self.pointer, self.shape, self.dtype, self.device = pointer, shape, dtype, device
        self.strides = strides or _packed_strides(shape, dtype)
        self._keep, self._managed = keep, managed

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow each other in C order."""
        packed = _packed_strides(self.shape, self.dtype)
        return all(
            have == want or size == 1
            for have, want, size in zip(self.strides, packed, self.shape, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def check_device(self, cuda: Any, here: int, what: str) -> None:
        """Refuse memory of another GPU.

        Args:
            cuda: The CUDA runtime's bindings.
            here: Number of the GPU that runs the network.
            what: What to call it in errors.

        Raises:
            BackendError: It lies on another GPU, or not on a GPU at all.
        """
        device = self.device
        if device is None:
            facts = cuda_result(
                cuda.cudaPointerGetAttributes(self.pointer), "cudaPointerGetAttributes"
            )
            device = int(facts.device)
        if device != here:
            raise BackendError(
                "inference", f"{what} lies on GPU {device}", f"copy it to GPU {here}, the plan's"
            )

    def release(self) -> None:
        """Let the owner have it back; a second call does nothing."""
        managed, self._managed = self._managed, 0
        self._keep = None
        if managed:
            tensor = _ManagedTensor.from_address(managed)
            if tensor.deleter:
                _DELETER(tensor.deleter)(managed)

    def __del__(self) -> None:
        self.release()


def is_on_device(value: Any) -> bool:
    """Whether an object is an array on a CUDA GPU; NumPy's own arrays never are."""
    if isinstance(value, np.ndarray):
        return False
    if isinstance(value, DeviceArray) or hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in _ON_CUDA


def device_array(value: Any, cuda: Any, stream: Any, what: str) -> DeviceArray:
    """Return an array on the GPU as it lies there; work on `stream` may use it from now on.

    Args:
        value: An object of which `is_on_device` is true.
        cuda: The CUDA runtime's bindings.
        stream: Stream that will read it; it waits for what the owner has begun.
        what: What to call it in errors.

    Raises:
        BackendError: Its type is not one of NumPy's, or it has a mask.
    """
    if isinstance(value, DeviceArray):
        return value
    # DLPack first: it says the device, and both sides agree on the stream.
    if hasattr(value, "__dlpack__") and int(value.__dlpack_device__()[0]) in _ON_CUDA:
        return _from_dlpack(value, int(stream), what)
    return _from_interface(value, cuda, stream, what)


def _from_interface(value: Any, cuda: Any, stream: Any, what: str) -> DeviceArray:
    facts = value.__cuda_array_interface__
    if facts.get("mask") is not None:
        raise BackendError("inference", f"{what} has a mask", "give an array without one")
    producer = facts.get("stream")
    if producer is not None and int(producer) != int(stream):
        _wait_for(int(producer), cuda, stream)
    return DeviceArray(
        int(facts["data"][0]),
        tuple(int(n) for n in facts["shape"]),
        tuple(int(n) for n in facts["strides"]) if facts.get("strides") else None,
        np.dtype(facts["typestr"]).name,
        None,
        (value, facts),
    )


def _wait_for(producer: int, cuda: Any, stream: Any) -> None:
    """Let a stream wait for all that another one has been given (1 and 2 are CUDA's defaults)."""
    event = cuda_result(cuda.cudaEventCreateWithFlags(2), "cudaEventCreateWithFlags")
    try:
        cuda_result(cuda.cudaEventRecord(event, producer), "cudaEventRecord")
        cuda_result(cuda.cudaStreamWaitEvent(stream, event, 0), "cudaStreamWaitEvent")
    finally:
        cuda.cudaEventDestroy(event)  # CUDA keeps it until the wait is over


def _packed_strides(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    strides, step = [], np.dtype(dtype).itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


# -- DLPack's struct (dlpack.h, version 0.x, which `__dlpack__` without `max_version` returns)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_DELETER = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)  # with the GIL: it may drop Python objects
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)


def _from_dlpack(value: Any, stream: int, what: str) -> DeviceArray:
    capsule = value.__dlpack__(stream=stream)
    if not _is_valid(capsule, _NAME):
        raise BackendError(
            "inference", f"{what} gives no DLPack tensor", "update its library, or give NumPy"
        )
    managed = int(_get_pointer(capsule, _NAME))
    _set_name(capsule, _USED)  # from here on its deleter is ours to call
    tensor = _ManagedTensor.from_address(managed).tensor
    shape = tuple(int(tensor.shape[i]) for i in range(tensor.ndim))
    known = tensor.code in _KINDS and tensor.lanes == 1
    kind = _KINDS.get(tensor.code, "")
    dtype = "bool" if kind == "bool" else f"{kind}{tensor.bits}"
    # Held from here on, so that a refusal calls the deleter, too.
    array = DeviceArray(
        int(tensor.data or 0) + int(tensor.byte_offset),
        shape,
        None,
        dtype if known else "uint8",
        int(tensor.device_id),
        capsule,
        managed,
    )
    if not known:
        array.release()
        raise BackendError("inference", f"{what} has a type that NumPy has not", "convert it first")
    if tensor.strides:
        size = np.dtype(dtype).itemsize
        array.strides = tuple(int(tensor.strides[i]) * size for i in range(tensor.ndim))
    return array
