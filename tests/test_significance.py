"""How sure an mAP is: the bootstrap is of COCO's very figure, and its intervals hold."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from simulated import detected, scenes

from boxwright import matches_file
from boxwright.errors import SourceError
from boxwright.matches_file import read_matches, write_matches
from boxwright.scoring import Labelled, average_precision
from boxwright.significance import (
    LEAST_PICTURES,
    RESAMPLES,
    Matches,
    arrays_from_matches,
    change,
    default_resamples,
    interval,
    map_of,
    matches_from_arrays,
    matches_from_pictures,
)


def some(seed: int, count: int = 30, classes: int = 3, **options: object) -> list[Labelled]:
    rng = np.random.default_rng(seed)
    truth = scenes(rng, count, classes, crowd=options.pop("crowd", 0.0), fewest=0)  # type: ignore[arg-type]
    return detected(truth, rng, classes, **options)  # type: ignore[arg-type]


def matched(pictures: list[Labelled], classes: int = 3, limit: int = 300) -> Matches:
    return matches_from_pictures(pictures, classes, limit, "f" * 64)


# name: (options of the pictures, classes, most detections of a class in a picture)
FIGURES = {
    "one class": ({}, 1, 300),
    "several classes": ({}, 5, 300),
    "more classes than objects": ({"count": 4}, 40, 300),
    "crowds": ({"crowd": 0.3, "copies": 3}, 3, 300),
    "only crowds": ({"crowd": 1.0}, 2, 300),
    "found several times": ({"copies": 4, "noise_px": 15.0}, 3, 300),
    "the cut": ({"copies": 4, "wrong": 30}, 2, 5),
    "cut to one": ({"copies": 4}, 2, 1),
    "equal scores": ({"copies": 3, "levels": 4, "crowd": 0.2}, 2, 300),
    "all scores equal": ({"copies": 2, "levels": 1}, 2, 7),
    "exact boxes": ({"noise_px": 0.0, "copies": 2}, 3, 300),
    "inside out": ({"noise_px": 40.0, "copies": 2}, 2, 300),
    "mostly wrong": ({"noise_px": 60.0, "wrong": 40}, 3, 300),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_figure_is_cocos(name):
    options, classes, limit = FIGURES[name]
    for seed in range(4):
        pictures = some(seed, classes=classes, **options)
        expected = average_precision(pictures, classes, limit).mean
        assert map_of(matched(pictures, classes, limit)) == pytest.approx(
            expected, abs=1e-12, nan_ok=True
        )


def test_a_picture_that_is_drawn_twice_counts_twice():
    pictures = some(1, copies=2, crowd=0.1)
    matches = matched(pictures)
    rng = np.random.default_rng(0)
    for _ in range(5):
        drawn = np.sort(rng.integers(0, len(pictures), len(pictures)))
        weights = np.bincount(drawn, minlength=len(pictures))
        expected = average_precision([pictures[i] for i in drawn], 3, 300).mean
        assert map_of(matches, weights) == pytest.approx(expected, abs=1e-12)
    nothing = np.zeros(len(pictures), int)
    assert np.isnan(map_of(matches, nothing))
    with pytest.raises(ValueError, match="weights for 30 pictures"):
        map_of(matches, nothing[1:])


def test_classes_without_objects_drop_out_of_a_draw():
    pictures = some(2, count=12, classes=8)
    shown = [set(p.class_ids.tolist()) for p in pictures]
    weights = [int(0 not in s) for s in shown]
    kept = [p for p, w in zip(pictures, weights, strict=True) if w]
    assert 0 < len(kept) < len(pictures)
    expected = average_precision(kept, 8, 300).mean
    assert map_of(matched(pictures, 8), weights) == pytest.approx(expected, abs=1e-12)


def test_what_no_figure_depends_on_is_left_out():
    pictures = some(3, count=40, wrong=40)
    found = sum(len(p.found_scores) for p in pictures)
    matches = matched(pictures)
    assert len(matches.picture) < 0.9 * found
    last = np.flatnonzero(np.diff(matches.class_id, append=99))
    assert (matches.right[last] > 0).all()


# Intervals


def test_intervals_are_seeded_and_hold_the_figure():
    matches = matched(some(4, count=60))
    low, high = interval(matches, 0, 400)
    assert low < map_of(matches) < high
    assert interval(matches, 0, 400) == (low, high) != interval(matches, 1, 400)


def test_more_pictures_are_surer():
    small, large = (interval(matched(some(5, count=n)), 0, 300) for n in (30, 300))
    assert large[1] - large[0] < 0.6 * (small[1] - small[0])


def test_few_pictures_have_no_interval():
    few = matched(some(6, count=LEAST_PICTURES - 1))
    assert interval(few) is None
    alone = change(few, few, "x")
    assert (alone.difference, alone.low, alone.high) == (0.0, None, None)
    assert alone.within_noise


def test_the_same_file_has_not_changed():
    matches = matched(some(7, count=40))
    same = change(matches, matches, "base")
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    assert same.within_noise and same.baseline == "base"


def test_pairing_sees_what_separate_intervals_cannot():
    rng = np.random.default_rng(8)
    truth = scenes(rng, 150)
    pictures = detected(truth, rng)
    worse = [
        dataclasses.replace(p, found_xyxy=p.found_xyxy + np.float32(2), found_scores=p.found_scores)
        for p in pictures
    ]
    better, damaged = matched(pictures, 1), matched(worse, 1)
    first, second = interval(better, 0, 300), interval(damaged, 0, 300)
    assert first[0] < second[1], "the intervals overlap"
    found = change(damaged, better, "better", 0, 300)
    assert found.low < found.difference < found.high < 0 and not found.within_noise
    assert found.difference == pytest.approx(map_of(damaged) - map_of(better))
    back = change(better, damaged, "worse", 0, 300)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


# name: what makes the other side of other pictures, and the words
OTHERS = {
    "data set": (lambda m: dataclasses.replace(m, fingerprint="g"), "different data sets"),
    "number": (lambda m: dataclasses.replace(m, pictures=m.pictures + 1), "30 pictures, the other"),
    "objects": (
        lambda m: dataclasses.replace(m, object_count=m.object_count + np.int32(1)),
        "different objects",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_pictures_are_refused(name):
    make, text = OTHERS[name]
    matches = matched(some(9))
    with pytest.raises(ValueError, match=text):
        change(matches, make(matches), "x")


def test_no_objects_have_no_change():
    empty = matched(some(9, crowd=1.0))
    assert interval(empty) is None
    with pytest.raises(ValueError, match="no objects"):
        change(empty, empty, "x")


def test_equal_detectors_are_rarely_told_apart_and_the_interval_covers():
    """Two detectors of one skill differ by chance: 95 % of the intervals should hold 0.

    And that of one figure should hold what such data sets give on average.
    """
    rng = np.random.default_rng(11)
    trials, holds_zero, figures, ends = 60, 0, [], []
    for _ in range(trials):
        truth = scenes(rng, 40)
        one, other = (matched(detected(truth, rng), 1) for _ in range(2))
        holds_zero += change(one, other, "other", 0, 200).within_noise
        figures.append(map_of(one))
        ends.append(interval(one, 0, 200))
    mean = np.mean(figures)
    assert 0.85 * trials <= holds_zero < trials, "an interval that always holds 0 tells nothing"
    assert 0.8 * trials <= sum(low <= mean <= high for low, high in ends)


def test_large_data_take_fewer_draws():
    small = matched(some(12))
    assert default_resamples(small) == RESAMPLES
    many = 2_000_000
    large = dataclasses.replace(
        small, picture=np.zeros(many, np.int32), right=np.ones(many, np.uint16)
    )
    assert default_resamples(large) == default_resamples(small, large) == 100


# The sidecar


def same(first: Matches, second: Matches) -> bool:
    a, b = arrays_from_matches(first), arrays_from_matches(second)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_arrays_and_back():
    matches = matched(some(13, crowd=0.2, copies=2))
    again = matches_from_arrays(arrays_from_matches(matches))
    assert same(again, matches) and map_of(again) == map_of(matches)


def test_a_sidecar_and_back(tmp_path):
    path = tmp_path / "matches.npz"
    files = {
        ("source", "pytorch"): matched(some(14)),
        ("a b.int8.onnx", "openvino"): matched(some(15, crowd=0.2)),
        ("nothing", "x"): matched(some(16, crowd=1.0)),
    }
    write_matches(path, files)
    again = read_matches(path)
    assert list(again) == list(files)
    assert all(same(again[k], files[k]) for k in files)
    assert [p.name for p in tmp_path.iterdir()] == ["matches.npz"]
    write_matches(path, {})
    assert read_matches(path) == {}


# name: what is done to the arrays, and the words
SPOILT = {
    "missing": (lambda a: a.pop("right"), "right is missing"),
    "dtype": (lambda a: a.update(score=a["score"].astype(np.float64)), "score is float64"),
    "shape": (lambda a: a.update(picture=a["picture"][:, None]), "picture is int32"),
    "length": (lambda a: a.update(right=a["right"][1:]), "differ in length"),
    "picture": (lambda a: a.update(picture=a["picture"] + np.int32(1)), "picture is out of range"),
    "negative": (lambda a: a.update(picture=a["picture"] - np.int32(1)), "picture is out of range"),
    "class": (lambda a: a.update(class_id=a["class_id"] + np.int32(9)), "class is out of range"),
    "objects": (lambda a: a.update(object_count=a["object_count"] * 0), "objects are not in order"),
    "order": (lambda a: a.update(score=a["score"][::-1].copy()), "detections are not in order"),
    "nan": (lambda a: a.update(score=a["score"] * np.float32(np.nan)), "detections are not in"),
    "bits": (lambda a: a.update(right=a["right"] + np.uint16(1 << 12)), "right and in a crowd"),
    "both": (lambda a: a.update(ignored=a["right"]), "right and in a crowd"),
    "sizes": (lambda a: a.update(sizes=np.zeros(3, np.int64)), "sizes is int64"),
    "fingerprint": (lambda a: a.update(fingerprint=np.array(3)), "fingerprint is int64"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_arrays_that_do_not_fit_are_refused(name):
    spoil, text = SPOILT[name]
    arrays = arrays_from_matches(matched(some(17, count=30)))
    spoil(arrays)
    with pytest.raises(ValueError, match=text):
        matches_from_arrays(arrays)


def _npz(path, **arrays):
    np.savez(path, **arrays)


def _bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("names.npy", bytes(1 << 24))


def _broken_header(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("names.npy", b"\x93NUMPY\x01\x00\x03\x00{((")


def _lying_header(path):
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("names.npy", stream.getvalue())


class Payload:
    """Would leave a file behind if it were unpickled."""

    def __reduce__(self):
        return (open, ("unpickled", "w"))


# name: what lies there in place of a sidecar
HOSTILE = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("no archive"),
    "npy": lambda p: p.write_bytes(b"\x93NUMPY\x01\x00"),
    "pickle": lambda p: _npz(p, names=np.array([Payload()], dtype=object)),
    "others": lambda p: _npz(p, a=np.zeros(3)),
    "names of numbers": lambda p: _npz(p, names=np.zeros((1, 2))),
    "names alone": lambda p: _npz(p, names=np.array([["a", "b"]])),
    "member": lambda p: zipfile.ZipFile(p, "w").writestr("names.txt", "x"),
    "header": _broken_header,
    "bomb": _bomb,
    "lying header": _lying_header,
    "folder": lambda p: p.mkdir(),
    "missing": lambda p: None,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_sidecar_is_one_error(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matches_file, "_MAX_BYTES", 1 << 20)
    path = tmp_path / "matches.npz"
    HOSTILE[name](path)
    with pytest.raises(SourceError, match="it holds no matches of ours"):
        read_matches(path)
    assert not (tmp_path / "unpickled").exists()


def test_a_damaged_sidecar_never_passes_another_error(tmp_path):
    path = tmp_path / "matches.npz"
    files = {("a", "b"): matched(some(18, count=8))}
    write_matches(path, files)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        if rng.random() < 0.2:
            data = data[: int(rng.integers(0, len(data)))]
        else:
            for place in rng.integers(0, len(data), 3):
                data[place] = int(rng.integers(0, 256))
        path.write_bytes(data)
        try:
            read_matches(path)
        except SourceError:
            refused += 1
    assert refused > 200


# Real detections

ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
).absolute()


@pytest.mark.slow
def test_the_figure_is_cocos_on_real_pictures(tmp_path):
    """80 classes, most of them with few objects, and every seventh object a crowd region."""
    from boxwright.datasets import open_dataset
    from boxwright.evaluate import evaluate
    from boxwright.loading import load

    file = ASSETS / "onnx" / "yolox_nano_416_static.onnx"
    if not file.is_file():
        pytest.skip(f"no {file} (set BOXWRIGHT_ASSETS)")
    coco128 = ASSETS / "images" / "coco128"
    truth = json.loads((coco128 / "annotations" / "instances_coco128_91ids.json").read_text())
    for one in truth["annotations"][::7]:
        one["iscrowd"] = 1
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with load(file, "onnxruntime", threads=1, labels="coco", quiet=True) as detector:
        dataset = open_dataset(
            str(tmp_path / "truth.json"),
            class_names=detector.spec.class_names,
            images=coco128 / "images" / "train2017",
        )
        matches: dict[str, Matches] = {}
        accuracy = evaluate({"f": detector}, dataset, matches=matches, resamples=300)["f"]
    assert map_of(matches["f"]) == pytest.approx(accuracy.map50_95, abs=1e-12)
    assert accuracy.interval[0] < accuracy.map50_95 < accuracy.interval[1]
    assert matches["f"].ignored.any(), "there are crowd regions"
