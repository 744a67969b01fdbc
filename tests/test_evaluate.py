"""Accuracy: known cases give known figures, and nothing but the detections changes them."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_models

from boxwright.backends import Feed
from boxwright.datasets import Dataset, open_dataset
from boxwright.detector import Detector
from boxwright.errors import RequestError
from boxwright.evaluate import evaluate
from boxwright.loading import load
from boxwright.scoring import Counts, Labelled, average_precision, count_matches
from boxwright.types import (
    Accuracy,
    HeadLayout,
    ModelSpec,
    NmsSettings,
    Preprocess,
    Target,
    TensorInfo,
)

SIDE = 64
NAMES = ("ant", "bee")
Box = tuple[float, float, float, float]
Found = tuple[Box, float, int]  # xyxy, score, class

A: Box = (4, 4, 24, 24)
B: Box = (30, 30, 60, 50)
FAR: Box = (40, 2, 60, 12)


class FakeBackend:
    """Finds in a picture what it is told; the grey level of a picture is its number."""

    def __init__(self, found: dict[int, list[Found]], end2end: bool, batch: int | str) -> None:
        self._found, self._end2end = found, end2end
        self.description = "fake"
        self.inputs = (TensorInfo("images", "float32", (batch, 3, SIDE, SIDE)),)
        self.outputs = ()
        self.metadata: dict[str, str] = {}
        self.calls = 0

    def infer(self, feed: Feed) -> dict[str, np.ndarray]:
        self.calls += 1
        numbers = np.rint(feed["images"][:, 0, 0, 0] * 255).astype(int)
        rows = np.zeros((len(numbers), 20, 6), np.float32)
        for picture, number in enumerate(numbers):
            for i, (box, score, class_id) in enumerate(self._found.get(number, [])):
                rows[picture, i] = (*box, score, class_id)
        if not self._end2end:
            return {"output0": rows}
        count = (rows[..., 4] > 0).sum(axis=1, keepdims=True).astype(np.int32)
        return {
            "num_dets": count,
            "det_boxes": rows[..., :4],
            "det_scores": rows[..., 4],
            "det_classes": rows[..., 5].astype(np.int32),
        }

    def close(self) -> None:
        pass


def fake(
    found: dict[int, list[Found]],
    *,
    names: tuple[str, ...] = NAMES,
    baked: NmsSettings | None = None,
    batch: int | str = "batch",
    nms_free: bool = True,
    dynamic: bool = False,
) -> Detector:
    """A detector of 64x64 pictures that finds what it is told."""
    layout = HeadLayout(axes="nac", box_format="xyxy", nms_free=nms_free)
    family = "ultralytics-nms-free" if nms_free else "ultralytics"
    spec = ModelSpec("fake", family, "detect", names, (SIDE, SIDE), Preprocess(), layout)
    target = Target(outputs="end2end", dynamic_thresholds=dynamic) if baked else None
    return Detector(FakeBackend(found, baked is not None, batch), spec, target, baked)


def data_of(folder: Path, truth: list[list[tuple]], names: tuple[str, ...] = NAMES) -> Dataset:
    """Pictures 1, 2, ... with (xyxy, class) or (xyxy, class, crowd) each, as a COCO file."""
    annotations, images = [], []
    for number, objects in enumerate(truth, 1):
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), np.full((SIDE, SIDE, 3), number, np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
        for (x1, y1, x2, y2), class_id, *crowd in objects:
            box = [x1, y1, x2 - x1, y2 - y1]
            one = {"image_id": number, "category_id": class_id, "bbox": box, "iscrowd": any(crowd)}
            annotations.append(one)
    categories = [{"id": i, "name": n} for i, n in enumerate(names)]
    text = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(text))
    return open_dataset(str(folder / "truth.json"), class_names=names)


# name: (truth by picture, detections by picture, expected figures)
KNOWN = {
    "perfect": (
        [[(A, 0)], [(B, 1)]],
        [[(A, 0.9, 0)], [(B, 0.3, 1)]],
        {"map50_95": 1, "map50": 1, "map75": 1, "precision": 1, "recall": 1, "f1": 1},
    ),
    "nothing found": (
        [[(A, 0)]],
        [[]],
        {"map50_95": 0, "map50": 0, "precision": None, "recall": 0, "f1": 0},
    ),
    "one of two": ([[(A, 0), (B, 0)]], [[(A, 0.9, 0)]], {"map50": 51 / 101, "recall": 0.5}),
    "a wrong one between": (
        [[(A, 0), (B, 0)]],
        [[(A, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0)]],
        {"map50": (51 + 50 * 2 / 3) / 101, "precision": 2 / 3, "recall": 1, "f1": 0.8},
    ),
    "a wrong one below all": (
        [[(A, 0), (B, 0)]],
        [[(A, 0.9, 0), (B, 0.8, 0), (FAR, 0.1, 0)]],
        {"map50": 1, "precision": 1},
    ),
    "twice the same": (
        [[(A, 0)]],
        [[(A, 0.9, 0), (A, 0.8, 0)]],
        {"map50": 1, "precision": 0.5, "recall": 1},
    ),
    "the wrong class": (
        [[(A, 0)], [(B, 1)]],
        [[(A, 0.9, 1)], [(B, 0.8, 1)]],
        {"map50": (0 + 0.5) / 2, "precision": 0.5, "recall": 0.5},
    ),
    # 20 x 20 against 20 x 15: IoU 0.75 passes 0.5, 0.55, ... 0.75, six of ten thresholds
    "three quarters": (
        [[(A, 0)]],
        [[((4, 4, 24, 19), 0.9, 0)]],
        {"map50_95": 0.6, "map50": 1, "map75": 1, "map_small": 0.6, "map_large": None},
    ),
    "a class that is not shown": ([[(A, 0)]], [[(A, 0.9, 0), (B, 0.95, 1)]], {"map50": 1}),
    "in a crowd": (
        [[(A, 0), (B, 0, True)]],
        [[((31, 31, 40, 40), 0.95, 0), (B, 0.94, 0), (A, 0.9, 0)]],
        {"map50": 1, "precision": 1, "recall": 1, "objects": 1},
    ),
    "no objects": ([[], []], [[(A, 0.9, 0)], []], {"map50": None, "precision": 0, "recall": None}),
    "under the operating threshold": (
        [[(A, 0)]],
        [[(A, 0.2, 0)]],
        {"map50": 1, "precision": None, "recall": 0},
    ),
    "under the evaluation threshold": ([[(A, 0)]], [[(A, 0.0005, 0)]], {"map50": 0}),
}


@pytest.mark.parametrize("case", KNOWN)
@pytest.mark.parametrize("batch", [1, 3])
def test_known_figures(tmp_path, case, batch):
    truth, found, expected = KNOWN[case]
    detector = fake(dict(enumerate(found, 1)))
    accuracy = evaluate({"f": detector}, data_of(tmp_path, truth), batch=batch)["f"]
    for name, value in expected.items():
        measured = getattr(accuracy, name)
        assert measured == (None if value is None else pytest.approx(value, abs=1e-9)), name
    assert accuracy.pictures == len(truth)


def test_the_record_says_how_it_was_measured(tmp_path):
    dataset = data_of(tmp_path, [[(A, 0)], []])
    detector = fake({1: [(A, 0.9, 0)]})
    accuracy = evaluate({"f": detector}, dataset, environment={"python": "3"})["f"]
    assert accuracy.per_class == {"ant": (1.0, 1.0, 1)}
    assert accuracy.evaluation.score_threshold == 0.001
    assert (accuracy.evaluation.keep_topk, accuracy.evaluation.pre_topk) == (300, 30_000)
    assert accuracy.operating.score_threshold == 0.25
    assert list(accuracy.pr_curve) == ["ant", "all"]
    assert len(accuracy.pr_curve["all"]) == 101 and set(accuracy.pr_curve["all"]) == {1.0}
    assert accuracy.fingerprint == dataset.fingerprint
    assert accuracy.problems == {"pictures without objects": 1}
    plain = json.loads(json.dumps(accuracy.as_dict(), allow_nan=False))
    assert Accuracy.from_dict(plain) == accuracy


def test_multi_label_where_nms_and_several_classes_are(tmp_path):
    data_of(tmp_path, [[(A, 0)]])
    for name, expected in (("tiny", True), ("single", False), ("free", False)):
        make = tiny_models.nms_free_onnx if name == "free" else tiny_models.ultralytics_onnx
        make(tmp_path / f"{name}.onnx", classes=1 if name == "single" else 2)
        with load(tmp_path / f"{name}.onnx", "onnxruntime", threads=1, quiet=True) as detector:
            names = detector.spec.class_names
            dataset = open_dataset(str(tmp_path / "truth.json"), class_names=names)
            found = evaluate({name: detector}, dataset)[name]
            assert found.evaluation.multi_label is expected


@pytest.mark.parametrize(
    "make, iou",
    [
        (tiny_models.ultralytics_onnx, 0.7),
        (tiny_models.yolox_onnx, 0.65),
        (tiny_models.yolov5_onnx, 0.6),
    ],
)
def test_every_project_measures_with_its_own_iou(tmp_path, make, iou):
    data_of(tmp_path, [[(A, 0)]])
    make(tmp_path / "m.onnx", classes=2)
    with load(tmp_path / "m.onnx", "onnxruntime", labels=str(_labels(tmp_path)), quiet=True) as d:
        dataset = open_dataset(str(tmp_path / "truth.json"), class_names=NAMES)
        assert evaluate({"m": d}, dataset)["m"].evaluation.iou_threshold == iou
        assert evaluate({"m": d}, dataset, iou_threshold=0.3)["m"].evaluation.iou_threshold == 0.3


def _labels(folder: Path) -> Path:
    (folder / "names.txt").write_text("\n".join(NAMES))
    return folder / "names.txt"


# End-to-end files


def test_a_baked_threshold_is_said_and_cuts_the_curve(tmp_path):
    dataset = data_of(tmp_path, [[(A, 0), (B, 0)]])
    found = {1: [(A, 0.9, 0), (B, 0.3, 0)]}
    baked = NmsSettings(score_threshold=0.25, keep_topk=100)
    accuracy = evaluate({"f": fake(found, baked=baked)}, dataset)["f"]
    assert accuracy.evaluation.score_threshold == 0.25 and accuracy.evaluation.keep_topk == 100
    assert any("score threshold 0.25 is baked in" in w for w in accuracy.warnings)
    assert any("at most 100 detections a picture" in w for w in accuracy.warnings)
    assert accuracy.recall == 1
    clean = NmsSettings(score_threshold=0.001)
    assert evaluate({"f": fake(found, baked=clean)}, dataset)["f"].warnings == ()


def test_baked_nms_is_said(tmp_path):
    dataset = data_of(tmp_path, [[(A, 0)]])
    baked = NmsSettings(score_threshold=0.001, iou_threshold=0.45)
    detector = fake({1: [(A, 0.9, 0)]}, baked=baked, nms_free=False)
    [candidates, iou, one_class] = evaluate({"f": detector}, dataset)["f"].warnings
    assert "1000 candidates" in candidates and "one class a box" in one_class
    assert iou == "NMS IoU 0.45 is baked in; the project measures at 0.7"


def test_a_baked_threshold_cannot_be_asked_away(tmp_path):
    detector = fake({}, baked=NmsSettings(score_threshold=0.25), nms_free=False)
    dataset = data_of(tmp_path, [[(A, 0)]])
    for options in ({"score_threshold": 0.001}, {"iou_threshold": 0.5}):
        with pytest.raises(RequestError, match="is baked into this end-to-end file"):
            evaluate({"f": detector}, dataset, **options)


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_end2end_file_agrees_with_its_raw_file(place, cli, dynamic):
    """With the same settings inside, the figures are the same."""
    _jittered_data(place, "tiny.onnx")
    words = ["--dynamic-thresholds"] if dynamic else ["--score-threshold", "0.001"]
    words += ["--multi-label", "--pre-topk", "4000", "--outputs", "end2end"]
    assert cli("export", "tiny.onnx", *words).code == 0
    [file] = Path("runs").rglob("*.end2end.onnx")
    with (
        load("tiny.onnx", "onnxruntime", threads=1, quiet=True) as raw,
        load(file, "onnxruntime", threads=1, quiet=True) as whole,
    ):
        raw.nms = whole.nms  # several classes a box at the operating point, too
        dataset = open_dataset("truth.json", class_names=raw.spec.class_names)
        results = evaluate({"raw": raw, "whole": whole}, dataset)
    assert results["whole"].evaluation.score_threshold == 0.001
    assert 0.2 < results["raw"].map50 < 1
    assert results["raw"].map50_95 == pytest.approx(results["whole"].map50_95, abs=1e-6)
    assert results["raw"].f1 == pytest.approx(results["whole"].f1)


def test_dynamic_thresholds_of_another_iou_run_twice(tmp_path):
    baked = NmsSettings(score_threshold=0.25, iou_threshold=0.45)
    dataset = data_of(tmp_path, [[(A, 0)]])
    detector = fake({1: [(A, 0.9, 0)]}, baked=baked, nms_free=False, dynamic=True)
    detector._optional |= {"score_threshold", "iou_threshold"}
    accuracy = evaluate({"f": detector}, dataset)["f"]
    assert detector._backend.calls == 2 and accuracy.recall == 1
    evaluate({"f": detector}, dataset, iou_threshold=0.45)
    assert detector._backend.calls == 3
    evaluate({"f": detector}, dataset, iou_threshold=0.45, score_threshold=0.5)
    assert detector._backend.calls == 5
    assert accuracy.evaluation.iou_threshold == 0.7 and accuracy.operating.iou_threshold == 0.45


# Independence


def _jittered_data(folder: Path, model: str, pictures: int = 7) -> Path:
    """Pictures whose truth is, more or less, what a tiny model finds in them."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    with load(model, "onnxruntime", threads=1, quiet=True) as detector:
        for number in range(pictures):
            name = f"q{number}.png"
            picture = tiny_models.picture(60 + 9 * number, 120 - 8 * number, number)
            cv2.imwrite(str(folder / name), picture)
            height, width = picture.shape[:2]
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for box, _, class_id in detector(picture, score_threshold=0.05):
                moved = box + rng.normal(0, 2, 4)
                size = [moved[0], moved[1], moved[2] - moved[0], moved[3] - moved[1]]
                bbox = [float(v) for v in size]
                one = {"image_id": number, "category_id": class_id, "bbox": bbox}
                if rng.random() < 0.7:
                    annotations.append(one)
        names = detector.spec.class_names
    categories = [{"id": i, "name": n} for i, n in enumerate(names)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(data))
    return folder / "truth.json"


def _figures(model: Path, data: Path, batch: int = 1) -> Accuracy:
    with load(model, "onnxruntime", threads=1, quiet=True) as detector:
        dataset = open_dataset(str(data), class_names=detector.spec.class_names)
        return evaluate({"m": detector}, dataset, batch=batch)["m"]


def test_batches_change_nothing(place):
    data = _jittered_data(place, "tiny.onnx")
    alone = _figures(place / "tiny.onnx", data)
    assert 0.2 < alone.map50_95 < 1 and 0 < alone.f1 < 1
    for batch in (2, 7, 16):
        _same(_figures(place / "tiny.onnx", data, batch), alone)
    tiny_models.ultralytics_onnx(place / "fixed.onnx", batch=3)
    _same(_figures(place / "fixed.onnx", data, 2), alone)


def test_files_of_different_batches_run_together(place):
    data = _jittered_data(place, "tiny.onnx")
    tiny_models.ultralytics_onnx(place / "fixed.onnx", batch=3)
    with (
        load("tiny.onnx", "onnxruntime", threads=1, quiet=True) as one,
        load("fixed.onnx", "onnxruntime", threads=1, quiet=True) as other,
    ):
        dataset = open_dataset(str(data), class_names=one.spec.class_names)
        steps: list[int] = []
        found = evaluate({"a": one, "b": other}, dataset, advance=lambda: steps.append(1))
    _same(found["a"], found["b"])
    assert len(steps) == 7


def test_the_order_of_files_changes_nothing(place):
    data = _jittered_data(place, "tiny.onnx")
    before = _figures(place / "tiny.onnx", data)
    text = json.loads(data.read_text())
    rng = random.Random(1)
    for key in ("images", "annotations", "categories"):
        rng.shuffle(text[key])
    data.write_text(json.dumps(text))
    after = _figures(place / "tiny.onnx", data)
    assert after.fingerprint == before.fingerprint
    _same(after, before)


def _same(first: Accuracy, second: Accuracy) -> None:
    for name in ("map50_95", "map50", "map75", "precision", "recall", "f1"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-6), name


def test_ties_are_broken_by_picture_and_place(tmp_path):
    """Equal scores: the first picture by name counts first, and always the same."""
    truth = [[(A, 0)], [(A, 0)]]
    found = {1: [(FAR, 0.5, 0)], 2: [(A, 0.5, 0)]}
    for batch in (1, 2):
        accuracy = evaluate({"f": fake(found)}, data_of(tmp_path, truth), batch=batch)["f"]
        assert accuracy.map50 == pytest.approx(51 / 101 / 2)


# Scoring


def _picture(truth: list[Box], found: list[tuple[Box, float]]) -> Labelled:
    boxes = np.array([b for b, _ in found], np.float32).reshape(-1, 4)
    return Labelled(
        np.array(truth, np.float32).reshape(-1, 4), np.zeros(len(truth), np.int64),
        np.zeros(len(truth), bool), np.full(len(truth), 100.0), boxes,
        np.array([s for _, s in found], np.float32), np.zeros(len(found), np.int64),
    )  # fmt: skip


def test_max_detections_of_a_class_in_a_picture():
    many = [(FAR, 0.9)] * 3 + [(A, 0.8)]
    assert average_precision([_picture([A], many)], 1, 4).mean_50 == pytest.approx(0.25)
    assert average_precision([_picture([A], many)], 1, 3).mean_50 == 0


def test_a_detection_takes_the_free_object_that_it_overlaps_most():
    near: Box = (5, 4, 25, 24)
    counts = Counts()
    count_matches(_picture([A, near], [(A, 0.9), (A, 0.8), (A, 0.7)]), counts)
    assert (counts.right, counts.wrong, counts.missed) == (2, 1, 0)


def test_measuring_prints_nothing(tmp_path, capsys):
    evaluate({"f": fake({1: [(A, 0.9, 0)]})}, data_of(tmp_path, [[(A, 0)]]))
    assert capsys.readouterr() == ("", "")


# Problems while measuring


def test_pictures_that_cannot_be_measured_are_counted_and_left_out(tmp_path):
    dataset = data_of(tmp_path, [[(A, 0)], [(A, 0)], [(A, 0)]])
    (tmp_path / "2.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "3.png"), np.zeros((32, 64, 3), np.uint8))
    said: list[str] = []
    accuracy = evaluate({"f": fake({1: [(A, 0.9, 0)]})}, dataset, report=said.append)["f"]
    assert (accuracy.pictures, accuracy.objects, accuracy.map50) == (1, 1, 1)
    assert accuracy.problems == {
        "pictures of another size than the labels say, left out": 1,
        "pictures that cannot be read, left out": 1,
    }
    assert len(said) == 2 and "it is 64x32, the labels say 64x64" in said[1]


def test_more_objects_than_count_is_said(tmp_path):
    dataset = data_of(tmp_path, [[(A, 0), (B, 0)]])
    found = {1: [(A, 0.9, 0), (B, 0.8, 0)]}
    accuracy = evaluate({"f": fake(found)}, dataset, max_detections=1)["f"]
    assert accuracy.map50 == pytest.approx(51 / 101)
    assert any("1 pictures show more than 1 objects" in w for w in accuracy.warnings)


def test_models_of_other_classes_are_refused(tmp_path):
    dataset = data_of(tmp_path, [[(A, 0)]])
    detectors = {"a": fake({}), "b": fake({}, names=("ant", "cow"))}
    with pytest.raises(RequestError, match="its 2 classes are not"):
        evaluate(detectors, dataset)


# Command line


@pytest.fixture
def words(place: Path) -> list[object]:
    _jittered_data(place, "tiny.onnx", 3)
    return ["evaluate", "tiny.onnx", "--data", "truth.json", "--threads", 1]


def test_the_command(words, cli, place):
    tiny_models.ultralytics_onnx(place / "other.onnx", seed=1)
    words = [*words, "--runtime", "onnxruntime", "--save-json", "out/acc.json"]
    ran = cli(*words, "other.onnx", "--verbose")
    assert ran.code == 0, ran.err
    assert "truth.json: 3 pictures" in ran.out and "other.onnx" in ran.out
    assert "AP50-95 / AP50 by class" in ran.out and "bee" in ran.out
    saved = json.loads(Path("out/acc.json").read_text())
    assert [a["candidate"] for a in saved] == ["tiny.onnx", "other.onnx"]
    assert cli(*words).error.startswith("out/acc.json: it is there already; ")
    ran = cli(*words, "--json", "--force", "--max-images", 2)
    [accuracy] = json.loads(ran.out)
    assert accuracy["pictures"] == 2 and accuracy["dataset"] == "truth.json, 2 of 3"
    assert "processor" in accuracy["environment"]


def test_how_sure_a_figure_is(place, cli):
    _jittered_data(place, "tiny.onnx", 9)
    tiny_models.ultralytics_onnx(place / "other.onnx", seed=1)
    words = ["evaluate", "tiny.onnx", "other.onnx", "--data", "truth.json", "--threads", 1]
    words += ["--runtime", "onnxruntime", "--resamples", 150]
    ran = cli(*words)
    assert "150 draws of the pictures; change: against tiny.onnx" in ran.out
    first, second = json.loads(cli(*words, "--json").out)
    assert first["interval"][0] < first["map50_95"] < first["interval"][1]
    assert first["change"] is None and second["change"]["baseline"] == "tiny.onnx"
    difference = second["map50_95"] - first["map50_95"]
    assert second["change"]["difference"] == pytest.approx(difference)
    assert second["change"]["low"] < difference < second["change"]["high"] < 0
    low, high = (f"{second['change'][end]:+.3f}" for end in ("low", "high"))
    assert f"{difference:+.4f} [{low}, {high}] *" in ran.out
    [plain, other] = json.loads(cli(*words, "--json", "--resamples", 0).out)
    assert plain["interval"] is other["change"] is None
    assert "draws" not in cli(*words, "--resamples", 0).out


def test_too_few_pictures_have_no_interval(words, cli):
    ran = cli(*words, "--runtime", "onnxruntime")
    assert "no 95 % intervals: under 5 pictures show objects" in ran.out


def test_files_of_one_name_are_told_apart(words, cli, place, tiny_bytes):
    (place / "b").mkdir()
    (place / "b" / "tiny.onnx").write_bytes(tiny_bytes)
    ran = cli(*words, "b/tiny.onnx", "--json", "--runtime", "onnxruntime")
    assert [a["candidate"] for a in json.loads(ran.out)] == ["tiny.onnx", "b/tiny.onnx"]
    assert "is named twice" in cli(*words, "tiny.onnx").error


def test_problems_are_printed_and_unreadable_pictures_end_with_1(words, cli, place):
    (place / "q1.png").write_bytes(b"no picture")
    data = json.loads((place / "truth.json").read_text())
    data["annotations"].append({"image_id": 77, "category_id": 0, "bbox": [1, 1, 2, 2]})
    (place / "truth.json").write_text(json.dumps(data))
    ran = cli(*words, "--runtime", "onnxruntime")
    assert ran.code == 1
    assert "1 labels without a picture, left out (first: truth.json: annotation" in ran.err
    assert "q1.png: it is not a picture" in ran.err
    assert "truth.json: 2 pictures" in ran.out


WRONG = {
    "no data": (["--data", "none"], "--data none: there is no such file or folder"),
    "split": (["--split", "val"], "--split val: it belongs to a YAML file or a folder"),
    "threshold": (["--score-threshold", "2"], "score threshold 2.0: it is not between"),
    "batch": (["--batch", "0"], "--batch"),
    "runtime": (["--runtime", "onyx"], "--runtime onyx"),
    "pages": (["--data", "sample", "--pages", "0"], "--pages 0: it is not a positive number"),
    "sample": (["--data", "sample"], "sample: none of its classes (text_block)"),
    "folder": (["--save-json", "pics"], "pics: it is a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_one_line(words, cli, case):
    options, text = WRONG[case]
    ran = cli(*words, *options)
    assert ran.code == 2 and text in ran.error


def test_no_such_file(words, cli):
    assert "there is no such file" in cli("evaluate", "no.onnx", *words[2:]).error


def test_the_sample_by_the_command(cli):
    from boxwright.sample import onnx_file

    ran = cli("evaluate", onnx_file(), "--data", "sample", "--pages", 3, "--threads", 1, "--json")
    assert ran.code == 0, ran.err
    [accuracy] = json.loads(ran.out)
    assert accuracy["map50"] > 0.9 and list(accuracy["per_class"]) == ["text_block"]


# Real models: what Ultralytics 8.4.190 itself detects at a square input, scored by the same rules
# (docs/accuracy.md).

ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
).absolute()
ULTRALYTICS = {
    "yolov8n-deq": 0.4505,
    "yolo11n-deq": 0.5083,
    "yolo26n-deq": 0.4758,
    "yolov10n-deq": 0.4542,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=() if m == "yolo11n-deq" else pytest.mark.long) for m in ULTRALYTICS],
)
def test_agreement_with_ultralytics(tmp_path, monkeypatch, cli, model):
    checkpoint = ASSETS / "checkpoints" / f"{model}.pt"
    if not checkpoint.is_file():
        pytest.skip(f"no {checkpoint} (set BOXWRIGHT_ASSETS)")
    pytest.importorskip("ultralytics", reason="needs the export extra")
    monkeypatch.chdir(tmp_path)
    assert cli("export", checkpoint).code == 0
    file = tmp_path / "runs" / model / f"{model}.fp32.onnx"
    data = ASSETS / "images" / "coco128" / "annotations" / "instances_coco128_91ids.json"
    ran = cli("evaluate", file, "--data", data, "--runtime", "onnxruntime", "--json")
    assert ran.code == 0, ran.err
    [accuracy] = json.loads(ran.out)
    assert accuracy["map50_95"] == pytest.approx(ULTRALYTICS[model], abs=0.003)
