"""Data sets open whatever they look like, and whatever is wrong with them is counted."""

from __future__ import annotations

import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_models

from boxwright.datasets import Dataset, open_dataset
from boxwright.errors import BoxwrightError, RequestError, SourceError

NAMES = ("ant", "bee", "cat")
PICTURE = tiny_models.picture(80, 100)  # height, width


def write_picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), PICTURE)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def pair(folder: Path, stem: str, label: str | None, part: str = "") -> None:
    """Write images/PART/STEM.png and labels/PART/STEM.txt."""
    write_picture(folder / "images" / part / f"{stem}.png")
    if label is not None:
        write_text(folder / "labels" / part / f"{stem}.txt", label)


def coco(folder: Path, **changes: object) -> Path:
    """Write a COCO file with two pictures beside it; ids of 91 categories."""
    for name in ("a.png", "b.png"):
        write_picture(folder / name)
    data = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 9, "file_name": "b.png", "width": 100, "height": 80},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 20, 30, 40], "area": 900},
            {"id": 2, "image_id": 9, "category_id": 13, "bbox": [0, 0, 50, 50], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": " Bee "}, {"id": 13, "name": "CAT"}],
    } | changes
    return write_text(folder / "truth.json", json.dumps(data))


def counts(dataset: Dataset) -> dict[str, int]:
    """The problems without the words after the comma."""
    return {k.split(",")[0]: v for k, v in dataset.problems.items()}


def opened(place: Path, **options: object) -> Dataset:
    return open_dataset(str(place), class_names=NAMES, **options)


# Layouts


def test_coco_matches_categories_by_name_whatever_their_ids(tmp_path):
    dataset = opened(coco(tmp_path))
    first, second = (item.truth((80, 100)) for item in dataset.items)
    assert [i.name for i in dataset.items] == ["a.png", "b.png"]
    assert first.xyxy.tolist() == [[10, 20, 40, 60]]
    assert first.class_ids.tolist() == [1] and first.areas.tolist() == [900]
    assert second.class_ids.tolist() == [2] and second.crowd.tolist() == [True]
    assert second.areas.tolist() == [2500]
    assert (dataset.objects, dict(dataset.problems)) == (1, {})
    assert first.xyxy.dtype == np.float32 and first.class_ids.dtype == np.int64


@pytest.mark.parametrize("ids", ["80", "91"])
def test_coco_numberings_of_80_and_91_mean_the_same(tmp_path, ids):
    from boxwright.sources.sidecars import COCO_NAMES

    # Official ids of the 91: cocodataset.org; `zebra` is 22 (80: 22), `toothbrush` 90 (80: 79).
    number = {"80": {"zebra": 22, "toothbrush": 79}, "91": {"zebra": 24, "toothbrush": 90}}[ids]
    file = coco(
        tmp_path,
        categories=[{"id": v, "name": k} for k, v in number.items()],
        annotations=[
            {"id": 1, "image_id": 7, "category_id": number["zebra"], "bbox": [1, 1, 9, 9]},
            {"id": 2, "image_id": 9, "category_id": number["toothbrush"], "bbox": [1, 1, 9, 9]},
        ],
    )
    dataset = open_dataset(str(file), class_names=COCO_NAMES)
    assert [i.class_ids.tolist() for i in dataset.items] == [[22], [79]]


@pytest.mark.parametrize("where", ["images", "../images", "../truth", "../images/deep/er"])
def test_coco_pictures_are_found_near_the_file(tmp_path, where):
    file = coco(tmp_path / "annotations")
    for name in ("a.png", "b.png"):
        target = tmp_path / "annotations" / where / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "annotations" / name).rename(target)
    assert len(opened(file).items) == 2


def test_coco_pictures_are_where_the_option_says(tmp_path):
    file = coco(tmp_path / "labels")
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / "far" / name)
    assert opened(file, images=tmp_path / "far").items[0].path == tmp_path / "far" / "a.png"


YOLO_LAYOUTS = {
    "images and labels": ("images/a.png", "labels/a.txt"),
    "split folders inside": ("images/val2017/a.png", "labels/val2017/a.txt"),
    "split folders outside": ("val/images/a.png", "val/labels/a.txt"),
    "side by side": ("a.png", "a.txt"),
    "side by side, deeper": ("x/y/a.png", "x/y/a.txt"),
    "side by side below images": ("images/a.png", "images/a.txt"),
    "flat": ("a.b.png", "a.b.txt"),
}


@pytest.mark.parametrize("layout", YOLO_LAYOUTS)
def test_yolo_folders(tmp_path, layout):
    picture, label = YOLO_LAYOUTS[layout]
    write_picture(tmp_path / picture)
    write_text(tmp_path / label, "1 0.5 0.5 0.2 0.4\n\n2.0 0.1 0.1 0.2 0.2\n")
    write_text(tmp_path / "README.txt", "not a label")
    dataset = opened(tmp_path)
    truth = dataset.items[0].truth((80, 100))
    assert np.allclose(truth.xyxy, [[40, 24, 60, 56], [0, 0, 20, 16]])
    assert truth.class_ids.tolist() == [1, 2] and np.allclose(truth.areas, [640, 320])
    assert not dataset.problems


DATA_YAMLS = {
    "path and folders": "path: .\nval: images/val\ntrain: images/train\nnames: [ant, bee, cat]",
    "no path": "val: images/val\nnames: {0: ant, 1: bee, 2: cat}",
    "several": "val: [images/val, images/more]\nnames: [ant, bee, cat]",
    "a list": "val: val.txt\nnames: [ant, bee, cat]",
    "as Roboflow": "val: ../images/val\nnc: 3\nnames: [ant, bee, cat]",
    "without names": "path: ''\nval: images/val",
}


@pytest.mark.parametrize("form", DATA_YAMLS)
@pytest.mark.parametrize("by_folder", [False, True])
def test_data_yaml(tmp_path, form, by_folder):
    place = tmp_path / "ds"
    pair(place, "a", "2 0.5 0.5 0.2 0.2", "val")
    pair(place, "b", "1 0.5 0.5 0.2 0.2", "more")
    write_text(place / "val.txt", "./images/val/a.png\n\n")
    write_text(place / "data.yaml", DATA_YAMLS[form])
    dataset = opened(place if by_folder else place / "data.yaml")
    assert [Path(i.name).name for i in dataset.items] == (
        ["b.png", "a.png"] if form == "several" else ["a.png"]
    )
    assert dataset.items[-1].class_ids.tolist() == [2]
    assert dataset.name == "data.yaml:val" and not dataset.problems


def test_names_of_the_data_are_mapped_to_the_models(tmp_path):
    pair(
        tmp_path, "a", "0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.2 0.2\n2 0.1 0.1 0.1 0.1\n3 0.1 0.1 0.1 0.1"
    )
    write_text(tmp_path / "classes.txt", "Cat\nant \nyak\n")
    dataset = opened(tmp_path)
    assert dataset.items[0].class_ids.tolist() == [2, 0]
    assert counts(dataset) == {
        "objects of classes that the model does not have": 1,
        "class ids out of range": 1,
    }


@pytest.mark.parametrize("split, expected", [("val", "v"), ("train", "t"), ("valid", "v")])
@pytest.mark.parametrize("nested", [False, True])
def test_a_split_is_chosen(tmp_path, split, expected, nested):
    for part, stem in (("train", "t"), ("valid", "v")):
        if nested:
            pair(tmp_path / part, stem, "")
        else:
            pair(tmp_path, stem, "", part)
    assert [i.name for i in opened(tmp_path, split=split).items] == [f"{expected}.png"]


def test_a_list_of_pictures(tmp_path):
    pair(tmp_path, "a", "0 0.5 0.5 0.2 0.2")
    file = write_text(tmp_path / "list.txt", "images/a.png\nimages/gone.png\n")
    dataset = opened(file)
    assert counts(dataset) == {"pictures that are not there": 1} and len(dataset.items) == 1


# Problems


LINES = {
    "0 0.5 0.5 0.2 0.2": ({}, 1),
    "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2": ({"objects given twice": 1}, 1),
    "0 0.95 0.5 0.3 0.2": ({"boxes outside the picture": 1}, 1),
    "0 0.5 0.5 1.0004 1": ({}, 1),
    "0 1.5 0.5 0.2 0.2": ({"boxes without area": 1, "pictures without objects": 1}, 0),
    "0 0.5 0.5 0 0.2": ({"boxes without area": 1, "pictures without objects": 1}, 0),
    "0 0.5 0.5 -0.2 0.2": ({"boxes without area": 1, "pictures without objects": 1}, 0),
    "3 0.5 0.5 0.2 0.2": ({"class ids out of range": 1, "pictures without objects": 1}, 0),
    "-1 0.5 0.5 0.2 0.2": ({"class ids out of range": 1, "pictures without objects": 1}, 0),
    "0 0.1 0.1 0.9 0.2 0.4 0.8": ({"polygons": 1}, 1),
    "": ({"pictures without objects": 1}, 0),
    "\n \n": ({"pictures without objects": 1}, 0),
}
UNREADABLE_LINES = ("0 0.5 0.5 0.2", "0 0.5 0.5 0.2 0.2 0.9", "x 0.5 0.5 0.2 0.2", "0,1,2,3,4",
                    "0 0.5 nan 0.2 0.2", "0 320 200 50 60", "1.5 0.5 0.5 0.2 0.2", "ä")  # fmt: skip


@pytest.mark.parametrize("text", LINES)
def test_label_lines(tmp_path, text):
    pair(tmp_path, "a", text)
    expected, objects = LINES[text]
    dataset = opened(tmp_path)
    assert counts(dataset) == expected and dataset.objects == objects


@pytest.mark.parametrize("line", UNREADABLE_LINES)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line):
    pair(tmp_path, "a", f"0 0.5 0.5 0.2 0.2\n{line}\n1 0.2 0.2 0.1 0.1")
    dataset = opened(tmp_path)
    assert counts(dataset) == {"labels that cannot be read": 1} and dataset.objects == 2
    assert dataset.first["labels that cannot be read, left out"].endswith("a.txt:2")


def test_a_label_file_that_is_no_text(tmp_path):
    pair(tmp_path, "a", "")
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xfe\x00\x81")
    assert counts(opened(tmp_path))["labels that cannot be read"] == 1


def test_clipped_boxes_stay_inside(tmp_path):
    pair(tmp_path, "a", "0 0.95 0.05 0.3 0.3")
    assert np.allclose(opened(tmp_path).items[0].truth((80, 100)).xyxy, [[80, 0, 100, 16]])


def test_pictures_and_labels_that_do_not_meet(tmp_path):
    pair(tmp_path, "a", "0 0.5 0.5 0.2 0.2")
    pair(tmp_path, "b", None)
    write_text(tmp_path / "labels" / "c.txt", "0 0.5 0.5 0.2 0.2")
    write_text(tmp_path / "labels" / "classes.txt", "ant\nbee\ncat\n")
    write_text(tmp_path / "notes" / "d.txt", "0 0.5 0.5 0.2 0.2")
    dataset = opened(tmp_path)
    assert counts(dataset) == {
        "pictures without a label file": 1,
        "labels without a picture": 1,
        "pictures without objects": 1,
    }
    assert [i.name for i in dataset.items] == ["a.png", "b.png"]
    assert dataset.first["labels without a picture, left out"].endswith("c.txt")


def test_a_picture_named_twice(tmp_path):
    pair(tmp_path, "a", "0 0.5 0.5 0.2 0.2")
    (tmp_path / "images" / "again.png").symlink_to(tmp_path / "images" / "a.png")
    file = write_text(tmp_path / "list.txt", "images/a.png\nimages/../images/a.png\n")
    for place in (tmp_path, file):
        assert counts(opened(place))["pictures named twice"] == 1
        assert len(opened(place).items) == 1


BOX = [10, 10, 20, 20]
ANNOTATIONS = {
    "no list": ([{"image_id": 7, "category_id": 90, "bbox": None}], "labels that cannot be read"),
    "three": (
        [{"image_id": 7, "category_id": 90, "bbox": [1, 2, 3]}],
        "labels that cannot be read",
    ),
    "text": (
        [{"image_id": 7, "category_id": 90, "bbox": ["1", 2, 3, 4]}],
        "labels that cannot be read",
    ),
    "not finite": (
        [{"image_id": 7, "category_id": 90, "bbox": [1, 2, float("nan"), 4]}],
        "labels that cannot be read",
    ),
    "no mapping": (["x"], "labels that cannot be read"),
    "other picture": (
        [{"image_id": 8, "category_id": 90, "bbox": BOX}],
        "labels without a picture",
    ),
    "unknown id": ([{"image_id": 7, "category_id": 1, "bbox": BOX}], "class ids out of range"),
    "no class of ours": (
        [{"image_id": 7, "category_id": 5, "bbox": BOX}],
        "objects of classes that the model does not have",
    ),
    "outside": (
        [{"image_id": 7, "category_id": 90, "bbox": [90, 70, 20, 20]}],
        "boxes outside the picture",
    ),
    "flat": ([{"image_id": 7, "category_id": 90, "bbox": [9, 9, 0, 5]}], "boxes without area"),
    "twice": ([{"image_id": 7, "category_id": 90, "bbox": BOX}] * 2, "objects given twice"),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_coco_problems(tmp_path, case):
    annotations, problem = ANNOTATIONS[case]
    categories = [{"id": 90, "name": "bee"}, {"id": 5, "name": "yak"}]
    dataset = opened(coco(tmp_path, annotations=annotations, categories=categories))
    found = counts(dataset)
    assert found.pop("classes that the model does not have") == 1
    found.pop("pictures without objects")
    assert found == {problem: 1}


IMAGES = {
    "gone": (
        {"id": 9, "file_name": "gone.png", "width": 1, "height": 1},
        "pictures that are not there",
    ),
    "no name": ({"id": 9, "width": 1, "height": 1}, "pictures that are not there"),
    "same file": (
        {"id": 9, "file_name": "a.png", "width": 100, "height": 80},
        "pictures named twice",
    ),
    "same id": (
        {"id": 7, "file_name": "b.png", "width": 100, "height": 80},
        "picture ids given twice",
    ),
    "no id": ({"file_name": "b.png"}, "labels that cannot be read"),
    "damaged, no size": ({"id": 9, "file_name": "bad.png"}, "pictures that cannot be read"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_coco_pictures_with_problems(tmp_path, case):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    second, problem = IMAGES[case]
    first = {"id": 7, "file_name": "a.png", "width": 100, "height": 80}
    dataset = opened(coco(tmp_path, images=[first, second]))
    assert counts(dataset)[problem] == 1 and [i.name for i in dataset.items] == ["a.png"]


def test_a_coco_file_without_sizes_reads_them(tmp_path):
    dataset = opened(coco(tmp_path, images=[{"id": 7, "file_name": "a.png"}]))
    assert dataset.items[0].size == (80, 100)


# Fingerprint, choice, sample


def test_the_fingerprint_knows_labels_and_not_their_order(tmp_path):
    for number in range(6):
        pair(tmp_path / "a", f"p{number}", f"{number % 3} 0.5 0.5 0.{number + 1} 0.2")
    rng = random.Random(0)
    order = list(range(6))
    rng.shuffle(order)
    for number in order:
        pair(tmp_path / "b" / "deep", f"p{number}", f"{number % 3} 0.5 0.5 0.{number + 1} 0.2")
    first, second = opened(tmp_path / "a"), opened(tmp_path / "b")
    assert first.fingerprint == second.fingerprint and len(first.fingerprint) == 64
    assert first.limited(3).fingerprint != first.fingerprint
    write_text(tmp_path / "b" / "deep" / "labels" / "p3.txt", "0 0.5 0.5 0.4 0.21")
    assert opened(tmp_path / "b").fingerprint != first.fingerprint


def test_limited_takes_evenly_spaced_pictures(tmp_path):
    for number in range(9):
        pair(tmp_path, f"p{number}", "")
    assert [i.name for i in opened(tmp_path).limited(3).items] == ["p0.png", "p3.png", "p6.png"]
    assert len(opened(tmp_path).limited(20).items) == 9


def test_the_sample_is_a_data_set():
    dataset = open_dataset("sample", class_names=["text_block"], pages=2)
    assert dataset.name == "sample, seeds 20000 to 20001" and dataset.objects > 2
    image = dataset.items[0].read()
    assert dataset.items[0].size == image.shape[:2]
    from boxwright.sample import generate_page

    assert np.array_equal(image, generate_page(20_000).image)


# Refusals


def _no_labels(place: Path) -> Path:
    return write_picture(place / "images" / "a.png").parents[1]


def _two_parts(place: Path) -> Path:
    pair(place, "a", "", "train")
    pair(place, "b", "", "val")
    return place


REFUSED = {
    "no such file": (lambda p: p / "none.json", {}, "there is no such file"),
    "no such folder": (lambda p: p / "none", {}, "there is no such file or folder"),
    "another kind": (lambda p: write_text(p / "a.csv", "x"), {}, "no kind of data set"),
    "not JSON": (lambda p: write_text(p / "a.json", "{"), {}, "it is not JSON"),
    "detections": (lambda p: write_text(p / "a.json", "[]"), {}, "says no truth"),
    "no lists": (lambda p: write_text(p / "a.json", "{}"), {}, "no list of images and of"),
    "category": (lambda p: coco(p, categories=[{"id": 1}]), {}, "no id or no name"),
    "no class": (lambda p: coco(p, categories=[{"id": 1, "name": "yak"}]), {}, "--labels"),
    "no pictures": (lambda p: coco(p, images=[]), {}, "--images FOLDER"),
    "no folder": (coco, {"images": Path("nowhere")}, "no such folder"),
    "split of JSON": (coco, {"split": "val"}, "--split val: it belongs to"),
    "images of YOLO": (_two_parts, {"images": Path()}, "belongs to a COCO JSON"),
    "pages of YOLO": (_two_parts, {"pages": 3}, "--pages 3: it belongs to"),
    "empty folder": (lambda p: p, {}, "it holds no pictures"),
    "no labels": (_no_labels, {}, "not one label file"),
    "parts": (_two_parts, {}, "train, val; choose one with --split"),
    "no such part": (_two_parts, {"split": "test"}, "holds train, val"),
    "yaml without val": (
        lambda p: write_text(p / "d.yaml", "train: x\nnames: [ant]"), {}, "names train"
    ),
    "yaml to nowhere": (lambda p: write_text(p / "d.yaml", "val: x"), {}, "it names x, which"),
    "yaml broken": (lambda p: write_text(p / "d.yaml", "a: [1"), {}, "cannot be read as YAML"),
    "yaml list": (lambda p: write_text(p / "d.yaml", "- 1"), {}, "no data set's YAML"),
    "yaml count": (
        lambda p: write_text(_two_parts(p) / "d.yaml", "val: images/val\nnc: 4\nnames: [ant]"),
        {}, "nc is 4, but it names 1",
    ),
    "yaml names": (
        lambda p: write_text(_two_parts(p) / "d.yaml", "val: images/val\nnames: 3"),
        {}, "its names are no list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line(tmp_path, case):
    make, options, words = REFUSED[case]
    with pytest.raises(BoxwrightError) as refused:
        opened(make(tmp_path), **options)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert isinstance(refused.value, (RequestError, SourceError)) and refused.value.exit_code == 2
