"""mAP from parts is that of the whole, to the last bit, and parts are kept."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import task_pictures
import tiny_models

from boxwright.fleet.coco_parts import Part, _groups, part_from_pictures, table_from_parts
from boxwright.loading import load
from boxwright.overlaps import Labelled, Overlap
from boxwright.rle import rle_from_mask
from boxwright.rotated import corners_from_rotated
from boxwright.scoring import average_precision, precisions_from_table
from boxwright.store import locked


def labelled(rng: np.random.Generator, classes: int, coarse: bool) -> Labelled:
    """Return a random picture: crowds, boxes without area, equal scores, overlaps of all kinds."""
    objects, found = int(rng.integers(0, 12)), int(rng.integers(0, 40))

    def boxes(count: int) -> np.ndarray:
        corner = rng.uniform(0, 300, (count, 2))
        return np.concatenate([corner, corner + np.exp(rng.uniform(1, 5.5, (count, 2)))], 1).astype(
            np.float32
        )

    truth, seen = boxes(objects), boxes(found)
    for i in range(found if objects else 0):
        if rng.random() < 0.7:
            near = rng.normal(0, rng.choice([0, 1, 5]), 4)
            seen[i] = truth[rng.integers(objects)] + near.astype(np.float32)
    seen[:, 2:] = np.maximum(seen[:, 2:], seen[:, :2] - np.float32(rng.choice([0, 3])))
    scores = rng.random(found).astype(np.float32)
    if coarse:
        scores = np.round(scores * 20).astype(np.float32) / np.float32(20)
    order = np.argsort(-scores, kind="stable")
    sides = (truth[:, 2:] - truth[:, :2]).astype(np.float64)
    return Labelled(
        truth,
        rng.integers(0, classes, objects),
        rng.random(objects) < 0.15,
        sides.prod(1) * rng.uniform(0.5, 1, objects),
        seen[order],
        scores[order],
        rng.integers(0, classes, found)[order],
    )


@pytest.mark.parametrize("seed", range(24))
def test_parts_give_the_very_figures_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    classes, count = int(rng.integers(1, 8)), int(rng.integers(1, 60))
    limit = int(rng.choice([1, 3, 100, 300]))
    pictures = [labelled(rng, classes, seed % 2 == 0) for _ in range(count)]
    cuts = [0, *sorted(rng.integers(0, count + 1, 3)), count]
    check_equal(pictures, cuts, classes, limit, "box")


def check_equal(
    pictures: list[Labelled], cuts: list[int], classes: int, limit: int, by: Overlap
) -> None:
    """Parts between the cuts give what the whole gives, to the last bit."""
    pieces = [pictures[a:b] for a, b in pairwise(cuts)]
    parts = [part_from_pictures(p, classes, limit, by) for p in pieces]
    parts = [Part.from_arrays(p.arrays()) for p in parts]
    whole = average_precision(pictures, classes, limit, by)
    merged = precisions_from_table(table_from_parts(parts, classes))
    for name in ("by_class", "by_class_50", "mean", "mean_50", "mean_75", "by_area", "curves"):
        a, b = np.asarray(getattr(whole, name)), np.asarray(getattr(merged, name))
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("by", ["box", "mask", "keypoints", "rotated", "exact"])
def test_parts_of_every_task_give_the_very_figures_of_the_whole(by, seed):
    rng = np.random.default_rng(seed)
    pictures = task_pictures.pictures(40, seed, noise=float(rng.choice([0.3, 1, 2])))
    for picture in pictures:  # of all three sizes of COCO
        picture.shape_areas[:] *= rng.choice([1, 10, 60], len(picture.shape_areas))
    cuts = [0, *sorted(rng.integers(0, 41, 3)), 40]
    assert 0 < average_precision(pictures, 2, 100, by).mean < 1
    check_equal(pictures, cuts, 2, int(rng.choice([1, 2, 100])), by)


def test_classes_are_taken_in_groups_that_fit(monkeypatch):
    monkeypatch.setattr("boxwright.fleet.coco_parts._GROUP_ROWS", 10)
    assert list(_groups(np.array([4, 5, 3, 30, 0, 1]))) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    rng = np.random.default_rng(1)
    pictures = [labelled(rng, 5, True) for _ in range(20)]
    parts = [part_from_pictures(pictures, 5, 100)]
    whole = average_precision(pictures, 5, 100)
    assert precisions_from_table(table_from_parts(parts, 5)).mean == whole.mean


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_models.ultralytics_onnx(tmp_path_factory.mktemp("model") / "tiny.onnx", offset=-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set of 23 pictures, one of them damaged."""
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (place / folder).mkdir()
    for index in range(23):
        cv2.imwrite(str(place / f"images/{index:02}.png"), tiny_models.picture(60, 80, index))
        rows = np.column_stack([rng.integers(0, 3, 6), rng.uniform(0.3, 0.6, (6, 4))])
        lines = [f"{int(r[0])} " + " ".join(f"{v:.4f}" for v in r[1:]) for r in rows]
        (place / f"labels/{index:02}.txt").write_text("\n".join(lines))
    path = place / "images/07.png"
    path.write_bytes(path.read_bytes()[:90])
    return place


def test_the_command_gives_the_figures_of_evaluate(model, data, tmp_path, cli):
    same = (model, "--family", "ultralytics", "--data", data, "--runtime", "onnxruntime", "--json")
    single = cli("evaluate", *same, "--resamples", 0, "--threads", 1)
    (known,) = json.loads(single.out)
    out = tmp_path / "out"
    line = ("fleet", "evaluate", *same, "--out", out, "--part-size", 5, "--workers", 2)
    ran = cli(*line)
    assert ran.code == single.code == 1  # one picture cannot be read
    found = json.loads(ran.out)
    assert found["map50_95"] is not None and 0 < found["map50_95"] < 1
    different = {k: (v, known[k]) for k, v in found.items() if v != known[k]}
    assert not different
    assert found["pictures"] == 22 and sum(found["problems"].values()) == 1
    parts = sorted((out / "parts").iterdir())
    assert len(parts) == 5
    kept = {p.name: p.stat().st_ino for p in parts}
    parts[2].unlink()
    again = json.loads(cli(*line).out)
    assert again == found
    now = {p.name: p.stat().st_ino for p in (out / "parts").iterdir()}
    assert {n: i for n, i in now.items() if n != parts[2].name} == {
        n: i for n, i in kept.items() if n != parts[2].name
    }
    for more, text in ((("--max-detections", 10), "max_detections: 300 -> 10"),
                       (("--batch", 2), "batch: 1 -> 2"),
                       (("--max-images", 9), "fingerprint")):  # fmt: skip
        ran = cli(*line, *more)
        assert ran.code == 2 and text in ran.error, text
    with locked(out / "evaluation.json", "wait"):
        ran = cli(*line)
    assert ran.code == 2 and "another process" in ran.error
    parts[0].write_bytes(b"PK no")
    ran = cli(*line)
    assert ran.code == 2 and "it is no part of ours" in ran.error


def test_what_cannot_be_measured_is_refused(model, data, tmp_path, cli):
    base = ("fleet", "evaluate", model, "--data", data, "--runtime", "onnxruntime")
    base = (*base, "--out", tmp_path / "out", "--workers", 1)
    ran = cli(*base, "--family", "ultralytics", "--num-gpus", 1)
    assert ran.code == 2 and "engine ray" in ran.error
    ran = cli(*base, "--family", "ultralytics", "--score-threshold", 2)
    assert ran.code == 2 and "score threshold 2" in ran.error


def scene(seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(blocks, (150, 97), interpolation=cv2.INTER_CUBIC)


def write_truth(place: Path, task: str, file: Path) -> Path:
    """Write pictures, and labels that are what the file finds, off by a little."""
    rng = np.random.default_rng(5)
    images, annotations = [], []
    with load(file, threads=1) as detector:
        names = detector.spec.class_names
        for folder in ("images", "labels"):
            (place / folder).mkdir(parents=True)
        for index in range(11):
            image, name = scene(index), f"{index:02}.png"
            found = detector(image)
            if task == "classify":
                best = int(found.class_ids[rng.choice([0, 0, 1, 3])])
                folder = place / "val" / names[best]
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / name), image)
                continue
            cv2.imwrite(str(place / "images" / name), image)
            images.append({"id": index, "file_name": name, "height": 97, "width": 150})
            lines = []
            for i in range(0, min(len(found), 16), 2):
                x1, y1, x2, y2 = (found.xyxy[i] + rng.normal(0, 1.5, 4)).tolist()
                entry = {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": int(found.class_ids[i]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": int(rng.random() < 0.1),
                }
                if task == "segment":
                    moved = np.roll(found.masks[i], int(rng.integers(0, 4)), axis=1)
                    entry["segmentation"] = rle_from_mask(moved)
                    entry["area"] = float(moved.sum())
                elif task == "pose":
                    points = found.keypoints[i] + rng.normal(0, 2, found.keypoints[i].shape)
                    points[:, 2] = rng.integers(0, 3, len(points))
                    entry["keypoints"] = points.ravel().tolist()
                    entry["area"] = (x2 - x1) * (y2 - y1) / 2
                else:
                    turned = found.rotated[i : i + 1] + rng.normal(0, 0.5, (1, 5)) * [1, 1, 1, 1, 0]
                    corners = corners_from_rotated(turned.astype(np.float32))[0] / [150, 97]
                    text = " ".join(f"{v:.6f}" for v in corners.ravel())
                    lines.append(f"{entry['category_id']} {text}")
                annotations.append(entry)
            (place / "labels" / f"{index:02}.txt").write_text("\n".join(lines))
    if task in ("classify", "obb"):
        return place
    categories = [{"id": i, "name": n} for i, n in enumerate(names)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (place / "truth.json").write_text(json.dumps(truth))
    return place / "truth.json"


FIGURES = {
    "segment": ("mask mAP50-95", "box mAP50-95"),
    "pose": ("OKS mAP50-95", "box mAP50-95"),
    "obb": ("rotated mAP50-95", "exact rotated mAP50-95"),
    "classify": ("top-1", "top-5"),
}


@pytest.mark.parametrize("task", FIGURES)
def test_the_command_gives_the_figures_of_evaluate_for_every_task(task, tmp_path, cli):
    pytest.importorskip("torch", reason="the export extra is not installed")
    pytest.importorskip("ultralytics", reason="the export extra is not installed")
    import task_nets

    made = tmp_path / "made"
    source = task_nets.checkpoint(tmp_path / f"{task}.pt", task)
    ran = cli("export", source, "--out", made)
    assert ran.code == 0, ran.error
    (file,) = made.rglob("*.onnx")
    data = write_truth(tmp_path / "data", task, file)
    same = [file, "--data", data, "--runtime", "onnxruntime", "--threads", 1]
    if data.suffix:
        same += ["--images", tmp_path / "data" / "images"]
    single = cli("evaluate", *same, "--resamples", 0, "--json")
    (known,) = json.loads(single.out)
    out = tmp_path / "out"
    line = ("fleet", "evaluate", *same, "--out", out, "--part-size", 4, "--workers", 1)
    ran = cli(*line, "--json")
    assert ran.code == single.code == 0
    assert json.loads(ran.out) == {k: v for k, v in known.items() if k != "change"}
    name, beside = FIGURES[task]
    figure = known["top1"] if task == "classify" else known["map50_95"]
    assert known["measure"] == name and 0 < figure < 1
    assert 0 < known["beside"][beside] <= 1
    ran = cli(*line)
    assert f"{name} " in ran.out and f"{figure:.4f}" in ran.out and f"{beside} " in ran.out
