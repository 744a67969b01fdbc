"""What the served python models compute: bytes to tensor, raw head to detections. Pure.

The same functions as on the host (`boxwright.images`, `preprocess`, `boxes`), so that a served
model answers what `boxwright.load` answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright import boxes
from boxwright.errors import ImageError
from boxwright.images import check_whole, decode_image
from boxwright.preprocess import Placement, prepare, source_from_input
from boxwright.serve.picture_header import read_header
from boxwright.types import FloatArray, Image, IntArray, ModelSpec, NmsSettings

__all__ = [
    "DEFAULT_MAX_SIDE_PX",
    "PLACEMENT_VALUES",
    "Limits",
    "check_encoded",
    "check_for_dali",
    "decode_picture",
    "detections_of_head",
    "padded",
    "placement_from_row",
    "prepared",
    "row_from_placement",
    "settings_from_parameters",
    "spec_from_parameters",
]

DEFAULT_MAX_SIDE_PX = 8192
PLACEMENT_VALUES = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes.

    Attributes:
        max_side_px: Longest side of a picture, in pixels.
    """

    max_side_px: int = DEFAULT_MAX_SIDE_PX


def check_encoded(data: bytes, limits: Limits) -> None:
    """Refuse what is no whole picture, or is too large, without decoding it.

    Raises:
        ImageError: It is empty, cut off, damaged or too large.
    """
    if not data.strip(b"\0"):
        raise ImageError("encoded_image", "it is empty", "send the bytes of a picture file")
    check_whole(data, "encoded_image")
    header = read_header(data, "encoded_image")
    if header is not None:
        _check_sides(header.height, header.width, limits)


def check_for_dali(data: bytes, limits: Limits) -> None:
    """Refuse what DALI would stumble over, and with it every picture of the same batch.

    Raises:
        ImageError: See `check_encoded`; or it is no JPEG or PNG, or a CMYK one.
    """
    check_encoded(data, limits)
    header = read_header(data, "encoded_image")
    if header is None:
        raise ImageError("encoded_image", "it is neither JPEG nor PNG", "send one of these")
    if header.kind == "JPEG" and header.channels == 4:
        raise ImageError(
            "encoded_image", "it is a CMYK JPEG", "send RGB, or use a track that decodes on the CPU"
        )


def decode_picture(data: bytes, limits: Limits) -> Image:
    """Return the picture that a request carries, as `boxwright.images.read_image` does.

    Args:
        data: A picture file; zeros may follow it.
        limits: Of this server.

    Returns:
        (H, W, 3) uint8 BGR, upright as its EXIF orientation says.

    Raises:
        ImageError: It is empty, cut off, too large or no picture.
    """
    check_encoded(data, limits)
    image = decode_image(data, "encoded_image")
    _check_sides(image.shape[0], image.shape[1], limits)
    return image


def _check_sides(height: int, width: int, limits: Limits) -> None:
    if max(height, width) > limits.max_side_px:
        raise ImageError(
            f"encoded_image of {height}x{width} (height x width)",
            f"this server takes sides of up to {limits.max_side_px} pixels",
            "send a smaller picture, or raise max_side_px in config.pbtxt",
        )
    if min(height, width) < 1:
        raise ImageError("encoded_image", "the picture has no pixels", "replace the file")


def prepared(
    images: Sequence[Image], spec: ModelSpec, out: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return the network's input and where the pictures lie in it.

    Args:
        images: (H, W, 3) uint8 BGR each.
        spec: The model.
        out: (B, 3, height, width) float32, contiguous, to write into; None takes new memory.

    Returns:
        images (B, 3, height, width) float32 and placement (B, 6) float32.
    """
    batch = np.empty((len(images), 3, *spec.input_size), np.float32) if out is None else out
    places = [
        prepare(im, spec.input_size, spec.preprocess, batch[i]) for i, im in enumerate(images)
    ]
    return batch, np.array([row_from_placement(p) for p in places], np.float32)


def row_from_placement(where: Placement) -> tuple[float, float, float, float, float, float]:
    """Return resized width and height, left, top, source width and height: whole pixels all.

    >>> row_from_placement(Placement((1080, 810), (640, 480), 80, 0))
    (480, 640, 80, 0, 810, 1080)
    """
    height, width = where.resized_size
    return (width, height, where.left, where.top, where.source_size[1], where.source_size[0])


def placement_from_row(row: npt.ArrayLike) -> Placement:
    """Read what `row_from_placement` wrote.

    >>> placement_from_row([480, 640, 80, 0, 810, 1080])
    Placement(source_size=(1080, 810), resized_size=(640, 480), left=80, top=0)
    """
    width, height, left, top, source_width, source_height = (
        round(float(v)) for v in np.asarray(row, np.float32)
    )
    return Placement((source_height, source_width), (height, width), left, top)


def detections_of_head(
    raw: FloatArray, row: npt.ArrayLike, spec: ModelSpec, settings: NmsSettings
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Decode one picture's raw head, with NMS, into source pixels.

    Args:
        raw: (C, A) or (A, C) as `spec.layout` says.
        row: Its placement.
        spec: The model.
        settings: Thresholds and limits.

    Returns:
        boxes (N, 4) float32 xyxy in source pixels, scores (N,), class ids (N,), best first.
    """
    head = raw.astype(np.float32, copy=False)
    xyxy, scores, labels = boxes.select_candidates(head, spec.layout, spec.input_size, settings)
    if spec.layout.nms_free:
        keep: Any = slice(settings.keep_topk)
    else:
        keep = boxes.batched_nms(xyxy, scores, labels, settings)
    return source_from_input(xyxy[keep], placement_from_row(row)), scores[keep], labels[keep]


def padded(
    found: Sequence[tuple[FloatArray, FloatArray, IntArray]], count: int
) -> dict[str, npt.NDArray[Any]]:
    """Return the detections of several pictures as an end-to-end graph does.

    Rows that hold nothing are zeros, and -1 as class.

    Args:
        found: Boxes, scores and class ids of each picture.
        count: Rows of each picture (K).

    Returns:
        num_dets (B, 1) int32, det_boxes (B, K, 4) float32, det_scores (B, K) float32 and
        det_classes (B, K) int32.
    """
    total = len(found)
    result: dict[str, npt.NDArray[Any]] = {
        "num_dets": np.zeros((total, 1), np.int32),
        "det_boxes": np.zeros((total, count, 4), np.float32),
        "det_scores": np.zeros((total, count), np.float32),
        "det_classes": np.full((total, count), -1, np.int32),
    }
    for index, (xyxy, scores, labels) in enumerate(found):
        size = min(len(scores), count)
        result["num_dets"][index] = size
        result["det_boxes"][index, :size] = xyxy[:size]
        result["det_scores"][index, :size] = scores[:size]
        result["det_classes"][index, :size] = labels[:size]
    return result


def spec_from_parameters(parameters: Mapping[str, str]) -> ModelSpec:
    """Read the model out of a configuration's parameter `boxwright`."""
    stamp: dict[str, str] = json.loads(parameters["boxwright"])
    return ModelSpec.from_dict(json.loads(stamp["boxwright.spec"]))


def settings_from_parameters(parameters: Mapping[str, str]) -> NmsSettings:
    """Read the thresholds out of a configuration's parameters, one each, to be edited there."""
    return NmsSettings(
        score_threshold=float(parameters["score_threshold"]),
        iou_threshold=float(parameters["iou_threshold"]),
        pre_topk=int(parameters["pre_topk"]),
        keep_topk=int(parameters["keep_topk"]),
        class_agnostic=parameters["class_agnostic"] == "true",
        multi_label=parameters["multi_label"] == "true",
    )
