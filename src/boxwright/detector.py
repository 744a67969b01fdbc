"""Detector: pictures in, detections in source pixels out, over any backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import cv2
import numpy as np
import numpy.typing as npt

from boxwright.backends import Backend, Bounded
from boxwright.errors import BackendError, ImageError, RequestError
from boxwright.heads import (
    Rows,
    candidates_from_raw,
    detections_of_pictures,
    kept_rows,
    rows_from_end2end,
)
from boxwright.images import read_image
from boxwright.preprocess import Placement, bgr_from_array, place, prepare
from boxwright.types import (
    LONGEST_SIDE_PX,
    Detections,
    FloatArray,
    Image,
    ModelSpec,
    NmsSettings,
    Target,
)

__all__ = ["ENCODED_INPUT", "Detector", "ImageLike"]

ImageLike = str | Path | npt.NDArray[Any]
_CONVERGED = "nms_converged"
ENCODED_INPUT = "encoded_image"  # input of served models that decode pictures themselves


class Detector:
    """A loaded model that finds objects.

    A file that takes pictures (`--input image`) is fed them as they are, and preprocesses in its
    graph; pictures of one size run together.

    Call it with one picture (path, or array (H, W), (H, W, 3) BGR, (H, W, 4) BGRA; uint8 or
    uint16) for a `Detections`; with a list of pictures or an (N, H, W, 3) array for a list of
    them. It is a context manager; `close` frees the runtime. Not safe for use by several threads
    at once: give each its own.

    Attributes:
        spec: What the model is.
        nms: Operating settings. For end-to-end files those that are baked in.
        description: Runtime, version, device and threads, in words.
    """

    def __init__(
        self,
        backend: Backend,
        spec: ModelSpec,
        target: Target | None = None,
        nms: NmsSettings | None = None,
    ) -> None:
        """Wrap a backend; users call `boxwright.load` instead.

        Args:
            backend: An opened runtime.
            spec: What the model is.
            target: What the file was made as; None means a raw head.
            nms: Settings; None takes the spec's thresholds.
        """
        self.spec = spec
        self.target = target or Target()
        self.end2end = self.target.outputs == "end2end"
        self._baked = nms if self.end2end else None
        self.nms = nms or NmsSettings(
            score_threshold=spec.score_threshold, iou_threshold=spec.iou_threshold
        )
        self._backend = backend
        tensor = backend.inputs[0]
        self._input_name = tensor.name
        self._input_dtype = np.dtype(tensor.dtype)
        self._fixed_batch = tensor.shape[0] if isinstance(tensor.shape[0], int) else None
        self._largest_batch = backend.largest_batch if isinstance(backend, Bounded) else None
        self._takes_pictures = self.target.input == "image"
        self._takes_encoded = tensor.name == ENCODED_INPUT and len(tensor.shape) == 2
        self._optional = {i.name for i in backend.inputs[1:]}
        self._buffer: FloatArray = np.empty((0, 3, *spec.input_size), np.float32)

    @overload
    def __call__(
        self,
        images: ImageLike,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        class_ids: Sequence[int] | None = None,
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        class_ids: Sequence[int] | None = None,
    ) -> list[Detections]: ...

    def __call__(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        class_ids: Sequence[int] | None = None,
    ) -> Detections | list[Detections]:
        """Detect in one picture or in several.

        Args:
            images: A picture, or a list or (N, H, W, 3) array of them; a list runs as one batch.
            score_threshold, iou_threshold: Replace the operating settings for this call.
            class_ids: Return only these classes.

        Returns:
            One `Detections`, or a list in the order of the pictures.

        Raises:
            ImageError: A picture cannot be read.
            RequestError: A threshold cannot be changed in this end-to-end file.
            BackendError: The runtime fails.
        """
        stacked = isinstance(images, np.ndarray) and images.ndim == 4
        many = stacked or isinstance(images, (list, tuple))
        sequence: Iterable[Any] = images if not isinstance(images, (str, Path)) else ()
        if not many:
            sequence = [images]
        settings = self.settings(score_threshold, iou_threshold)
        loaded = [self.read(image) for image in sequence]
        results: dict[int, Detections] = {}
        for positions in self.batches(loaded):
            batch, places = self.preprocess([loaded[p] for p in positions])
            outputs = self.infer(batch, settings)
            results |= zip(positions, self.postprocess(outputs, places, settings), strict=True)
        found = [results[p] for p in range(len(loaded))]
        if class_ids is not None:
            found = [d.select(np.isin(d.class_ids, list(class_ids))) for d in found]
        return found if many else found[0]

    def settings(
        self, score_threshold: float | None = None, iou_threshold: float | None = None
    ) -> NmsSettings:
        """Return the settings of a call, after checking that this file can honour them.

        Raises:
            RequestError: A threshold is out of range, or is baked into the file.
        """
        import dataclasses

        score = self.nms.score_threshold if score_threshold is None else score_threshold
        iou = self.nms.iou_threshold if iou_threshold is None else iou_threshold
        for name, value in (("score threshold", score), ("IoU threshold", iou)):
            if not 0.0 <= value <= 1.0:
                raise RequestError(f"{name} {value}", "it is not between 0 and 1", "use e.g. 0.25")
        baked = self._baked
        if baked is not None:
            if "score_threshold" not in self._optional and score < baked.score_threshold:
                raise RequestError(
                    f"score threshold {score}",
                    f"{baked.score_threshold} is baked into this end-to-end file",
                    "export with --score-threshold or --dynamic-thresholds, or use the raw file",
                )
            unchanged = iou == baked.iou_threshold or self.spec.layout.nms_free
            if "iou_threshold" not in self._optional and not unchanged:
                raise RequestError(
                    f"IoU threshold {iou}",
                    f"{baked.iou_threshold} is baked into this end-to-end file",
                    "export with --iou-threshold or --dynamic-thresholds, or use the raw file",
                )
        return dataclasses.replace(self.nms, score_threshold=score, iou_threshold=iou)

    @staticmethod
    def read(image: ImageLike) -> Image:
        """Return a picture as (H, W, 3) uint8 BGR, from a path or an array.

        Raises:
            ImageError: It cannot be read.
        """
        if isinstance(image, (str, Path)):
            return read_image(Path(image))
        if isinstance(image, np.ndarray):
            return bgr_from_array(image)
        raise ImageError(
            f"picture of type {type(image).__name__}",
            "it is neither a path nor an array",
            "give a path or a NumPy array",
        )

    def batches(self, images: Sequence[Image]) -> list[list[int]]:
        """Return the positions of the pictures of each inference; together they are all of them.

        In order, as many as the file takes at once; where it takes pictures, those of one size.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            key = image.shape[:2] if self._takes_pictures else ()
            groups.setdefault(key, []).append(position)
        step = self._fixed_batch or self._largest_batch or max(len(images), 1)
        return [
            g[start : start + step] for g in groups.values() for start in range(0, len(g), step)
        ]

    def preprocess(self, images: Sequence[Image]) -> tuple[npt.NDArray[Any], list[Placement]]:
        """Fill the input batch; it is reused by the next call.

        Args:
            images: (H, W, 3) uint8 BGR each; at most the fixed batch of the file.

        Returns:
            (B, 3, height, width) float32, or uint8 pictures as the file takes them, zero-filled
            up to a fixed batch; of a served model that decodes itself (1, bytes) uint8; and the
            placements.

        Raises:
            ImageError: The file takes pictures, and these are of several sizes, or not of its own.
        """
        if self._takes_encoded:
            return self._encoded(images[0])
        if self._takes_pictures:
            return self._stacked(images)
        count = self._fixed_batch or len(images)
        if len(self._buffer) < count:
            self._buffer = np.zeros((count, 3, *self.spec.input_size), np.float32)
        batch = self._buffer[:count]
        batch[len(images) :] = 0
        rules, size = self.spec.preprocess, self.spec.input_size
        places = [prepare(im, size, rules, batch[i]) for i, im in enumerate(images)]
        return batch, places

    def _encoded(self, image: Image) -> tuple[npt.NDArray[Any], list[Placement]]:
        """Return a picture as the bytes of a PNG file, (1, N) uint8: the very same pixels."""
        done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        assert done, "a picture can be a PNG"
        size = (image.shape[0], image.shape[1])
        where = place(size, self.spec.input_size, self.spec.preprocess)
        return np.asarray(data, np.uint8).reshape(1, -1), [where]

    def _stacked(self, images: Sequence[Image]) -> tuple[npt.NDArray[Any], list[Placement]]:
        """Return pictures of one size as one array, in the file's layout and colour order."""
        sizes = list(dict.fromkeys((i.shape[0], i.shape[1]) for i in images))
        texts = [f"{height}x{width}" for height, width in sizes]
        if len(sizes) > 1:
            raise ImageError(
                f"a batch of {len(images)} pictures",
                f"they are of several sizes ({', '.join(texts[:3])}), and this file preprocesses "
                "pictures of one size together",
                "give pictures of one size, or use --batch 1",
            )
        self._check_size(sizes[0], texts[0])
        places = [place(sizes[0], self.spec.input_size, self.spec.preprocess)] * len(images)
        count = self._fixed_batch or len(images)
        if count == 1:
            batch = images[0][None]
        else:
            batch = np.zeros((count, *images[0].shape), np.uint8)
            for row, image in zip(batch, images, strict=False):
                row[...] = image
        if self.target.image_color == "rgb":
            batch = batch[..., ::-1]
        if self.target.image_layout == "nchw":
            batch = batch.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(batch), places

    def _check_size(self, size: tuple[int, int], text: str) -> None:
        """Refuse a picture size (height, width) that the file was not made for."""
        only = self.target.source_size
        if only is not None and size != only:
            raise ImageError(
                f"a picture of {text} (height x width)",
                f"this file takes pictures of {only[0]}x{only[1]} only",
                f"export with --source-size {size[0]},{size[1]}, or without for any size",
            )
        if only is None and max(size) > LONGEST_SIDE_PX:
            raise ImageError(
                f"a picture of {text} (height x width)",
                f"the graph takes sides of up to {LONGEST_SIDE_PX} pixels",
                "use a file that takes the network's tensor",
            )

    def feed(
        self, batch: npt.NDArray[Any], settings: NmsSettings | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return what the runtime is fed: the batch in the graph's dtype, and its thresholds.

        A batch that has the dtype already is passed on as it is, without a copy; so is one that
        lies on the GPU, for backends that take such arrays.
        """
        on_host = isinstance(batch, np.ndarray)
        feed: dict[str, npt.NDArray[Any]] = {
            self._input_name: batch.astype(self._input_dtype, copy=False) if on_host else batch
        }
        if settings is not None:
            for name in ("score_threshold", "iou_threshold"):
                if name in self._optional:
                    feed[name] = np.array([getattr(settings, name)], np.float32)
        return feed

    def infer(
        self, batch: npt.NDArray[Any], settings: NmsSettings | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the network on a prepared batch.

        Raises:
            BackendError: The runtime fails.
        """
        return self._backend.infer(self.feed(batch, settings))

    def postprocess(
        self,
        outputs: dict[str, npt.NDArray[Any]],
        places: Sequence[Placement],
        settings: NmsSettings | None = None,
    ) -> list[Detections]:
        """Turn the outputs of one inference into detections in source pixels.

        Raises:
            BackendError: The outputs are not what the file promised.
        """
        settings = settings or self.nms
        read = self._read_end2end if self.end2end else self._read_raw
        mapped = self._takes_pictures and self.end2end  # and clipped, inside the graph
        return detections_of_pictures(
            read(outputs, len(places), settings), self.spec, places, mapped
        )

    def _read_raw(
        self, outputs: dict[str, npt.NDArray[Any]], count: int, settings: NmsSettings
    ) -> Iterator[Rows]:
        for index in range(count):
            rows = candidates_from_raw(outputs, index, self.spec, settings)
            yield rows.select(kept_rows(rows, self.spec, settings))

    def _read_end2end(
        self, outputs: dict[str, npt.NDArray[Any]], count: int, settings: NmsSettings
    ) -> Iterator[Rows]:
        if _CONVERGED not in outputs:
            yield from rows_from_end2end(outputs, count, self.spec, settings.score_threshold)
            return
        for index, rows in enumerate(rows_from_end2end(outputs, count, self.spec)):
            if not outputs[_CONVERGED][index, 0]:
                # Unsettled means a superset of the greedy result: one more pass makes it exact.
                self._refuse_if_cut(len(rows.scores), outputs["det_boxes"].shape[1])
                rows = rows.select(kept_rows(rows, self.spec, settings))
            yield rows.select(rows.scores > np.float32(settings.score_threshold))

    @staticmethod
    def _refuse_if_cut(count: int, limit: int) -> None:
        if count >= limit:
            raise BackendError(
                "portable NMS",
                f"it did not settle and all {limit} places are taken, so boxes may be missing",
                "export with a larger --nms-iterations or --keep-topk",
            )

    @property
    def description(self) -> str:
        """Runtime, version, device and threads, in words; a GPU tells more after the first call."""
        return self._backend.description

    @property
    def backend(self) -> Backend:
        """The runtime that the file is open in."""
        return self._backend

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the file takes, or None when any will do."""
        return self._fixed_batch

    @property
    def largest_batch(self) -> int | None:
        """The most pictures of one inference, where the runtime knows."""
        return self._largest_batch

    @property
    def takes_encoded(self) -> bool:
        """Whether it takes the bytes of picture files, as served models may."""
        return self._takes_encoded

    @property
    def batch_is_free(self) -> bool:
        """Whether the file takes any batch size."""
        return self._fixed_batch is None

    def close(self) -> None:
        """Free the runtime."""
        self._backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        height, width = self.spec.input_size
        kind = "end-to-end" if self.end2end else "raw"
        return (
            f"Detector({self.spec.name}: {self.spec.family}, {len(self.spec.class_names)} classes, "
            f"{width}x{height}, {kind}, {self._input_name} in, on {self.description})"
        )
