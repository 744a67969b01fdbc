"""uint8 pictures to the network in one copy and one launch, letterboxed on the GPU.

A lane is a context with memory for a batch of pictures. Their records and the pixels of those that
lie on the host travel together in one copy; pictures that a decoder left on the GPU are read where
they are. Then the letterbox kernel, the network and the copy of the outputs run on the lane's
stream, from the second batch of a size on as one CUDA graph. The graph knows where records, tensor
and outputs lie, and the number of pictures; their sizes are in the records.

Who waits for a frame has its pixels sent in pieces: one travels while the host copies the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.cuda_memory import DeviceBuffers
from boxwright.device_arrays import DeviceArray, device_array, is_on_device
from boxwright.errors import ImageError
from boxwright.gpu_preprocess import PICTURE, RECORD, Letterbox, picture_record
from boxwright.nvidia import cuda_result
from boxwright.plan_context import Plan, PlanContext
from boxwright.preprocess import Placement, place
from boxwright.types import Image, Preprocess

__all__ = ["FrameLane"]

_STAGING = "pictures"
_ALIGNMENT = 256
_SIZES = 1024  # of pictures, whose placements are kept
# n pieces cost n calls of about 4 µs, and the last one's time on a bus of about 30 GB/s; the sum is
# least at n = sqrt(size / (time of a call * rate of the bus)).
_CALL_BYTES = 128 << 10
_GROWTH = 1.25  # pinned memory is slow to get, so that it grows by more than is asked for

_Record = tuple[tuple[float, float], tuple[int, ...]]  # scales; sizes and place


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
        self._placed = lru_cache(_SIZES)(lambda source: _placed(source, size, rules))
        self._plan, self._context, self._letterbox = plan, context, letterbox
        self._info = plan.inputs[0]
        self._buffers = DeviceBuffers(plan.cuda, context.stream)
        self._pixels: npt.NDArray[np.uint8] = np.empty(0, np.uint8)  # the staging memory
        self._offsets: list[int] = []
        self._places: list[Placement] = []
        self._shape: tuple[int, ...] = ()  # of the batch
        self._end = 0
        self._standing: tuple[Any, ...] | None = None  # layout whose records are in place
        self._kernel: tuple[tuple[int, int, int], Callable[[], None]] | None = None
        self._held: list[DeviceArray] = []

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
        sizes = tuple(p.shape for p in pictures if isinstance(p, np.ndarray))
        layout = (batch, sizes) if len(sizes) == len(pictures) else None
        if layout is not None and layout == self._standing:
            return self._places
        self._standing = None
        places: list[Placement] = []
        rows: list[tuple[bool, int, int, bool, _Record]] = []
        offsets, end = [], _aligned(batch * PICTURE.itemsize)
        swap = self._rules.color == "rgb"
        for picture in pictures:
            if is_on_device(picture):
                array = self._on_device(picture)
                shape, offset = array.shape, -1
                row = (False, array.pointer, array.strides[0], swap != device_is_rgb)
            else:
                shape, offset = picture.shape, end
                row = (True, end, shape[1] * 3, swap)
                end = _aligned(end + picture.nbytes)
            offsets.append(offset)
            where, record = self._placed((shape[0], shape[1]))
            places.append(where)
            rows.append((*row, record))
        self._make_room(end)
        base, memory = self._buffers.address(_STAGING), self._pixels.data
        for index, (inside, address, pitch, turn, (scales, rest)) in enumerate(rows):
            at = index * RECORD.size
            first = base + address if inside else address
            RECORD.pack_into(memory, at, first, *scales, pitch, *rest, turn)
        self._pixels[len(rows) * RECORD.size : batch * RECORD.size] = 0
        self._offsets, self._places, self._end = offsets, places, end
        self._shape = (batch, *(int(d) for d in self._info.shape[1:]))
        self._standing = layout
        return places

    def _make_room(self, end: int) -> None:
        if end > len(self._pixels):
            self._pixels = self._pixels[:0]
            capacity = int(end * _GROWTH)
            self._buffers.reserve(_STAGING, capacity)
            self._pixels = self._buffers.view(_STAGING, (capacity,), "uint8")

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
            np.copyto(self._target(offset, picture), picture)

    def _target(self, offset: int, picture: Image) -> Image:
        return self._pixels[offset : offset + picture.nbytes].reshape(picture.shape)

    def start(self) -> None:
        """Start copying, letterboxing and the network; all places must be filled.

        Raises:
            BackendError: A launch fails.
        """
        self._buffers.copy_in(_STAGING, self._end)
        self._launch()

    def start_with(self, pictures: Sequence[Any]) -> None:
        """Fill all places and start, in pieces that are sent while the next is copied.

        Args:
            pictures: Those that places were reserved for.

        Raises:
            BackendError: A copy or a launch fails.
        """
        self._send(pictures)
        self._launch()

    def _send(self, pictures: Sequence[Any]) -> None:
        """Copy all pictures of the host to the device, with the records before them."""
        piece = -(-self._end // max(1, math.isqrt(self._end // _CALL_BYTES)))
        sent = 0
        for offset, picture in zip(self._offsets, pictures, strict=True):
            if offset < 0:
                continue
            target, pitch = self._target(offset, picture), picture.shape[1] * 3
            rows = -(-piece // pitch)
            for first in range(0, len(picture), rows):
                np.copyto(target[first : first + rows], picture[first : first + rows])
                end = offset + min(first + rows, len(picture)) * pitch
                if end - sent >= piece:
                    self._buffers.copy_in(_STAGING, end - sent, sent)
                    sent = end
        self._buffers.copy_in(_STAGING, self._end - sent, sent)

    def _launch(self) -> None:
        """Start the letterbox, the network and the copy of the outputs."""
        tensor = self._context.bind_own(self._shape)
        self._context.start_frames(self._bound_kernel(tensor), self._buffers.address(_STAGING))

    def _bound_kernel(self, tensor: int) -> Callable[[], None]:
        """Return what launches the letterbox, made anew where an address or the batch changed."""
        key = (self._buffers.address(_STAGING), tensor, self._shape[0])
        if self._kernel is None or self._kernel[0] != key:
            self._kernel = (key, self._letterbox.launcher(*key, self._context.stream))
        return self._kernel[1]

    def upload(self) -> None:
        """Start copying and letterboxing alone.

        Raises:
            BackendError: A launch fails.
        """
        self._buffers.copy_in(_STAGING, self._end)
        self._bound_kernel(self._context.bind_own(self._shape))()

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
        view = self._context.input_view(self._info.name, self._shape, self._info.dtype)
        address = self._context.input_address(self._info.name, self._shape, self._info.dtype)
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

    # -- timing

    def run_timed(self, pictures: Sequence[Any]) -> tuple[float, float]:
        """Run `start_with` and wait; return milliseconds by CUDA events.

        Returns:
            From before the first piece to the last one's end, and from there to the outputs on the
            host.

        Raises:
            BackendError: The run failed.
        """
        context = self._context
        context.mark(0)
        self._send(pictures)
        context.mark(1)
        self._launch()
        context.mark(2)
        self.finish(patient=False)
        return context.between_ms(0, 1), context.between_ms(1, 2)

    def run_in_parts(self) -> tuple[float, float, float, float]:
        """Run what is filled, launch by launch, and wait; return milliseconds by CUDA events.

        Returns:
            Of copy in, letterbox, network (as a graph of its own) and copy out.

        Raises:
            BackendError: The run failed.
        """
        context = self._context
        kernel = self._bound_kernel(context.bind_own(self._shape))
        context.ready_graph()
        context.mark(0)
        self._buffers.copy_in(_STAGING, self._end)
        context.mark(1)
        kernel()
        context.mark(2)
        context.launch()
        context.mark(3)
        context.copy_out()
        context.mark(4)
        self.finish(patient=False)
        copy_in, letterbox, network, copy_out = (context.between_ms(i, i + 1) for i in range(4))
        return copy_in, letterbox, network, copy_out

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
        self._pixels, self._standing, self._kernel = self._pixels[:0], None, None


def _placed(
    source: tuple[int, int], size: tuple[int, int], rules: Preprocess
) -> tuple[Placement, _Record]:
    """Return where pictures of a size lie, and what their records say of it."""
    where = place(source, size, rules)
    _, scale_x, scale_y, _, *rest, _ = picture_record(0, 0, where, swap=False)
    return where, ((float(scale_x), float(scale_y)), tuple(map(int, rest)))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
