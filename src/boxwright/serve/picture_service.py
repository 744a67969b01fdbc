"""Picture files to boxes in one process, for a server: decoding, letterbox, network, boxes.

What track F serves. Threads decode the pictures of a turn and fill the batch beside each other;
a plan's pictures cross to the GPU as uint8 and are letterboxed there. A damaged picture is an
error of its own request, and a batch that fails is run again in halves. An ONNX file on a GPU is
opened once for each of a few batch sizes, since ONNX Runtime's convolutions pay for every change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from boxwright.detector import Detector
from boxwright.errors import (
    BackendError,
    ImageError,
    MemoryShortError,
    RequestError,
    SourceError,
)
from boxwright.loading import load
from boxwright.serve.backends.joining import batch_sizes, next_run, size_for
from boxwright.serve.picture_header import read_header
from boxwright.serve.steps import Limits, decode_picture, padded
from boxwright.stream.lanes import Lane, open_lanes
from boxwright.types import Detections, Image

__all__ = ["PictureService", "Refused"]

_MOST_BYTES = 1 << 29  # of decoded pictures at once: a turn of a few files could name gigabytes

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Refused:
    """What a request is answered instead of boxes.

    Attributes:
        message: Why.
        by_input: The request is at fault, not the server.
    """

    message: str
    by_input: bool


class PictureService:
    """A file with threads around it; for one turn at a time.

    Attributes:
        description: How it runs, in words.
    """

    def __init__(
        self,
        file: Path,
        *,
        device: str,
        batch: int,
        threads: int,
        network_threads: int | None = None,
        limits: Limits | None = None,
        preprocess: Literal["host", "gpu"] = "host",
        sizes: str | None = None,
    ) -> None:
        """Open the file and run it once with one picture and with a full batch, or in each size.

        Args:
            file: An ONNX file or plan of the task `detect`.
            device: As `boxwright.load` takes it.
            batch: Most pictures of one run.
            threads: That decode and fill.
            network_threads: Of the runtime on the CPU; None takes all cores, or for an ONNX file on
                a GPU one.
            limits: Of pictures.
            preprocess: Where pictures are letterboxed; `gpu` is for plans.
            sizes: That batches of an ONNX file on a GPU are filled up to, each in a session of its
                own: as `batch_sizes` reads them. A plan has them where they are given, each in a
                context of its own with a CUDA graph. Files of a fixed batch, those that take
                pictures and CPUs have one session.

        Raises:
            BoxwrightError: The file is no such file, or does not run so.
        """
        self._lanes: dict[int | None, Lane] = {}
        self._contexts: list[Lane] = []  # of a plan, for each size
        self._detectors: list[Detector] = []
        self._file, self._device, self._network_threads = file, device, network_threads
        self._preprocess, self._batch, self._limits = preprocess, batch, limits or Limits()
        asked = self._sizes_asked_for(sizes)
        self._pool = ThreadPoolExecutor(threads, "boxwright-decode")
        self._runner = ThreadPoolExecutor(1, "boxwright-infer")
        try:
            first = self._opened(self._plan and bool(asked))
            if first.spec.task != "detect":
                found = f"its task is {first.spec.task}, and answers are boxes alone"
                raise SourceError(str(file), found, "serve it by itself")
            self._count = first.nms.keep_topk
            self._settings = first.settings()
            self._sizes = self._sizes_for(first, asked, told=sizes is not None)
            black = np.zeros((*first.spec.input_size, 3), np.uint8)
            self._open_lanes(first, black)
        except BaseException:
            self.close()
            raise
        self.description = (
            f"{first.description}, {threads} threads decode, preprocess {preprocess}"
            + (f", batches of {', '.join(map(str, self._sizes))}" if self._sizes else "")
        )

    def _sizes_asked_for(self, told: str | None) -> tuple[int, ...]:
        """Return the sizes that batches may be filled up to, before the file is known."""
        try:
            sizes = batch_sizes(self._batch, told)
        except ValueError as error:
            raise RequestError(str(self._file), str(error), "") from None
        self._plan = self._file.suffix != ".onnx"
        if self._plan and told is not None and sizes and self._preprocess != "gpu":
            raise RequestError(
                f"batch_sizes {told}",
                "a plan fed from the host takes batches as they are",
                "drop it",
            )
        wanted = told is not None if self._plan else self._device.startswith("cuda")
        return sizes if wanted else ()

    def _sizes_for(
        self, detector: Detector, sizes: tuple[int, ...], *, told: bool
    ) -> tuple[int, ...]:
        """Return the sizes for this file: none where it fixes the batch, or takes pictures."""
        only = ""
        if not detector.batch_is_free:
            only = f"this file takes {detector.fixed_batch} pictures at once and no other number"
        elif detector.target.input == "image":
            only = "this file takes pictures of any size, and runs those of one size together"
        if only and sizes and told:
            text = ",".join(map(str, sizes))
            raise RequestError(f"batch_sizes {text}", only, "drop it")
        return () if only else sizes

    def _opened(self, graph: bool = False) -> Detector:
        # A CUDA graph holds for one batch size, and batches vary unless they are filled up.
        runtime: Literal["onnxruntime", "tensorrt"]
        runtime = "onnxruntime" if self._file.suffix == ".onnx" else "tensorrt"
        detector = load(
            self._file, runtime, device=self._device, threads=self._network_threads,
            cuda_graph=graph, quiet=True,
        )  # fmt: skip
        self._detectors.append(detector)
        return detector

    def _open_lanes(self, first: Detector, black: Image) -> None:
        """Open a lane, or one for each size with a detector of its own, and run each once.

        Raises:
            BoxwrightError: It does not run, or the GPU's memory does not suffice for all sizes.
        """
        for size in self._sizes or (None,):
            try:
                self._lanes[size] = self._lane(first, size)
                counts = dict.fromkeys((1, self._batch)) if size is None else (size,)
                for count in counts if not self._contexts else (*counts, *counts):
                    self._detect([black] * count)  # a plan's second run of a size is captured
            except MemoryShortError as error:
                if size is None:
                    raise
                raise MemoryShortError(
                    f"a session of batches of {size}",
                    error.found,
                    "give fewer or smaller batch_sizes (a parameter), fewer instances or a "
                    "smaller max_batch_size",
                ) from None

    def _lane(self, first: Detector, size: int | None) -> Lane:
        """Return a lane for batches of a size, or for all: contexts of a plan, else a session."""
        words = (self._settings, 1, self._preprocess, self._runner)
        if size is None:
            return open_lanes(first, *words)[0]
        if not self._plan:
            detector = self._opened() if self._lanes else first
            return open_lanes(detector, *words, fill_to=(size,))[0]
        if not self._contexts:
            count = len(self._sizes)
            self._contexts = open_lanes(
                first, self._settings, count, self._preprocess, self._runner, fill_to=self._sizes
            )
        return self._contexts[self._sizes.index(size)]

    def answers(self, requests: Sequence[Sequence[bytes]]) -> list[Arrays | Refused]:
        """Answer the requests of one turn.

        Args:
            requests: Of each, its picture files.

        Returns:
            Of each, num_dets (B, 1) int32, det_boxes (B, K, 4) float32 xyxy in source pixels,
            det_scores (B, K) float32 and det_classes (B, K) int32, where nothing is -1.
        """
        files = [data for request in requests for data in request]
        seen = [one for part in self._parts(files) for one in self._seen(part)]
        answers: list[Arrays | Refused] = []
        begin = 0
        for request in requests:
            rows = seen[begin : begin + len(request)]
            begin += len(request)
            answers.append(self._answer(rows))
        return answers

    def _parts(self, files: Sequence[bytes]) -> Iterator[list[bytes]]:
        """Yield files whose pictures fit into memory together; one picture always does."""
        part: list[bytes] = []
        size = 0
        for data in files:
            pixels = _pixels(data, self._limits)
            if part and size + 3 * pixels > _MOST_BYTES:
                yield part
                part, size = [], 0
            part.append(data)
            size += 3 * pixels
        if part:
            yield part

    def _seen(self, files: Sequence[bytes]) -> list[Detections | Refused]:
        """Decode pictures and run them."""
        decoded = self._together(self._decoded, files)
        good = [image for image in decoded if not isinstance(image, Refused)]
        found: list[Detections | Refused] = []
        while len(found) < len(good):
            ahead = len(good) - len(found)
            count = next_run(self._sizes, ahead) if self._sizes else self._batch
            found += self._detected(good[len(found) : len(found) + count])
        left = iter(found)
        return [one if isinstance(one, Refused) else next(left) for one in decoded]

    def _answer(self, rows: Sequence[Detections | Refused]) -> Arrays | Refused:
        found = []
        for one in rows:
            if isinstance(one, Refused):
                return one
            found.append((one.xyxy, one.scores, one.class_ids))
        return padded(found, self._count)

    def _decoded(self, data: bytes) -> Image | Refused:
        try:
            return decode_picture(data, self._limits)
        except ImageError as error:
            return Refused(str(error), by_input=True)

    def _together(self, work: Callable[[Any], Any], things: Sequence[Any]) -> list[Any]:
        """Do something with each, in the threads where they are several."""
        if len(things) < 2:
            return [work(one) for one in things]
        return list(self._pool.map(work, things))

    def _detected(self, images: Sequence[Image]) -> list[Detections | Refused]:
        """Run a batch; where that fails, its halves, down to the picture at fault."""
        try:
            return list(self._detect(images))
        except BackendError as error:
            if len(images) == 1:
                return [Refused(str(error), by_input=False)]
        middle = len(images) // 2
        return self._detected(images[:middle]) + self._detected(images[middle:])

    def _detect(self, images: Sequence[Image]) -> list[Detections]:
        lane = self._lanes[size_for(self._sizes, len(images)) if self._sizes else None]
        lane.reserve(images)
        self._together(lambda index: lane.fill(index, images[index]), range(len(images)))
        lane.start()
        return lane.finish(patient=False)

    def close(self) -> None:
        """End the threads and free the file; a second call does nothing."""
        self._pool.shutdown()
        for lane in self._contexts or self._lanes.values():
            lane.close()
        self._lanes, self._contexts = {}, []
        self._runner.shutdown()
        for detector in self._detectors:
            detector.close()
        self._detectors = []


def _pixels(data: bytes, limits: Limits) -> int:
    """Return how many pixels a file will have at most; 0 where it will be refused."""
    try:
        header = read_header(data, "")
    except ImageError:
        return 0
    if header is None:
        return limits.max_side_px**2
    return (
        0 if max(header.width, header.height) > limits.max_side_px else header.width * header.height
    )
