"""A batch's way through a backend: memory that decoders fill, one run, detections."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from boxwright.backends import TakesFrames, TakesTensors
from boxwright.detector import Detector
from boxwright.errors import RequestError
from boxwright.preprocess import Placement, place, prepare
from boxwright.types import Detections, FloatArray, NmsSettings

__all__ = ["Lane", "PreprocessOn", "open_lanes"]

PreprocessOn = str  # "host" or "gpu"


class Lane(Protocol):
    """One batch at a time: `reserve`, `fill` each (from any thread), `start`, `finish`."""

    def reserve(self, images: Sequence[Any]) -> None:
        """Make room for a batch."""
        ...

    def fill(self, index: int, image: Any) -> None:
        """Put one picture into its place."""
        ...

    def start(self) -> None:
        """Start the run."""
        ...

    def start_with(self, images: Sequence[Any]) -> None:
        """Fill all places and start."""
        for index, image in enumerate(images):
            self.fill(index, image)
        self.start()

    def finish(self, *, patient: bool = True) -> list[Detections]:
        """Wait for it; one `Detections` a picture."""
        ...

    def attach_thread(self) -> None:
        """Prepare the calling thread to use the lane."""
        ...

    def close(self) -> None:
        """Free what it holds; a second call does nothing."""
        ...


class _HostLane(Lane):
    """Any backend: decoders letterbox into a host batch, a thread of its own infers."""

    def __init__(
        self,
        detector: Detector,
        settings: NmsSettings,
        runner: ThreadPoolExecutor,
        fill_to: int | None,
    ) -> None:
        self._detector, self._settings, self._runner = detector, settings, runner
        self._size = fill_to or detector.fixed_batch  # None: as many as there are
        self._used = 0  # rows of the buffer before this one may hold pictures; the others are zero
        self._buffer: FloatArray = np.empty((0, 3, *detector.spec.input_size), np.float32)
        self._count = 0
        self._places: list[Placement] = []
        self._run: Future[list[Detections]] | None = None

    def reserve(self, images: Sequence[Any]) -> None:
        spec = self._detector.spec
        count = self._size or len(images)
        if len(self._buffer) < count:
            self._buffer = np.zeros((count, 3, *spec.input_size), np.float32)
            self._used = 0
        self._buffer[len(images) : min(count, self._used)] = 0
        self._used = len(images) if self._used <= count else self._used
        self._count = count
        self._places = [
            place((im.shape[0], im.shape[1]), spec.input_size, spec.preprocess) for im in images
        ]

    def fill(self, index: int, image: Any) -> None:
        spec = self._detector.spec
        prepare(image, spec.input_size, spec.preprocess, self._buffer[index])

    def start(self) -> None:
        self._run = self._runner.submit(self._infer)

    def _infer(self) -> list[Detections]:
        detector = self._detector
        outputs = detector.infer(self._buffer[: self._count], self._settings)
        return detector.postprocess(outputs, self._places, self._settings)

    def finish(self, *, patient: bool = True) -> list[Detections]:
        assert self._run is not None
        run, self._run = self._run, None
        return run.result()

    def attach_thread(self) -> None:
        pass

    def close(self) -> None:
        self._buffer = self._buffer[:0]


class _PictureLane(Lane):
    """Graphs that take pictures, not tensors: the detector does it all, in the running thread."""

    def __init__(
        self, detector: Detector, settings: NmsSettings, runner: ThreadPoolExecutor
    ) -> None:
        self._detector, self._settings, self._runner = detector, settings, runner
        self._images: list[Any] = []
        self._run: Future[list[Detections]] | None = None

    def reserve(self, images: Sequence[Any]) -> None:
        self._images = list(images)

    def fill(self, index: int, image: Any) -> None:
        pass

    def start(self) -> None:
        self._run = self._runner.submit(
            self._detector,
            self._images,
            score_threshold=self._settings.score_threshold,
            iou_threshold=self._settings.iou_threshold,
        )

    def finish(self, *, patient: bool = True) -> list[Detections]:
        assert self._run is not None
        run, self._run = self._run, None
        self._images = []
        return run.result()

    def attach_thread(self) -> None:
        pass

    def close(self) -> None:
        self._images = []


class _TensorLane(Lane):
    """A plan with letterboxing on the host: decoders write into pinned memory."""

    def __init__(self, detector: Detector, settings: NmsSettings, context: Any) -> None:
        self._detector, self._settings, self._context = detector, settings, context
        self._name = detector.backend.inputs[0].name
        self._dtype = detector.backend.inputs[0].dtype
        self._batch: npt.NDArray[Any] = np.empty(0)
        self._places: list[Placement] = []

    def reserve(self, images: Sequence[Any]) -> None:
        spec = self._detector.spec
        shape = (self._detector.fixed_batch or len(images), 3, *spec.input_size)
        self._batch = self._context.input_view(self._name, shape, self._dtype)
        self._batch[len(images) :] = 0
        self._places = [
            place((im.shape[0], im.shape[1]), spec.input_size, spec.preprocess) for im in images
        ]

    def fill(self, index: int, image: Any) -> None:
        spec, target = self._detector.spec, self._batch[index]
        if self._dtype == "float32":
            prepare(image, spec.input_size, spec.preprocess, target)
            return
        wide = np.empty(target.shape, np.float32)
        prepare(image, spec.input_size, spec.preprocess, wide)
        np.copyto(target, wide, casting="same_kind")

    def start(self) -> None:
        self._context.start(self._detector.feed(self._batch, self._settings))

    def finish(self, *, patient: bool = True) -> list[Detections]:
        outputs = self._context.finish(patient=patient)
        return self._detector.postprocess(outputs, self._places, self._settings)

    def attach_thread(self) -> None:
        self._context.attach_thread()

    def close(self) -> None:
        pass  # the context belongs to the plan


class _FrameLane(Lane):
    """A plan with letterboxing on the GPU: decoders copy uint8 pixels into pinned memory."""

    def __init__(
        self,
        detector: Detector,
        settings: NmsSettings,
        frames: Any,
        device_is_rgb: bool,
        fill_to: int | None,
    ) -> None:
        self._detector, self._settings, self._frames = detector, settings, frames
        self._device_is_rgb = device_is_rgb
        self._size = fill_to or detector.fixed_batch  # None: as many as there are
        self._places: list[Placement] = []

    def reserve(self, images: Sequence[Any]) -> None:
        batch = self._size or len(images)
        self._places = self._frames.reserve(images, batch, device_is_rgb=self._device_is_rgb)

    def fill(self, index: int, image: Any) -> None:
        self._frames.fill(index, image)

    def start(self) -> None:
        self._frames.start()

    def start_with(self, images: Sequence[Any]) -> None:
        self._frames.start_with(images)

    def finish(self, *, patient: bool = True) -> list[Detections]:
        outputs = self._frames.finish(patient=patient)
        return self._detector.postprocess(outputs, self._places, self._settings)

    def attach_thread(self) -> None:
        self._frames.attach_thread()

    def close(self) -> None:
        self._frames.close()


def open_lanes(
    detector: Detector,
    settings: NmsSettings,
    count: int,
    preprocess: PreprocessOn,
    runner: ThreadPoolExecutor,
    *,
    device_is_rgb: bool = False,
    fill_to: Sequence[int] = (),
) -> list[Lane]:
    """Return the lanes of a detector.

    Args:
        detector: The model.
        settings: Thresholds.
        count: Batches in flight.
        preprocess: `host` or `gpu`.
        runner: One thread that infers, for backends that do not queue.
        device_is_rgb: Pictures on the GPU are RGB, as a decoder there makes them.
        fill_to: Pictures of every batch of each lane: zeros stand for those that it lacks. For
            tensors that the host feeds to other runtimes than TensorRT, and for pictures that are
            letterboxed on the GPU.

    Raises:
        RequestError: The backend or the graph does not letterbox on the GPU, or its batches are
            not filled up.
    """
    backend = detector.backend
    takes_pictures = getattr(detector.target, "input", "tensor") == "image"
    fed_as_they_are = takes_pictures or (isinstance(backend, TakesTensors) and preprocess != "gpu")
    if fill_to and fed_as_they_are:
        raise RequestError(
            f"batches of {fill_to[0]}",
            f"those of {detector.description} run as they are",
            "drop it",
        )
    sizes: Sequence[int | None] = fill_to or [None] * count
    if preprocess == "gpu":
        _refuse_gpu(detector, takes_pictures)
        assert isinstance(backend, TakesFrames)
        rules, size = detector.spec.preprocess, detector.spec.input_size
        frames = backend.frame_lanes(rules, size, count)
        return [
            _FrameLane(detector, settings, f, device_is_rgb, fill)
            for f, fill in zip(frames, sizes, strict=True)
        ]
    if takes_pictures:
        return [_PictureLane(detector, settings, runner) for _ in range(count)]
    if isinstance(backend, TakesTensors):
        return [_TensorLane(detector, settings, c) for c in backend.tensor_lanes(count)]
    return [_HostLane(detector, settings, runner, fill) for fill in sizes]


def _refuse_gpu(detector: Detector, takes_pictures: bool) -> None:
    what, host = "--preprocess gpu", "use --preprocess host"
    if not isinstance(detector.backend, TakesFrames):
        raise RequestError(
            what, f"{detector.description} does not letterbox on the GPU", f"give a plan, or {host}"
        )
    if takes_pictures:
        raise RequestError(what, "this graph letterboxes by itself", host)
    if len(detector.backend.inputs) > 1:
        raise RequestError(what, "this file takes its thresholds as inputs", host)
