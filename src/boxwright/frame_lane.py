"""uint8 pictures to the network in one copy and one launch, letterboxed on the GPU.

A lane is a context with memory for a batch of pictures. Their records and the pixels of those that
lie on the host travel together in one copy; pictures that a decoder left on the GPU are read where
they are. Then the letterbox kernel and the network run on the lane's stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.cuda_memory import DeviceBuffers
from boxwright.device_arrays import DeviceArray, device_array, is_on_device
from boxwright.errors import ImageError
from boxwright.gpu_preprocess import PICTURE, Letterbox, picture_record
from boxwright.nvidia import cuda_result
from boxwright.plan_context import Plan, PlanContext
from boxwright.preprocess import Placement, place
from boxwright.types import Image, Preprocess

__all__ = ["FrameLane"]

_STAGING = "pictures"
_ALIGNMENT = 256
_SIZES = 1024  # of pictures, whose placements are kept
_GROWTH = 1.25  # pinned memory is slow to get, so that it grows by more than is asked for


class FrameLane:
    """A batch's way from uint8 pictures to the outputs; for one batch at a time.

    Call `reserve`, then `fill` once for each picture (from any thread), then `start` and `finish`.
    """

    def __init__(
        self,
        plan: Plan,
        context: PlanContext,
        letterbox: Letterbox,
        rules: Preprocess,
        size: tuple[int, int],
    ) -> None:
        """Make a lane.

        Args:
            plan: What all lanes share.
            context: Its own.
            letterbox: The kernel.
            rules: The family's preprocessing.
            size: Network input (height, width) in pixels.
        """
        self._rules = rules
        # Pictures of one size lie alike; collections have a few sizes.
        self._place = lru_cache(_SIZES)(lambda source: place(source, size, rules))
        self._plan, self._context, self._letterbox = plan, context, letterbox
        self._info = plan.inputs[0]
        self._buffers = DeviceBuffers(plan.cuda, context.stream)
        self._capacity = 0
        self._offsets: list[int] = []
        self._records: npt.NDArray[Any] = np.empty(0, PICTURE)
        self._held: list[DeviceArray] = []
        self._end = 0

    def reserve(
        self,
        pictures: Sequence[Any],
        batch: int,
        *,
        device_is_rgb: bool = False,
    ) -> list[Placement]:
        """Lay a batch out in the staging memory; pictures on the GPU need nothing more.

        Args:
            pictures: (H, W, 3) uint8 BGR each: NumPy arrays, or arrays on the GPU.
            batch: Places of the network's batch; those beyond the pictures stay black.
            device_is_rgb: Pictures on the GPU are RGB.

        Raises:
            ImageError: A picture on the GPU is not one.
            BackendError: There is no memory left.
        """
        places: list[Placement] = []
        rows: list[tuple[int | float, ...]] = []
        self._offsets, end = [], _aligned(batch * PICTURE.itemsize)
        swap = self._rules.color == "rgb"
        for picture in pictures:
            if is_on_device(picture):
                array = self._on_device(picture)
                shape, address, pitch = array.shape, array.pointer, array.strides[0]
                turn = swap != device_is_rgb
                self._offsets.append(-1)
            else:
                shape, address, pitch = picture.shape, end, picture.shape[1] * 3
                turn = swap
                self._offsets.append(end)
                end = _aligned(end + picture.nbytes)
            where = self._place((shape[0], shape[1]))
            places.append(where)
            rows.append(picture_record(address, pitch, where, swap=turn))
        if end > self._capacity:
            self._capacity = int(end * _GROWTH)
            self._buffers.reserve(_STAGING, self._capacity)
        base = self._buffers.address(_STAGING)
        records = np.zeros(batch, PICTURE)
        records[: len(rows)] = np.array(rows, PICTURE)
        on_host = [i for i, offset in enumerate(self._offsets) if offset >= 0]
        records["pixels"][on_host] += np.uint64(base)
        view = self._buffers.view(_STAGING, (batch * PICTURE.itemsize,), "uint8")
        view[:] = records.view(np.uint8)
        self._records, self._end = records, end
        return places

    def _on_device(self, picture: Any) -> DeviceArray:
        array = device_array(picture, self._plan.cuda, self._context.stream, "picture")
        self._held.append(array)
        array.check_device(self._plan.cuda, self._plan.device, "the picture")
        packed = array.strides[1:] == (3, 1)
        if array.dtype != "uint8" or len(array.shape) != 3 or array.shape[2] != 3 or not packed:
            raise ImageError(
                "picture on the GPU",
                f"{array.dtype} of shape {array.shape} is no picture",
                "give (H, W, 3) uint8 whose rows have no gaps inside",
            )
        return array

    def fill(self, index: int, picture: Image) -> None:
        """Copy one picture of the host into the staging memory."""
        offset = self._offsets[index]
        if offset >= 0:
            view = self._buffers.view(_STAGING, picture.shape, "uint8", offset)
            np.copyto(view, picture)

    def start(self) -> None:
        """Start copying, letterboxing and the network; all places must be filled.

        Raises:
            BackendError: A launch fails.
        """
        self.upload()
        self._context.start_bound()

    def upload(self) -> None:
        """Start copying and letterboxing alone.

        Raises:
            BackendError: A launch fails.
        """
        context, shape = self._context, (len(self._records), *self._input_shape())
        self._buffers.copy_in(_STAGING, self._end)
        tensor = context.input_address(self._info.name, shape, self._info.dtype)
        context.bind({self._info.name: shape}, {self._info.name: tensor})
        self._letterbox.launch(
            self._buffers.address(_STAGING), tensor, len(self._records), context.stream
        )

    def synchronize(self) -> None:
        """Wait for its stream.

        Raises:
            BackendError: What ran there failed.
        """
        self._context.synchronize()

    @property
    def upload_bytes(self) -> int:
        """What one batch copies to the GPU."""
        return self._end

    def _input_shape(self) -> tuple[int, ...]:
        return tuple(int(d) for d in self._info.shape[1:])

    def finish(self, *, patient: bool = True) -> dict[str, npt.NDArray[Any]]:
        """Wait; the outputs are views that last until the next `start`.

        Args:
            patient: Sleep while waiting, which leaves the core to others and costs some latency.

        Raises:
            BackendError: The run failed.
        """
        try:
            return self._context.finish(patient=patient)
        finally:
            self.release()

    def tensor(self) -> npt.NDArray[Any]:
        """Return a copy of what the kernel wrote, (B, 3, H, W), after `finish`; for checks.

        Raises:
            BackendError: The copy fails.
        """
        shape = (len(self._records), *self._input_shape())
        view = self._context.input_view(self._info.name, shape, self._info.dtype)
        address = self._context.input_address(self._info.name, shape, self._info.dtype)
        cuda = self._plan.cuda
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        cuda_result(
            cuda.cudaMemcpyAsync(
                view.ctypes.data, address, view.nbytes, kind, self._context.stream
            ),
            "cudaMemcpyAsync",
        )
        self._context.synchronize()
        return np.array(view)

    def attach_thread(self) -> None:
        """Make the plan's GPU the one of the calling thread.

        Raises:
            BackendError: CUDA refuses.
        """
        self._context.attach_thread()

    def release(self) -> None:
        """Give pictures on the GPU back to their owners."""
        for array in self._held:
            array.release()
        self._held.clear()

    def close(self) -> None:
        """Free the staging memory; the context belongs to the plan."""
        self.release()
        self._buffers.free()
        self._capacity = 0


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
