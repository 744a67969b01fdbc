"""Picture files to boxes in one process, for a server: decoding, letterbox, network, boxes.

What track F serves. Threads decode the pictures of a turn and fill the batch beside each other;
a plan's pictures cross to the GPU as uint8 and are letterboxed there. A damaged picture is an
error of its own request, and a batch that fails is run again in halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from boxwright.errors import BackendError, ImageError, SourceError
from boxwright.loading import load
from boxwright.serve.steps import Limits, decode_picture, padded
from boxwright.stream.lanes import open_lanes
from boxwright.types import Detections, Image

__all__ = ["PictureService", "Refused"]

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
    ) -> None:
        """Open the file and run it once with one picture and with a full batch.

        Args:
            file: An ONNX file or plan of the task `detect`.
            device: As `boxwright.load` takes it.
            batch: Most pictures of one run.
            threads: That decode and fill.
            network_threads: Of the runtime on a CPU; None takes all cores.
            limits: Of pictures.
            preprocess: Where pictures are letterboxed; `gpu` is for plans.

        Raises:
            BoxwrightError: The file is no such file, or does not run so.
        """
        # No CUDA graph: it holds for one batch size, and batches vary here.
        runtime: Literal["onnxruntime", "tensorrt"]
        runtime = "onnxruntime" if file.suffix == ".onnx" else "tensorrt"
        self._detector = load(
            file, runtime, device=device, threads=network_threads, cuda_graph=False, quiet=True
        )
        self._pool = ThreadPoolExecutor(threads, "boxwright-decode")
        self._runner = ThreadPoolExecutor(1, "boxwright-infer")
        self._limits, self._batch = limits or Limits(), batch
        self._lanes: list[Any] = []
        try:
            detector = self._detector
            if detector.spec.task != "detect":
                found = f"its task is {detector.spec.task}, and answers are boxes alone"
                raise SourceError(str(file), found, "serve it by itself")
            self._count = detector.nms.keep_topk
            self._settings = detector.settings()
            self._lanes = open_lanes(detector, self._settings, 1, preprocess, self._runner)
            self._lane = self._lanes[0]
            black = np.zeros((*detector.spec.input_size, 3), np.uint8)
            for count in dict.fromkeys((1, batch)):
                self._detect([black] * count)
        except BaseException:
            self.close()
            raise
        self.description = (
            f"{self._detector.description}, {threads} threads decode, preprocess {preprocess}"
        )

    def answers(self, requests: Sequence[Sequence[bytes]]) -> list[Arrays | Refused]:
        """Answer the requests of one turn.

        Args:
            requests: Of each, its picture files.

        Returns:
            Of each, num_dets (B, 1) int32, det_boxes (B, K, 4) float32 xyxy in source pixels,
            det_scores (B, K) float32 and det_classes (B, K) int32, where nothing is -1.
        """
        files = [data for request in requests for data in request]
        decoded = self._together(self._decoded, files)
        good = [image for image in decoded if not isinstance(image, Refused)]
        found: list[Detections | Refused] = []
        for first in range(0, len(good), self._batch):
            found += self._detected(good[first : first + self._batch])
        left = iter(found)
        seen = [one if isinstance(one, Refused) else next(left) for one in decoded]
        answers: list[Arrays | Refused] = []
        begin = 0
        for request in requests:
            rows = seen[begin : begin + len(request)]
            begin += len(request)
            answers.append(self._answer(rows))
        return answers

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
        lane = self._lane
        lane.reserve(images)
        self._together(lambda index: lane.fill(index, images[index]), range(len(images)))
        lane.start()
        found: list[Detections] = lane.finish(patient=False)
        return found

    def close(self) -> None:
        """End the threads and free the file; a second call does nothing."""
        self._pool.shutdown()
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        self._runner.shutdown()
        self._detector.close()
