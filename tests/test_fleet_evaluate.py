"""mAP from parts is that of the whole, to the last bit, and parts are kept."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_models

from boxwright.fleet.coco_parts import Part, _groups, part_from_pictures, table_from_parts
from boxwright.scoring import Labelled, average_precision, precisions_from_table
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
    pieces = [pictures[a:b] for a, b in pairwise(cuts)]
    parts = [part_from_pictures(p, classes, limit) for p in pieces]
    parts = [Part.from_arrays(p.arrays()) for p in parts]
    whole = average_precision(pictures, classes, limit)
    merged = precisions_from_table(table_from_parts(parts, classes))
    for name in ("by_class", "by_class_50", "mean", "mean_50", "mean_75", "by_area", "curves"):
        a, b = np.asarray(getattr(whole, name)), np.asarray(getattr(merged, name))
        np.testing.assert_array_equal(a, b, err_msg=name)


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
