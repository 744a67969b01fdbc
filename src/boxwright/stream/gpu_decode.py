"""JPEG files decoded on the GPU by nvImageCodec: by JPEG engines where there are some, or by CUDA.

The pictures stay on the GPU. What nvImageCodec does not decode there (other formats, four colour
components, damage) is left to OpenCV, and counted.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from queue import Empty, Queue
from typing import Any

import cv2
import numpy as np

from boxwright.device_arrays import DeviceArray
from boxwright.errors import BackendError, MissingExtraError
from boxwright.nvidia import cuda_result, cuda_runtime
from boxwright.stream.decoding import Encoded

__all__ = ["GpuDecoder", "open_decoder"]

_BLOCKING_WITHOUT_TIME = 3  # cudaEventBlockingSync | cudaEventDisableTiming
_NON_BLOCKING = 1
# The host's libjpeg-turbo interpolates chroma; without this every colour edge would differ.
_OPTIONS = ":fancy_upsampling=1"
_COLORS = (1, 3)


@cache
def _dtype_name(typestr: str) -> str:
    return np.dtype(typestr).name


class _One:
    """A decoder with its stream and the pictures that it fills over and over."""

    def __init__(
        self, codec: Any, cuda: Any, device: int, threads: int, hardware: float, options: str
    ) -> None:
        kind = codec.BackendKind
        backends = [codec.Backend(kind.GPU_ONLY), codec.Backend(kind.HYBRID_CPU_GPU)]
        if hardware > 0:
            backends.insert(0, codec.Backend(kind.HW_GPU_ONLY, load_hint=hardware))
        self.decoder = codec.Decoder(
            device_id=device, max_num_cpu_threads=threads, backends=backends, options=options
        )
        self.stream = cuda_result(
            cuda.cudaStreamCreateWithFlags(_NON_BLOCKING), "cudaStreamCreateWithFlags"
        )
        self.done = cuda_result(
            cuda.cudaEventCreateWithFlags(_BLOCKING_WITHOUT_TIME), "cudaEventCreateWithFlags"
        )


class GpuDecoder:
    """Decodes batches of JPEG files, several at once from several threads.

    Attributes:
        depth: Batches at once.
    """

    def __init__(
        self,
        codec: Any,
        cuda: Any,
        *,
        depth: int = 2,
        threads: int = 4,
        hardware: float = 1.0,
        reuse: bool = True,
        options: str = _OPTIONS,
    ) -> None:
        """Open decoders and try one.

        Args:
            codec: The module `nvidia.nvimgcodec`.
            cuda: The CUDA runtime's bindings.
            depth: Batches at once.
            threads: Of the CPU, for each of them.
            hardware: Share of a batch for the JPEG engines; the rest is decoded by CUDA.
            reuse: Decode into the same memory again.
            options: As nvImageCodec's decoders take them.

        Raises:
            BackendError: It cannot decode a JPEG file.
        """
        self._codec, self._cuda, self._reuse = codec, cuda, reuse
        self.depth = depth
        self._device = int(cuda_result(cuda.cudaGetDevice(), "cudaGetDevice"))
        self._params = codec.DecodeParams(
            apply_exif_orientation=True, color_spec=codec.ColorSpec.SRGB
        )
        try:
            self._ones = [
                _One(codec, cuda, self._device, threads, hardware, options) for _ in range(depth)
            ]
        except RuntimeError as error:
            raise BackendError(
                "--decode gpu", f"nvImageCodec does not start ({error})", "check nvidia-smi"
            ) from None
        self._free: Queue[_One] = Queue()
        self._pictures: Queue[list[Any]] = Queue()
        for one in self._ones:
            self._free.put(one)
        self._try()

    def _try(self) -> None:
        """Decode a grey square: without nvJPEG nvImageCodec opens all the same."""
        _, data = cv2.imencode(".jpg", np.full((64, 64, 3), 114, np.uint8))
        (picture,), held = self.decode([Encoded("a grey square", data.tobytes())])
        self.give_back(held)
        if picture is None:
            raise BackendError(
                "--decode gpu",
                "nvImageCodec decodes no JPEG on this GPU; nvJPEG is missing, it seems",
                'install it with: pip install "boxwright[gpu-decode]"',
            )

    def decode(self, files: Sequence[Encoded]) -> tuple[list[DeviceArray | None], Any]:
        """Decode on the GPU and wait for it.

        Returns:
            RGB pictures (H, W, 3) uint8 on the GPU, None for what it does not decode; and what to
            `give_back` when nothing reads them any more.

        Raises:
            BackendError: CUDA fails.
        """
        cuda = self._cuda
        cuda_result(cuda.cudaSetDevice(self._device), "cudaSetDevice")
        streams, places = [], []
        for index, file in enumerate(files):
            stream = self._parse(file)
            if stream is not None:
                streams.append(stream)
                places.append(index)
        found: list[DeviceArray | None] = [None] * len(files)
        if not streams:
            return found, None
        memory = self._memory(len(streams))
        one = self._free.get()
        try:
            words: dict[str, Any] = {"params": self._params, "cuda_stream": int(one.stream)}
            if memory is not None:
                words["images"] = memory
            try:
                images = one.decoder.decode(streams, **words)
            except RuntimeError as error:
                raise BackendError(
                    "--decode gpu", f"nvImageCodec failed ({error})", "use --decode cpu"
                ) from None
            cuda_result(cuda.cudaEventRecord(one.done, one.stream), "cudaEventRecord")
            cuda_result(cuda.cudaEventSynchronize(one.done), "decoding")
        finally:
            self._free.put(one)
        for index, image in zip(places, images, strict=True):
            if image is not None:
                found[index] = self._array(image)
        return found, images

    def _parse(self, file: Encoded) -> Any | None:
        try:
            stream = self._codec.CodeStream(file.data)
            known = stream.codec_name == "jpeg" and stream.num_channels in _COLORS
        except RuntimeError:
            return None
        return stream if known else None

    def _memory(self, count: int) -> list[Any] | None:
        """Return pictures to decode into, or None for new ones."""
        if not self._reuse:
            return None
        try:
            images = self._pictures.get_nowait()
        except Empty:
            return None
        return images[:count] if len(images) >= count else None

    def _array(self, image: Any) -> DeviceArray:
        facts = image.__cuda_array_interface__
        strides = facts.get("strides")
        return DeviceArray(
            int(facts["data"][0]),
            tuple(facts["shape"]),
            tuple(strides) if strides else None,
            _dtype_name(facts["typestr"]),
            self._device,
            image,
        )

    def give_back(self, held: Any) -> None:
        """Say that nothing reads a batch's pictures any more."""
        if self._reuse and held and all(image is not None for image in held):
            self._pictures.put(list(held))

    def close(self) -> None:
        """Free decoders and pictures; a second call does nothing."""
        while not self._pictures.empty():
            self._pictures.get()
        for one in self._ones:
            self._cuda.cudaEventDestroy(one.done)
            self._cuda.cudaStreamDestroy(one.stream)
            one.decoder = None
        self._ones = []


def open_decoder(
    *,
    depth: int = 2,
    threads: int = 4,
    hardware: float = 1.0,
    reuse: bool = True,
    options: str = _OPTIONS,
) -> GpuDecoder:
    """Open nvImageCodec's decoder; the arguments are `GpuDecoder`'s.

    Raises:
        MissingExtraError: nvImageCodec or cuda-bindings is not installed.
        BackendError: It cannot decode a JPEG file.
    """
    try:
        nvimgcodec = importlib.import_module("nvidia.nvimgcodec")
    except ImportError:
        raise MissingExtraError("nvImageCodec", "gpu-decode") from None
    cuda = cuda_runtime()
    if cuda is None:
        raise MissingExtraError("cuda-bindings", "gpu-decode")
    return GpuDecoder(
        nvimgcodec,
        cuda,
        depth=depth,
        threads=threads,
        hardware=hardware,
        reuse=reuse,
        options=options,
    )
