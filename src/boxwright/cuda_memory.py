"""Device memory and pinned host memory of named tensors, by the CUDA runtime's own calls."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.nvidia import cuda_result

__all__ = ["Buffer", "DeviceBuffers"]


@dataclass(slots=True)
class Buffer:
    """Addresses of a tensor on the device and of the pinned memory it is copied from or to."""

    device: int = 0
    host: int = 0
    size_bytes: int = 0
    host_bytes: int = 0


class DeviceBuffers:
    """One buffer a tensor; they grow and never shrink.

    Args:
        cuda: The CUDA runtime's bindings.
        stream: That copies run on.
    """

    def __init__(self, cuda: Any, stream: Any) -> None:
        self._cuda, self._stream = cuda, stream
        self._buffers: dict[str, Buffer] = {}

    def reserve(self, name: str, size_bytes: int, *, pinned: bool = True) -> Buffer:
        """Return a tensor's buffer, with room for so many bytes.

        Args:
            name: Of the tensor.
            size_bytes: On the device.
            pinned: As many on the host, too.

        Raises:
            BackendError: There is no memory left.
        """
        buffer = self._buffers.setdefault(name, Buffer())
        size_bytes = max(size_bytes, 1)
        if buffer.size_bytes < size_bytes:
            self._release(buffer)
            buffer.device = int(cuda_result(self._cuda.cudaMalloc(size_bytes), "cudaMalloc"))
            buffer.size_bytes = size_bytes
        if pinned and buffer.host_bytes < buffer.size_bytes:
            size = buffer.size_bytes
            buffer.host = int(cuda_result(self._cuda.cudaMallocHost(size), "cudaMallocHost"))
            buffer.host_bytes = size
        return buffer

    def address(self, name: str) -> int:
        """Return where a tensor lies on the device."""
        return self._buffers[name].device

    def host_address(self, name: str) -> int:
        """Return where a tensor's pinned memory lies."""
        return self._buffers[name].host

    def view(
        self, name: str, shape: tuple[int, ...], dtype: str, offset_bytes: int = 0
    ) -> npt.NDArray[Any]:
        """Return a tensor's pinned memory as an array; valid until its buffer grows."""
        kind = np.dtype(dtype)
        count = math.prod(shape)
        if count == 0:
            return np.empty(shape, kind)
        memory = (ctypes.c_byte * (count * kind.itemsize)).from_address(
            self._buffers[name].host + offset_bytes
        )
        array: npt.NDArray[Any] = np.frombuffer(memoryview(memory), kind, count)
        return array.reshape(shape)

    def copy_in(self, name: str, size_bytes: int, offset_bytes: int = 0) -> None:
        """Start copying a tensor, or a piece of it, to the device."""
        buffer, kind = self._buffers[name], self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(buffer.device + offset_bytes, buffer.host + offset_bytes, size_bytes, kind)

    def copy_out(self, name: str, size_bytes: int) -> None:
        """Start copying a tensor to the host."""
        buffer, kind = self._buffers[name], self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(buffer.host, buffer.device, size_bytes, kind)

    def copy_across(self, name: str, of: int, size_bytes: int) -> None:
        """Start copying what lies elsewhere on the device into a tensor's buffer."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(self._buffers[name].device, of, size_bytes, kind)

    def _copy(self, to: int, of: int, size_bytes: int, kind: Any) -> None:
        if size_bytes:
            cuda_result(
                self._cuda.cudaMemcpyAsync(to, of, size_bytes, kind, self._stream),
                "cudaMemcpyAsync",
            )

    def free(self) -> None:
        """Give all memory back."""
        for buffer in self._buffers.values():
            self._release(buffer)
        self._buffers.clear()

    def _release(self, buffer: Buffer) -> None:
        if buffer.device:
            self._cuda.cudaFree(buffer.device)
        if buffer.host:
            self._cuda.cudaFreeHost(buffer.host)
        buffer.device = buffer.host = buffer.size_bytes = buffer.host_bytes = 0
