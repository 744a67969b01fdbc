"""Many pictures at the speed of the card: reading, decoding, copying and the network overlap.

A crew of threads reads and decodes (OpenCV lets go of the interpreter while it does), a driver
thread puts pictures into batches in their order, lanes keep several batches in flight, and the
results come back in the order of the items. A bad picture is that picture's error. Everything
between the stages is bounded, so that a million files need no more memory than a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from boxwright.detector import Detector
from boxwright.device_arrays import is_on_device
from boxwright.errors import RequestError
from boxwright.stream.crew import Crew
from boxwright.stream.decoding import Picture, Seen
from boxwright.stream.driver import Driver
from boxwright.stream.gpu_decode import GpuDecoder, open_decoder
from boxwright.stream.lanes import Lane, open_lanes
from boxwright.types import Detections

__all__ = ["Picture", "Seen", "Stream"]

_LANES = {"host": 2, "gpu": 3}


class Stream:
    """A detector with threads around it; a context manager.

    Attributes:
        batch: Pictures of one inference.
        description: How it runs, in words.
        decoded_on_host: JPEG files that the GPU's decoder left to OpenCV.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        batch: int = 1,
        decoders: int = 2,
        decode: Literal["cpu", "gpu"] = "cpu",
        preprocess: Literal["host", "gpu"] = "host",
        lanes: int | None = None,
        class_ids: Sequence[int] | None = None,
        keep_images: bool = False,
        gpu_decoder: GpuDecoder | None = None,
    ) -> None:
        """Open lanes and decoders; threads start with `detect`.

        Args:
            detector: The model; it must not be used by others meanwhile. It stays open.
            batch: Pictures of one inference; a file of fixed batch decides that itself.
            decoders: Threads that read and decode.
            decode: `gpu` decodes JPEG files on the GPU (nvImageCodec), other files by OpenCV.
            preprocess: `gpu` copies uint8 pixels and letterboxes them on the GPU (TensorRT).
            lanes: Batches in flight; None takes 2, or 3 with `preprocess="gpu"`.
            class_ids: Keep only these classes.
            keep_images: Hand the pictures back, too.
            gpu_decoder: For `decode="gpu"` with settings of its own; it is closed with the stream.

        Raises:
            RequestError: A number is not positive, or the options do not go together.
            MissingExtraError: The GPU's decoder is not installed.
            BackendError: There is not enough memory, or no compiler for the kernel.
        """
        for name, number in (("--batch", batch), ("--decoders", decoders), ("--lanes", lanes)):
            if number is not None and number < 1:
                raise RequestError(f"{name} {number}", "it is not positive", "use e.g. 8")
        if decode == "gpu" and preprocess != "gpu":
            raise RequestError(
                "--decode gpu",
                "its pictures lie on the GPU, the letterbox would be made on the host",
                "add --preprocess gpu",
            )
        if decode == "gpu" and keep_images:
            raise RequestError(
                "--decode gpu", "drawings need the pictures on the host", "use --decode cpu"
            )
        largest = detector.largest_batch or batch
        self.batch: int = detector.fixed_batch or min(batch, largest)
        self._detector, self._decoders = detector, decoders
        self._class_ids = None if class_ids is None else list(class_ids)
        self._keep_images = keep_images
        self._takes_device = preprocess == "gpu"
        self._driver: Driver | None = None
        self.decoded_on_host = 0
        self._gpu = (gpu_decoder or open_decoder()) if decode == "gpu" else None
        self._runner = ThreadPoolExecutor(1, "boxwright-infer")  # its thread starts when asked
        self._lanes: list[Lane] = []
        try:
            self._lanes = open_lanes(
                detector,
                detector.settings(),
                lanes or _LANES[preprocess],
                preprocess,
                self._runner,
                device_is_rgb=decode == "gpu",
            )
        except BaseException:
            self.close()
            raise
        self.description = (
            f"{detector.description}, batch {self.batch}, {decoders} decoders, "
            f"{len(self._lanes)} lanes, decode {decode}, preprocess {preprocess}"
        )

    def detect(self, items: Iterable[Any]) -> Iterator[Seen]:
        """Yield what was found in each item, in their order.

        Args:
            items: Paths, arrays as `Detector` takes them, `Picture`s that load themselves, or with
                `preprocess="gpu"` also arrays (H, W, 3) uint8 BGR that lie on the GPU. They are
                drawn from a thread, as needed.

        Raises:
            RequestError: Another `detect` of this stream is not at its end yet.
            BackendError: The runtime fails.
        """
        if self._driver is not None:
            raise RequestError(
                "detect", "another one of this stream runs", "exhaust or close it first"
            )
        crew = Crew(self._decoders)
        driver = self._driver = Driver(
            items,
            crew,
            self._lanes,
            self.batch,
            gpu=self._gpu,
            takes_device=self._takes_device,
            keep_images=self._keep_images,
        )
        try:
            for batch in driver.results():
                for seen in batch:
                    yield self._chosen(seen)
        finally:
            driver.close()
            crew.close()
            self.decoded_on_host += driver.decoded_on_host
            self._driver = None

    def _chosen(self, seen: Seen) -> Seen:
        if self._class_ids is None or seen.detections is None:
            return seen
        kept = seen.detections.select(np.isin(seen.detections.class_ids, self._class_ids))
        return Seen(seen.index, seen.item, kept, seen.error, seen.image)

    def detect_now(self, images: Sequence[Any]) -> list[Detections]:
        """Detect in one batch for the least latency: nothing is queued and nothing waits.

        Args:
            images: At most `batch` items, as `detect` takes them.

        Raises:
            RequestError: There are more than `batch`, or a `detect` runs.
            ImageError: A picture cannot be read.
            BackendError: The runtime fails.
        """
        if len(images) > self.batch or self._driver is not None:
            raise RequestError(
                f"detect_now of {len(images)} pictures",
                f"the batch is {self.batch}" if self._driver is None else "a detect runs",
                "use detect for many",
            )
        on_gpu = self._takes_device
        read = self._detector.read
        images = [i if on_gpu and is_on_device(i) else read(i) for i in images]
        lane = self._lanes[0]
        lane.reserve(images)
        lane.start_with(images)
        found = lane.finish(patient=False)
        if self._class_ids is None:
            return found
        return [d.select(np.isin(d.class_ids, self._class_ids)) for d in found]

    def close(self) -> None:
        """End all threads and free the lanes; a second call does nothing."""
        if self._driver is not None:
            self._driver.close()
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        self._runner.shutdown()
        if self._gpu is not None:
            self._gpu.close()
            self._gpu = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
