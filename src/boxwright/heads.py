"""What heads of the tasks hold, read on the host: from raw or end-to-end outputs to detections.

Pure. Between the two lie `Rows`, in pixels of the network input: a box, score and class each, and
what the task adds to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright import boxes
from boxwright.errors import BackendError
from boxwright.masks import mask_logits, masks_in_source
from boxwright.preprocess import (
    Placement,
    points_from_input,
    rotated_from_input,
    source_from_input,
    sources_from_inputs,
)
from boxwright.rotated import enclosing_boxes, rotated_nms
from boxwright.types import Detections, FloatArray, IntArray, ModelSpec, NmsSettings

__all__ = [
    "TOP_CLASSES",
    "Rows",
    "candidates_from_raw",
    "class_scores_from_raw",
    "decoded_raw",
    "detections_from_rows",
    "detections_of_pictures",
    "kept_rows",
    "rows_from_end2end",
]

TOP_CLASSES = 5  # of a classifier

Outputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Rows:
    """What one picture's head says, best first.

    Attributes:
        xyxy: (N, 4) float32 in input pixels; of rotated boxes before they are turned.
        scores: (N,) float32.
        class_ids: (N,) int64.
        extras: (N, E) float32: mask coefficients, keypoints one after the other, or the angle.
        prototypes: (M, h, w) float32 that coefficients count, or None.
        logits: (N, h, w) float32 where a graph made them of the two already, or None.
    """

    xyxy: FloatArray
    scores: FloatArray
    class_ids: IntArray
    extras: FloatArray
    prototypes: FloatArray | None = None
    logits: FloatArray | None = None

    def select(self, index: npt.NDArray[Any]) -> Rows:
        """Return the rows at `index`."""
        return replace(
            self,
            xyxy=self.xyxy[index],
            scores=self.scores[index],
            class_ids=self.class_ids[index],
            extras=self.extras[index],
            logits=None if self.logits is None else self.logits[index],
        )

    @property
    def rotated(self) -> FloatArray:
        """(N, 5): centre x, centre y, width, height, angle."""
        return np.concatenate([boxes.cxcywh_from_xyxy(self.xyxy), self.extras[:, -1:]], axis=1)


def candidates_from_raw(
    outputs: Outputs, index: int, spec: ModelSpec, settings: NmsSettings
) -> Rows:
    """Return what one picture's raw head proposes before NMS: steps 1 and 2 of `NmsSettings`."""
    arrays = list(outputs.values())
    raw = arrays[0][index].astype(np.float32, copy=False)
    if spec.task == "classify":
        return _ranked_classes(raw, spec, settings)
    found = boxes.select_with_extras(raw, spec.layout, spec.input_size, settings)
    prototypes = arrays[1][index].astype(np.float32, copy=False) if spec.task == "segment" else None
    return Rows(*found, prototypes=prototypes)


def class_scores_from_raw(
    outputs: Outputs, index: int, spec: ModelSpec, settings: NmsSettings
) -> FloatArray | None:
    """Return what each of `candidates_from_raw` scores in every class: (N, classes) float32.

    None where a candidate is not the best of its classes: classifiers, NMS-free heads,
    `multi_label`.
    """
    if spec.task == "classify" or spec.layout.nms_free or settings.multi_label:
        return None
    raw = next(iter(outputs.values()))[index].astype(np.float32, copy=False)
    return boxes.select_class_scores(raw, spec.layout, settings)


def _ranked_classes(scores: FloatArray, spec: ModelSpec, settings: NmsSettings) -> Rows:
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > np.float32(settings.score_threshold)]
    return _whole_inputs(scores[order], order.astype(np.int64), spec)


def _whole_inputs(scores: FloatArray, labels: IntArray, spec: ModelSpec) -> Rows:
    height, width = spec.input_size
    whole = np.tile(np.array([0, 0, width, height], np.float32), (len(scores), 1))
    return Rows(whole, scores, labels, np.zeros((len(scores), 0), np.float32))


def kept_rows(rows: Rows, spec: ModelSpec, settings: NmsSettings) -> npt.NDArray[np.intp]:
    """Return the positions that NMS leaves: steps 3 and 4 of `NmsSettings`, by the task's rules."""
    if spec.task == "classify":
        return np.arange(min(len(rows.scores), TOP_CLASSES))
    if spec.layout.nms_free:
        return np.arange(min(len(rows.scores), settings.keep_topk))
    if spec.layout.rotated:
        kept = rotated_nms(
            rows.rotated, rows.class_ids, settings.iou_threshold, settings.class_agnostic
        )
        return kept[: settings.keep_topk]
    return boxes.batched_nms(rows.xyxy, rows.scores, rows.class_ids, settings)


def rows_from_end2end(
    outputs: Outputs, count: int, spec: ModelSpec, above: float | None = None
) -> Iterator[Rows]:
    """Yield the rows of an end-to-end file's first pictures, read for all of them at once.

    Args:
        outputs: Of one inference; the rows are copies.
        count: Pictures.
        spec: The model.
        above: Only rows that score more; None takes all.

    Raises:
        BackendError: An output is missing or too small.
    """
    if count == 1 and spec.task == "detect":
        yield _rows_of_one(outputs, above)  # faster: one picture is waited for
        return
    numbers = _output(outputs, "num_dets", count, 1)[:count, 0].tolist()
    scores = _output(outputs, "det_scores", count)
    most = min(max(numbers, default=0), scores.shape[1])
    scores = scores[:count, :most].astype(np.float32, copy=False)
    kept = np.ones(scores.shape, bool) if above is None else scores > np.float32(above)
    if min(numbers, default=most) < most:
        kept &= np.arange(most) < np.array(numbers)[:, None]
    picture, slot = kept.nonzero()
    ends = picture.searchsorted(np.arange(1, count + 1)).tolist() if count != 1 else [len(slot)]
    at: Any = (picture, slot)
    if count == 1 and len(slot) == most:
        at = (0, slice(most))

    def chosen(name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = _output(outputs, name, count, most)[at]
        return array

    scores, labels = scores[at].astype(np.float32), chosen("det_classes").astype(np.int64)
    owns = [slice(first, end) for first, end in zip([0, *ends], ends, strict=False)]
    if spec.task == "classify":
        for own in owns:
            yield _whole_inputs(scores[own], labels[own], spec)
        return
    xyxy = chosen("det_boxes").astype(np.float32)
    extras, logits = np.zeros((len(scores), 0), np.float32), None
    if spec.task == "pose":
        points = chosen("det_keypoints").astype(np.float32)
        extras = points.reshape(len(scores), spec.layout.extras)
    elif spec.task == "obb":
        extras = chosen("det_angles").astype(np.float32)[:, None]
    for index, own in enumerate(owns):
        if spec.task == "segment":  # one by one: they are large
            masks = _output(outputs, "det_masks", count, most)
            logits = masks[index, slot[own]].astype(np.float32, copy=False)
        yield Rows(xyxy[own], scores[own], labels[own], extras[own], None, logits)


def _rows_of_one(outputs: Outputs, above: float | None) -> Rows:
    """Return the rows of boxes alone, of the first picture."""
    number = int(_output(outputs, "num_dets", 1, 1)[0, 0])
    scores = _output(outputs, "det_scores", 1)[0, :number].astype(np.float32)
    most = len(scores)
    at: Any = slice(most)
    if above is not None:
        kept = scores > np.float32(above)
        if np.count_nonzero(kept) < most:
            at = kept.nonzero()[0]
            scores = scores[at]
    return Rows(
        _output(outputs, "det_boxes", 1, most)[0, at].astype(np.float32),
        scores,
        _output(outputs, "det_classes", 1, most)[0, at].astype(np.int64),
        np.zeros((len(scores), 0), np.float32),
    )


def _output(outputs: Outputs, name: str, count: int, places: int = 0) -> npt.NDArray[Any]:
    """Return an output that has so many pictures and places, or more."""
    array = outputs.get(name)
    if array is None or array.ndim < 2 or len(array) < count or array.shape[1] < places:
        raise BackendError(
            "end-to-end outputs",
            f"{name!r} is " + ("missing" if array is None else f"too small: {array.shape}"),
            "check the file with: boxwright inspect",
        )
    return array


def detections_from_rows(
    rows: Rows, spec: ModelSpec, where: Placement, placed: FloatArray | None = None
) -> Detections:
    """Return what the rows are in the source picture.

    Args:
        rows: After NMS.
        spec: The model.
        where: The picture's placement.
        placed: The boxes in source pixels where they are known already (task `detect` alone).
    """
    task = spec.task
    xyxy = source_from_input(rows.xyxy, where) if placed is None else placed
    rotated = keypoints = crops = None
    if task == "obb":
        rotated = rotated_from_input(rows.rotated, where)
        xyxy = enclosing_boxes(rotated, where.source_size)
    elif task == "pose":
        shape = (len(rows.scores), *spec.layout.keypoint_shape)
        keypoints = points_from_input(rows.extras.reshape(shape), where)
    elif task == "segment":
        logits = rows.logits
        if logits is None:
            assert rows.prototypes is not None
            logits = mask_logits(rows.extras, rows.prototypes)
        crops = masks_in_source(logits, xyxy, where)
    elif task == "classify":
        height, width = where.source_size
        xyxy = np.tile(np.array([0, 0, width, height], np.float32), (len(rows.scores), 1))
    found = Detections(
        xyxy=xyxy,
        scores=rows.scores,
        class_ids=rows.class_ids,
        class_names=spec.class_names,
        image_size=where.source_size,
        task=task,
        mask_crops=crops,
        keypoints=keypoints,
        rotated=rotated,
        class_colors=spec.class_colors,
    )
    if crops is None:
        return found
    # Ultralytics drops boxes whose mask is empty, and so do we.
    filled = np.array([c.pixels.any() for c in crops], bool)
    return found if filled.all() else found.select(filled)


def detections_of_pictures(
    rows: Iterable[Rows], spec: ModelSpec, places: Sequence[Placement], mapped: bool = False
) -> list[Detections]:
    """Return `detections_from_rows` of each picture; plain boxes are mapped all at once.

    Args:
        rows: One for each picture, drawn as needed.
        spec: The model.
        places: The pictures' placements.
        mapped: The boxes are in source pixels already (task `detect` alone).
    """
    if mapped:
        return [detections_from_rows(r, spec, w, r.xyxy) for r, w in zip(rows, places, strict=True)]
    if spec.task != "detect" or len(places) == 1:
        return [detections_from_rows(r, spec, w) for r, w in zip(rows, places, strict=True)]
    known = list(rows)
    counts = [len(r.scores) for r in known]
    together = np.concatenate([np.zeros((0, 4), np.float32), *(r.xyxy for r in known)])
    placed = sources_from_inputs(together, places, counts)
    ends = np.cumsum(counts).tolist()
    return [
        detections_from_rows(r, spec, where, placed[end - count : end])
        for r, where, count, end in zip(known, places, counts, ends, strict=True)
    ]


def decoded_raw(outputs: Outputs, spec: ModelSpec) -> tuple[FloatArray, FloatArray]:
    """Return `boxes.decode` of a raw head's first picture; a classifier has one box, all zeros."""
    raw = next(iter(outputs.values()))[:1].astype(np.float32, copy=False)
    if spec.task == "classify":
        return np.zeros((1, 1, 4), np.float32), raw[:, None, :]
    return boxes.decode(raw, spec.layout, spec.input_size)
