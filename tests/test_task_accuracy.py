"""Accuracy of masks, keypoints, rotated boxes and classes: known cases, known figures."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import rotated_scenes
from onnx import TensorProto, helper, numpy_helper
from task_pictures import H, W, pictures

from boxwright import catalog
from boxwright.backends import BackendOptions, Feed
from boxwright.coco_matches import matches_from_arrays
from boxwright.datasets import Dataset, Wanted, open_dataset, wanted_of
from boxwright.detector import Detector
from boxwright.errors import RequestError, SourceError
from boxwright.evaluate import evaluate
from boxwright.graph.end2end import add_end2end
from boxwright.graph.io import bytes_from_model
from boxwright.measures import check_budget_measure, measure_for
from boxwright.overlaps import Overlap, found_masks, overlaps
from boxwright.rle import mask_from_rle, rle_from_mask
from boxwright.rotated import probiou_matrix
from boxwright.scoring import average_precision
from boxwright.significance import (
    arrays_from_matches,
    change,
    interval,
    map_of,
    matches_from_pictures,
)
from boxwright.types import (
    Accuracy,
    Detections,
    HeadLayout,
    MaskCrop,
    ModelSpec,
    NmsSettings,
    Preprocess,
    Target,
    TensorInfo,
)

ALL: tuple[Overlap, ...] = ("box", "mask", "keypoints", "rotated", "exact")


@pytest.mark.parametrize("by", ALL)
def test_what_intervals_are_made_from_gives_the_very_figure(by):
    """Our matching, for the bootstrap, equals that of faster-coco-eval to twelve digits."""
    seen = pictures()
    matches = matches_from_pictures(seen, 2, 100, "f", by, "m")
    figure = average_precision(seen, 2, 100, by).mean
    assert 0.05 < figure < 0.999
    assert map_of(matches) == pytest.approx(figure, abs=1e-12)
    again = matches_from_arrays(arrays_from_matches(matches))
    assert again.measure == "m" and map_of(again) == map_of(matches)


@pytest.mark.parametrize("by", ALL)
def test_what_is_found_exactly_has_a_figure_of_one(by):
    seen = [
        dataclasses.replace(
            p,
            crowd=np.zeros(len(p.crowd), bool),
            masks=tuple(m or rle_from_mask(np.ones((H, W), bool)) for m in p.masks),
            found_xyxy=p.xyxy,
            found_scores=np.ones(len(p.xyxy), np.float32),
            found_class_ids=p.class_ids,
            found_masks=tuple(m or rle_from_mask(np.ones((H, W), bool)) for m in p.masks),
            found_keypoints=p.keypoints,
            found_rotated=p.rotated,
        )
        for p in pictures()
    ]
    assert average_precision(seen, 2, 100, by).mean == pytest.approx(1, abs=1e-12)


def test_figures_of_other_things_are_not_compared():
    seen = pictures()
    one = matches_from_pictures(seen, 2, 100, "f", "mask", "mask mAP50-95")
    other = matches_from_pictures(seen, 2, 100, "f", "box", "mAP50-95")
    with pytest.raises(ValueError, match="one is mask mAP50-95, the other mAP50-95"):
        change(one, other, "other")


def test_overlaps_equal_ultralytics():
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("ultralytics.utils.metrics")
    for picture in pictures(6, seed=3):
        d, g = np.arange(len(picture.found_scores)), np.arange(len(picture.class_ids))
        plain = dataclasses.replace(picture, crowd=np.zeros(len(g), bool))
        area = torch.from_numpy(plain.shape_areas).float()
        theirs = metrics.kpt_iou(
            torch.from_numpy(plain.keypoints), torch.from_numpy(plain.found_keypoints),
            sigma=metrics.OKS_SIGMA, area=area,
        )  # fmt: skip
        seen = (plain.keypoints[:, :, 2] > 0).any(1)  # of the others they make 0
        ours = overlaps(plain, d, g, "keypoints")[:, seen]
        np.testing.assert_allclose(ours, theirs.numpy().T[:, seen], atol=2e-5)
        theirs = metrics.batch_probiou(plain.rotated, plain.found_rotated)
        ours = overlaps(plain, d, g, "rotated")
        np.testing.assert_allclose(ours, theirs.numpy().T, atol=1e-5)
        labelled = np.array([m is not None for m in plain.masks])
        truth = np.stack([mask_from_rle(m) if m else np.zeros((H, W), bool) for m in plain.masks])
        found = np.stack([mask_from_rle(m) for m in plain.found_masks]) if len(d) else truth[:0]
        flat = [torch.from_numpy(m.reshape(len(m), -1).astype(np.float32)) for m in (truth, found)]
        theirs = metrics.mask_iou(*flat).numpy().T
        ours = overlaps(plain, d, g, "mask")
        np.testing.assert_allclose(ours[:, labelled], theirs[:, labelled], atol=1e-5)


def test_masks_of_detections_keep_every_pixel():
    rng = np.random.default_rng(0)
    for left, top, high, wide in ((0, 0, H, W), (3, 5, 9, 1), (10, 0, H, 7), (W - 4, H - 3, 3, 4)):
        crop = MaskCrop(left, top, rng.random((high, wide)) < 0.7)
        empty = MaskCrop(left, top, np.zeros((high, wide), bool))
        full = MaskCrop(left, top, np.ones((high, wide), bool))
        count = 3
        found = Detections(
            np.zeros((count, 4), np.float32), np.zeros(count, np.float32), np.zeros(count, int),
            image_size=(H, W), task="segment", mask_crops=(crop, empty, full),
        )  # fmt: skip
        for rle, own in zip(found_masks(found), (crop, empty, full), strict=True):
            np.testing.assert_array_equal(mask_from_rle(rle), own.within((H, W)))
            assert rle["counts"] == rle_from_mask(own.within((H, W)))["counts"]


# -- readers


def opened(place: Path, wanted: Wanted, names: tuple[str, ...] = ("a", "b"), **more) -> Dataset:
    return open_dataset(str(place), class_names=names, wanted=wanted, **more)


def yolo(folder: Path, text: str, **yaml: object) -> Path:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "images" / "p.png"), np.zeros((H, W, 3), np.uint8))
    (folder / "labels" / "p.txt").write_text(text)
    data = {"path": ".", "val": "images", "names": ["a", "b"], **yaml}
    (folder / "data.yaml").write_text(json.dumps(data))
    return folder / "data.yaml"


def truth_of(dataset: Dataset):
    return dataset.items[0].truth((H, W))


def coco(folder: Path, **annotation: object) -> Path:
    cv2.imwrite(str(folder / "p.png"), np.zeros((H, W, 3), np.uint8))
    whole = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], **annotation}
    data = {
        "images": [{"id": 1, "file_name": "p.png", "height": H, "width": W}],
        "annotations": [whole],
        "categories": [{"id": 1, "name": "a"}],
    }
    (folder / "t.json").write_text(json.dumps(data))
    return folder / "t.json"


SEGMENT, POSE = Wanted("segment"), Wanted("pose", 2)
MASK = np.zeros((H, W), bool)
MASK[10:30, 10:30] = True
RUNS = np.diff(np.flatnonzero(np.diff(np.pad(MASK.ravel(order="F"), 1).astype(np.int8)))).tolist()
PLAIN = [10 * H + 10, *RUNS, H * W - 10 * H - 10 - sum(RUNS)]


@pytest.mark.parametrize("value", [
    [[10, 10, 30, 10, 30, 30, 10, 30]],
    [[10, 10, 20, 10, 20, 30, 10, 30], [20, 10, 30, 10, 30, 30, 20, 30]],
    {"size": [H, W], "counts": PLAIN},
    rle_from_mask(MASK),
], ids=["polygon", "two polygons", "counts", "compressed"])  # fmt: skip
def test_every_form_of_mask_is_the_same_mask(tmp_path, value):
    dataset = opened(coco(tmp_path, segmentation=value), SEGMENT)
    truth = truth_of(dataset)
    np.testing.assert_array_equal(mask_from_rle(truth.masks[0]), MASK)
    assert dict(dataset.problems) == {} and truth.shape_areas.tolist() == [400]


@pytest.mark.parametrize(("wanted", "key", "value", "said"), [
    (SEGMENT, "segmentation", [[1, 2, 3]], "a polygon is no list of three and more points"),
    (SEGMENT, "segmentation", [[1, 2, 3, 4, 5, "x"]], "a polygon is no list"),
    (SEGMENT, "segmentation", {"size": [9, 9], "counts": "11"}, "RLE of size [9, 9], and the"),
    (SEGMENT, "segmentation", {"size": [H, W], "counts": "11"}, "the runs hold"),
    (SEGMENT, "segmentation", {"size": [H, W], "counts": ["a"]}, "counts are no numbers"),
    (SEGMENT, "segmentation", "7", "neither polygons nor RLE"),
    (POSE, "keypoints", [1, 2, 2], "keypoints are 3 numbers, not 2 times x, y, visibility"),
    (POSE, "keypoints", [1, 2, 2, 3, 4, None], "keypoints are 6 numbers"),
])  # fmt: skip
def test_malformed_shapes_are_named_with_their_place(tmp_path, wanted, key, value, said):
    dataset = opened(coco(tmp_path, **{key: value}), wanted)
    assert dict(dataset.problems)["labels that cannot be read, left out"] == 1
    place = dataset.first["labels that cannot be read, left out"]
    assert "t.json: annotation 0, " in place and said in place


def test_yolo_polygons_are_masks_and_boxes_alone_are_counted(tmp_path):
    square = "0 0.125 0.1666667 0.375 0.1666667 0.375 0.5 0.125 0.5"
    path = yolo(tmp_path, f"{square}\n1 0.5 0.5 0.2 0.2\n")
    dataset = opened(path, SEGMENT)
    truth = truth_of(dataset)
    np.testing.assert_array_equal(mask_from_rle(truth.masks[0]), MASK)
    assert truth.masks[1] is None and dataset.has_shapes
    assert [w for w in dataset.problems if "objects without a mask" in w]
    alone = opened(path, Wanted())
    assert alone.fingerprint != dataset.fingerprint and not alone.has_shapes


@pytest.mark.parametrize(("rest", "given", "expected"), [
    ("0.25 0.5 0.75 0.5", None, [[20, 30, 2], [60, 30, 2]]),
    ("0.25 0.5 0.75 0.5", [2, 2], [[20, 30, 2], [60, 30, 2]]),
    ("0.25 0.5 2 0 0 0", None, [[20, 30, 2], [0, 0, 0]]),
    ("0.25 0.5 1 0.75 0.5 2", [2, 3], [[20, 30, 1], [60, 30, 2]]),
    ("0.25 0.5 1 0.75 0.5 2", [2, 2], None),
    ("0.25 0.5 1 0.75 0.5", None, None),
    ("0.25", None, None),
])  # fmt: skip
def test_yolo_poses_have_two_or_three_numbers_a_point(tmp_path, rest, given, expected):
    more = {} if given is None else {"kpt_shape": given}
    dataset = opened(yolo(tmp_path, f"0 0.5 0.5 0.6 0.4 {rest}\n", **more), POSE)
    if expected is None:
        assert dataset.first["labels that cannot be read, left out"].endswith("p.txt:1")
        return
    truth = truth_of(dataset)
    np.testing.assert_allclose(truth.keypoints[0], expected, atol=1e-4)
    assert truth.shape_areas[0] == pytest.approx(0.53 * 48 * 24, rel=1e-4)


def test_keypoints_of_another_model_are_refused(tmp_path):
    path = yolo(tmp_path, "0 0.5 0.5 0.6 0.4\n", kpt_shape=[5, 3])
    with pytest.raises(SourceError, match="says 5 keypoints, and the model has 2"):
        opened(path, POSE)
    path = yolo(tmp_path, "0 0.5 0.5 0.6 0.4\n", kpt_shape=[2, 4])
    with pytest.raises(SourceError, match=r"kpt_shape is \[2, 4\]"):
        opened(path, POSE)


def test_labels_of_rotated_boxes(tmp_path):
    boxes, ids = rotated_scenes.known_boxes(1)
    folder = rotated_scenes.write_scene(tmp_path / "s", "p", boxes, ids)
    dataset = open_dataset(str(folder), class_names=("x", "y", "z"), wanted=Wanted("obb"))
    side = rotated_scenes.SIDE
    truth = dataset.items[0].truth((side, side))
    assert np.diag(probiou_matrix(truth.rotated, boxes)).min() > 0.999
    assert truth.class_ids.tolist() == ids.tolist() and dict(dataset.problems) == {}
    (folder / "labels" / "p.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(SourceError, match=r"not one label is a rotated box.*p\.txt:1"):
        open_dataset(str(folder), class_names=("x", "y", "z"), wanted=Wanted("obb"))


# -- detectors that find what they are told


class Scripted:
    """Says of a picture what it is told; the grey level of a picture is its number."""

    def __init__(self, said: dict[int, tuple[np.ndarray, ...]], side: int) -> None:
        self._said, self.description = said, "scripted"
        self.inputs = (TensorInfo("images", "float32", (1, 3, side, side)),)
        self.outputs = ()
        self.metadata: dict[str, str] = {}

    def infer(self, feed: Feed) -> dict[str, np.ndarray]:
        number = round(float(feed["images"][0, 0, 0, 0]) * 255)
        return {f"output{i}": a for i, a in enumerate(self._said[number])}

    def close(self) -> None:
        pass


OBB = ModelSpec(
    "turned", "ultralytics", "obb", ("x", "y", "z"), (128, 128), Preprocess(),
    HeadLayout(extras=1, rotated=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Three scenes of known rotated boxes: the data, and each scene's boxes, by number."""
    folder, known = tmp_path_factory.mktemp("scenes"), {}
    for number in (91, 92, 93):
        boxes, ids = rotated_scenes.known_boxes(number)
        rotated_scenes.write_scene(folder, str(number), boxes, ids)
        path = folder / "images" / f"{number}.png"
        image = cv2.imread(str(path))
        image[:4, :4] = number  # the boxes stay away from the corner
        cv2.imwrite(str(path), image)
        known[number] = (boxes, ids)
    return open_dataset(str(folder), class_names=OBB.class_names, wanted=wanted_of(OBB)), known


def scripted_obb(known) -> Detector:
    heads = {n: (rotated_scenes.raw_head(*v, scale=0.5),) for n, v in known.items()}
    return Detector(Scripted(heads, 128), OBB)


def check_known(found: Detections, boxes: np.ndarray, ids: np.ndarray) -> None:
    """The detections are the known boxes, all and no other, to rounding."""
    assert len(found) == len(boxes)
    shared = probiou_matrix(found.rotated, boxes)
    match = shared.argmax(axis=1)
    assert sorted(match.tolist()) == list(range(len(boxes)))
    np.testing.assert_allclose(found.rotated, boxes[match], atol=1e-3)
    np.testing.assert_array_equal(found.class_ids, ids[match])


def test_rotated_nms_leaves_exactly_the_known_boxes(scenes):
    dataset, known = scenes
    with scripted_obb(known) as detector:
        for item in dataset.items:
            check_known(detector(item.read()), *known[int(Path(item.name).stem)])


@pytest.mark.parametrize("nms", ["onnx", "portable"])
def test_end_to_end_graphs_leave_exactly_the_known_boxes(scenes, nms):
    dataset, known = scenes
    item = dataset.items[0]
    boxes, ids = known[int(Path(item.name).stem)]
    head = rotated_scenes.raw_head(boxes, ids, scale=0.5)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Add", ["head", "zero"], ["output0"]),
    ]
    values = {"head": head, "nothing": np.zeros(1, np.float32)}
    graph = helper.make_graph(
        nodes, "scene",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 128, 128])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(head.shape))],
        [numpy_helper.from_array(v, k) for k, v in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    settings, target = NmsSettings(), Target(outputs="end2end", nms=nms, batch=1)
    made = add_end2end(model, OBB, settings, target)
    backend = catalog.backend("onnxruntime").open_bytes(
        bytes_from_model(made, "scene"), BackendOptions(1, "cpu")
    )
    with Detector(backend, OBB, target, settings) as detector:
        check_known(detector(item.read()), boxes, ids)


def test_rotated_accuracy_of_known_scenes(scenes):
    dataset, known = scenes
    with scripted_obb(known) as detector:
        [whole] = evaluate({"f": detector}, dataset).values()
    assert whole.measure == "rotated mAP50-95" and whole.map50_95 == pytest.approx(1)
    assert whole.beside["exact rotated mAP50-95"] == pytest.approx(1)
    assert (whole.precision, whole.recall) == (1, 1)
    # One box of 18 is turned by a right angle: of its class five of six are found, one is wrong.
    wrong = {n: (b.copy(), i) for n, (b, i) in known.items()}
    wrong[91][0][0, 4] += math.pi / 2
    with scripted_obb(wrong) as detector:
        [turned] = evaluate({"f": detector}, dataset).values()
    assert turned.recall == pytest.approx(17 / 18)
    assert turned.map50_95 < 0.95 and turned.beside["exact rotated mAP50-95"] < 0.95
    classes = turned.per_class
    assert classes["y"].ap50 == classes["z"].ap50 == pytest.approx(1) and classes["x"].ap50 < 1


def test_one_batch_of_rotated_and_other_data_is_refused(scenes, tmp_path):
    _, known = scenes
    other = opened(coco(tmp_path), Wanted(), ("a",))
    with scripted_obb(known) as detector:
        spec = dataclasses.replace(OBB, class_names=("a",))
        named = Detector(detector.backend, spec)
        with pytest.raises(RequestError, match="task is obb, and the data was opened for detect"):
            evaluate({"f": named}, other)
    with pytest.raises(RequestError, match="it has no rotated boxes"):
        opened(tmp_path / "t.json", Wanted("obb"))
    with pytest.raises(RequestError, match="no class of a whole picture"):
        opened(tmp_path / "t.json", Wanted("classify"))


POSES = ModelSpec(
    "poses", "ultralytics", "pose", ("a",), (64, 64), Preprocess(),
    HeadLayout(extras=6, keypoint_shape=(2, 3)),
)  # fmt: skip


def test_boxes_alone_are_measured_by_name_and_keep_no_budget(tmp_path):
    alone = opened(coco(tmp_path), wanted_of(POSES), ("a",))
    assert dict(alone.problems) == {}
    measure = measure_for(POSES, alone)
    assert measure.name == "box mAP50-95" and "no keypoints" in measure.warning
    with pytest.raises(RequestError, match="no keypoints, so that a loss of these would not be"):
        check_budget_measure(POSES, alone, "--max-drop")
    whole = opened(coco(tmp_path, keypoints=[1, 2, 2, 3, 4, 1]), wanted_of(POSES), ("a",))
    assert measure_for(POSES, whole).name == "OKS mAP50-95"
    check_budget_measure(POSES, whole, "--max-drop")


CLASSES = ModelSpec(
    "classes", "ultralytics", "classify", tuple("abcdefg"), (32, 32), Preprocess(resize="crop"),
    HeadLayout(), score_threshold=0.0,
)  # fmt: skip


def class_folders(root: Path, said: dict[int, str]) -> Path:
    for number, name in said.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name / f"{number}.png"), np.full((40, 50, 3), number, np.uint8))
    return root


def ranked(*order: int) -> tuple[np.ndarray]:
    scores = np.full((1, 7), 0.01, np.float32)
    for place, class_id in enumerate(order):
        scores[0, class_id] = 0.5 - 0.08 * place
    return (scores,)


def test_top_1_and_top_5_of_class_folders(tmp_path):
    truth = {n: "abcdefg"[n % 7] for n in range(7, 15)}
    class_folders(tmp_path / "val", truth)
    said = {n: ranked(n % 7) for n in truth}
    said[8] = ranked(0, 2, 1, 3)  # third
    said[9] = ranked(0, 1, 3, 4, 5)  # sixth
    dataset = opened(tmp_path, wanted_of(CLASSES), CLASSES.class_names)
    with Detector(Scripted(said, 32), CLASSES) as detector:
        matches: dict = {}
        [found] = evaluate({"f": detector}, dataset, matches=matches).values()
    assert (found.measure, found.top1, found.map50_95) == ("top-1", 6 / 8, None)
    assert found.figure == found.top1 and dict(found.beside) == {"top-5": 7 / 8}
    assert (found.pictures, found.precision, dict(found.per_class)) == (8, None, {})
    assert map_of(matches["f"]) == 6 / 8
    low, high = interval(matches["f"], resamples=400)
    assert low < 6 / 8 < high <= 1
    again = matches_from_arrays(arrays_from_matches(matches["f"]))
    assert change(again, matches["f"], "f").difference == 0
    assert Accuracy.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_folders_of_classes(tmp_path):
    names = CLASSES.class_names
    class_folders(tmp_path / "flat", {1: "b", 2: "a", 3: "sled"})
    dataset = opened(tmp_path / "flat", Wanted("classify"), names)
    assert [i.class_ids.tolist() for i in dataset.items] == [[0], [1]]
    assert "sled" in next(iter(dataset.first.values()))
    class_folders(tmp_path / "both" / "train", {1: "a"})
    with pytest.raises(RequestError, match="train alone"):
        opened(tmp_path / "both", Wanted("classify"), names)
    class_folders(tmp_path / "both" / "test", {1: "a", 2: "b"})
    assert len(opened(tmp_path / "both", Wanted("classify"), names).items) == 2
    assert len(opened(tmp_path / "both", Wanted("classify"), names, split="train").items) == 1
    with pytest.raises(RequestError, match="holds test, train"):
        opened(tmp_path / "both", Wanted("classify"), names, split="valid")
    with pytest.raises(SourceError, match="there is no such folder"):
        opened(tmp_path / "none", Wanted("classify"), names)
    class_folders(tmp_path / "other", {1: "y", 2: "z"})
    with pytest.raises(SourceError, match="none of its classes"):
        opened(tmp_path / "other", Wanted("classify"), names)
    class_folders(tmp_path / "net", {1: "n02000000", 2: "n01000000"})
    numbered = opened(tmp_path / "net", Wanted("classify"), ("fish", "bird"))
    assert {i.name[:9]: i.class_ids[0] for i in numbered.items} == {"n01000000": 0, "n02000000": 1}
    assert any("WordNet" in what for what in numbered.problems)


def test_measures_are_those_of_the_page():
    text = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:mask|OKS|rotated) mAP50-95|top-1)`", text))
    assert named == {"mask mAP50-95", "OKS mAP50-95", "rotated mAP50-95", "top-1"}
