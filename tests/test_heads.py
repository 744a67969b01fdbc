"""A batch of end-to-end outputs gives each picture, to the bit, what it gives alone."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from boxwright.detector import Detector
from boxwright.errors import BackendError, ImageError
from boxwright.heads import Rows, detections_from_rows, kept_rows
from boxwright.images import read_bytes
from boxwright.preprocess import place
from boxwright.types import (
    Detections,
    HeadLayout,
    ModelSpec,
    NmsSettings,
    Preprocess,
    Target,
    TensorInfo,
)

SIZE, PLACES, BATCH = (64, 96), 12, 9
ABOVE = NmsSettings(score_threshold=0.4, iou_threshold=0.5)
LAYOUTS = {
    "detect": HeadLayout(),
    "segment": HeadLayout(extras=4),
    "pose": HeadLayout(extras=15, keypoint_shape=(5, 3)),
    "obb": HeadLayout(extras=1, rotated=True),
    "classify": HeadLayout(),
}


def detector_of(task: str, **target: object) -> Detector:
    spec = ModelSpec("net", "none", task, ("a", "b", "c"), SIZE, Preprocess(), LAYOUTS[task])
    backend = SimpleNamespace(
        inputs=(TensorInfo("images", "float32", ("n", 3, *SIZE)),), description="none"
    )
    return Detector(backend, spec, Target(outputs="end2end", **target), ABOVE)


def random_outputs(seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Every output of every task; some pictures are empty, and some places hold zeros."""
    rng = np.random.default_rng(seed)

    def floats(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (BATCH, PLACES, *shape)).astype(dtype)

    counts = rng.integers(0, PLACES, (BATCH, 1), np.int32, endpoint=True)
    counts[rng.integers(0, BATCH, 3)] = 0
    corners = np.sort(floats(-9, 105, 2, 2), axis=2)  # some lie outside and are clipped
    boxes = corners.reshape(BATCH, PLACES, 4)
    boxes[rng.random(boxes.shape) < 0.1] = -0.0
    scores = -np.sort(-floats(0.25, 1), axis=1)
    scores[:, 3] = np.float32(0.4)  # as good as the threshold, which is not over it
    return {
        "num_dets": counts,
        "det_boxes": boxes,
        "det_scores": scores,
        "det_classes": rng.integers(0, 3, (BATCH, PLACES), np.int32),
        "det_keypoints": floats(-9, 105, 5, 3),
        "det_angles": floats(-1, 1),
        "det_masks": floats(-1, 0.3, SIZE[0] // 4, SIZE[1] // 4),
    }


def alone(detector: Detector, outputs: dict[str, np.ndarray], index: int, where) -> Detections:
    """One picture, read by itself: the definition."""
    spec, task = detector.spec, detector.spec.task
    count = int(outputs["num_dets"][index, 0])
    part = {
        name: array[index, :count].astype(np.float32)
        for name, array in outputs.items()
        if name != "nms_converged" and name != "num_dets"
    }
    extras = np.zeros((count, 0), np.float32)
    if task == "pose":
        extras = part["det_keypoints"].reshape(count, 15)
    elif task == "obb":
        extras = part["det_angles"][:, None]
    rows = Rows(
        part["det_boxes"],
        part["det_scores"],
        part["det_classes"].astype(np.int64),
        extras,
        logits=part["det_masks"] if task == "segment" else None,
    )
    if "nms_converged" in outputs and not outputs["nms_converged"][index, 0]:
        rows = rows.select(kept_rows(rows, spec, ABOVE))
    rows = rows.select(rows.scores > np.float32(ABOVE.score_threshold))
    placed = rows.xyxy if detector.target.input == "image" else None
    return detections_from_rows(rows, spec, where, placed)


def bits(found: Detections) -> list[object]:
    """Everything that a result holds, with types and shapes."""
    values = [getattr(found, f.name) for f in dataclasses.fields(found)]
    crops = [(c.left, c.top, c.pixels) for c in found.mask_crops or ()]
    return [
        (v.dtype.str, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v
        for v in (*(v for v in values if v is not found.mask_crops), *(x for c in crops for x in c))
    ]


SIZES = [(480, 640), (640, 480), (33, 700), (64, 96), (1, 1), (500, 375)]
PLACED = [place(SIZES[i % 6], SIZE, Preprocess()) for i in range(BATCH)]


@pytest.mark.parametrize("task", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("extra", ["", "nms_converged"])
def test_a_batch_gives_what_each_picture_gives_alone(task, dtype, extra):
    detector = detector_of(task)
    total = 0
    for seed in range(6):
        outputs = random_outputs(seed, dtype)
        if extra and task != "classify":
            outputs["num_dets"] = np.minimum(outputs["num_dets"], PLACES - 1)  # else it is cut
            outputs[extra] = np.arange(BATCH)[:, None] % 2 == seed % 2
        expected = [alone(detector, outputs, i, w) for i, w in enumerate(PLACED)]
        found = detector.postprocess(outputs, PLACED, ABOVE)
        first = detector.postprocess(outputs, PLACED[:1], ABOVE)
        for array in outputs.values():
            array[...] = 0  # pinned memory that the next batch writes into
        assert [bits(f) for f in found] == [bits(e) for e in expected]
        assert [bits(f) for f in first] == [bits(expected[0])]
        total += sum(map(len, found))
        assert not all(map(len, found)), "some are empty"
    assert total > 50


@pytest.mark.parametrize("task", LAYOUTS)
def test_one_picture_whose_every_box_counts_is_copied(task):
    detector, outputs = detector_of(task), random_outputs(4)
    outputs["num_dets"][0] = PLACES
    all_ = NmsSettings(score_threshold=0.0)
    (expected,) = detector.postprocess({n: a.copy() for n, a in outputs.items()}, PLACED[:1], all_)
    (found,) = detector.postprocess(outputs, PLACED[:1], all_)
    for array in outputs.values():
        array[...] = 0
    assert bits(found) == bits(expected)
    assert len(found) == PLACES or task == "segment", "empty masks are dropped"


def test_boxes_that_the_graph_mapped_stay():
    detector = detector_of("detect", input="image")
    outputs = random_outputs(3)
    expected = [alone(detector, outputs, i, w) for i, w in enumerate(PLACED)]
    found = detector.postprocess(outputs, PLACED, ABOVE)
    assert [bits(f) for f in found] == [bits(e) for e in expected]
    assert min(f.xyxy.min(initial=0) for f in found) < 0, "they are not clipped again"


@pytest.mark.parametrize("count", [0, 1, BATCH])
def test_pictures_without_detections(count):
    outputs = {**random_outputs(1), "num_dets": np.zeros((BATCH, 1), np.int32)}
    found = detector_of("detect").postprocess(outputs, PLACED[:count])
    assert [(len(f), f.xyxy.shape) for f in found] == [(0, (0, 4))] * count


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o.pop("det_boxes"), "'det_boxes' is missing"),
        (lambda o: o.update(det_scores=o["det_scores"][:2]), "'det_scores' is too small: \\(2, 12"),
        (lambda o: o.update(det_boxes=o["det_boxes"][:, :1]), "'det_boxes' is too small"),
        (lambda o: o.update(num_dets=o["num_dets"][:, 0]), "'num_dets' is too small"),
    ],
    ids=["missing", "pictures", "places", "axes"],
)
def test_outputs_that_are_not_what_was_promised(change, words):
    outputs = random_outputs(0)
    change(outputs)
    with pytest.raises(BackendError, match=words):
        detector_of("detect").postprocess(outputs, PLACED)


# -- files, read with few system calls


def test_a_pipe_and_a_file_of_unknown_size_are_read_whole(tmp_path):
    _, data = cv2.imencode(
        ".png", np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    )
    whole = data.tobytes()
    assert len(whole) > 300_000, "more than a pipe holds"
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(whole,))
    writer.start()
    assert read_bytes(pipe) == whole
    writer.join()
    (tmp_path / "a.png").write_bytes(whole)
    assert read_bytes(str(tmp_path / "a.png")) == whole
    status = Path("/proc/self/cmdline")
    if status.exists():
        assert read_bytes(status) == status.read_bytes() != b"", "it says that it holds 0 bytes"


def test_errors_name_a_path_as_pathlib_does(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no end")
    (tmp_path / "empty.jpg").touch()
    words = {"none.jpg": "no such file", "cut.jpg": "cut off", "empty.jpg": "empty", "": "a folder"}
    for name, found in words.items():
        with pytest.raises(ImageError, match=found) as refused:
            read_bytes(f"{tmp_path}//./{name}")
        assert refused.value.asked == str(tmp_path / name)
