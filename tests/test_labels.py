"""Class names and colours from files, and drawings that use them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from tiny_models import ultralytics_onnx

import boxwright
from boxwright import catalog
from boxwright.errors import SourceError
from boxwright.sources.sidecars import Labels, read_labels
from boxwright.types import Detections, ModelSpec

NAMES = ("ant", "bee", "sea cat")
COLORS = ("#ff0000", "", "#0a141e")
FILES = {
    "names.txt": ("ant #FF0000\nbee\n\nsea cat  #0a141e\n", COLORS),
    "plain.txt": ("ant\nbee\nsea cat\n", ()),
    "names.json": (json.dumps(["ant #ff0000", "bee", "sea cat #0a141e"]), COLORS),
    "numbered.json": (json.dumps({"2": "sea cat #0a141e", "0": "ant #ff0000", "1": "bee"}), COLORS),
    "mmdet.json": (
        json.dumps({"classes": NAMES, "palette": [[255, 0, 0], [1, 2, 3], [10, 20, 30]]}),
        ("#ff0000", "#010203", "#0a141e"),
    ),
    "old.json": (
        json.dumps({"CLASSES": NAMES, "PALETTE": [[255, 0, 0], [1, 2, 3], [10, 20, 30]]}),
        ("#ff0000", "#010203", "#0a141e"),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_names_and_colours_are_read(name, tmp_path):
    text, colors = FILES[name]
    (tmp_path / name).write_text(text)
    assert read_labels(str(tmp_path / name)) == Labels(NAMES, colors)


def test_what_looks_like_a_colour_and_is_none_stays_a_name(tmp_path):
    (tmp_path / "n.txt").write_text("drawer #12\n#ffffff\nc #ff\n")
    assert read_labels(str(tmp_path / "n.txt")) == Labels(("drawer #12", "#ffffff", "c #ff"))


@pytest.mark.parametrize(
    "palette", [[[1, 2, 3]], [[1, 2, 3], [1, 2], [1, 2, 3]], [[1, 2, 300]] * 3, "coco"]
)
def test_a_palette_that_does_not_fit_is_refused(palette, tmp_path):
    (tmp_path / "n.json").write_text(json.dumps({"classes": NAMES, "palette": palette}))
    with pytest.raises(SourceError, match="palette"):
        read_labels(str(tmp_path / "n.json"))


def test_colours_travel_with_the_file_and_are_drawn(cli, tmp_path):
    source = ultralytics_onnx(tmp_path / "tiny.onnx")
    (tmp_path / "n.txt").write_text(FILES["names.txt"][0])
    made = cli("export", source, "--labels", tmp_path / "n.txt", "--out", tmp_path / "runs")
    assert made.code == 0, made.err
    file = tmp_path / "runs" / "tiny" / "tiny.fp32.onnx"
    with boxwright.load(file, "onnxruntime", quiet=True) as detector:
        assert detector.spec.class_colors == COLORS
        assert ModelSpec.from_dict(detector.spec.as_dict()) == detector.spec
        picture = np.full((64, 64, 3), 90, np.uint8)
        assert detector(picture).class_colors == COLORS
    (tmp_path / "o.txt").write_text("ant #00ff00\nbee #00ff00\nsea cat #00ff00\n")
    with boxwright.load(file, "onnxruntime", labels=str(tmp_path / "o.txt"), quiet=True) as other:
        assert other.spec.class_colors == ("#00ff00",) * 3
    # Other colours are another file, which is not replaced unasked.
    words = ("export", source, "--out", tmp_path / "runs", "--labels")
    changed = cli(*words, tmp_path / "o.txt")
    assert changed.code == 2 and "colors" in changed.error


@pytest.mark.parametrize("task", ["detect", "segment", "obb"])
def test_a_drawing_has_the_colours(task):
    crop = boxwright.types.MaskCrop(10, 10, np.ones((40, 40), bool))
    found = Detections(
        xyxy=np.array([[10, 10, 50, 50]], np.float32),
        scores=np.array([0.5], np.float32),
        class_ids=np.array([2]),
        class_names=NAMES,
        image_size=(80, 80),
        task=task,
        mask_crops=(crop,) if task == "segment" else None,
        rotated=np.array([[30, 30, 40, 40, 0.0]], np.float32) if task == "obb" else None,
        class_colors=("", "", "#0040ff"),
    )
    canvas = catalog.task(task).draw(np.zeros((80, 80, 3), np.uint8), found)
    assert (canvas.reshape(-1, 3) == (255, 64, 0)).all(1).sum() > 50
    grey = cv2.cvtColor(canvas, cv2.COLOR_BGR2GRAY)
    assert grey[70:, 70:].max() == 0
