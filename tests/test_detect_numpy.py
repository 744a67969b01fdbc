"""The NumPy-only path says what the Detector says, for every family, task and form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conformance import CASES
from official_graphs import CASES as OFFICIAL
from official_graphs import WORDS

import boxwright
from boxwright import catalog, detect_numpy
from boxwright.graph.end2end import add_end2end
from boxwright.graph.io import bytes_from_model, write_stamp
from boxwright.pictures import generated_pictures
from boxwright.preprocess import prepare
from boxwright.sources import SourceRequest
from boxwright.stamps import Stamp
from boxwright.types import NmsSettings, Preprocess, Target


def files(name, folder):
    """Write the raw file of a case and its end-to-end ones."""
    case = CASES[name]
    path = folder / "export.onnx"
    case.write(path)
    labels = tuple(WORDS) if name in OFFICIAL else None
    source = catalog.source_of(path)
    request = SourceRequest(path, "export", family=case.asked, labels=labels, simplify=False)
    raw = source.export(request)
    settings = NmsSettings(raw.spec.score_threshold, raw.spec.iou_threshold)
    portable = case.task != "detect" or name == "ultralytics v8 raw"
    for form in ("raw", "onnx", "portable") if portable else ("raw", "onnx"):
        target = Target(outputs="raw") if form == "raw" else Target(outputs="end2end", nms=form)
        nms = None if form == "raw" else settings
        made = raw.model if nms is None else add_end2end(raw.model, raw.spec, nms, target)
        write_stamp(made, Stamp(raw.spec, target, nms))
        file = folder / f"{form}.onnx"
        file.write_bytes(bytes_from_model(made, form))
        yield file


def same(found, wanted):
    """Compare records of the script with Detections."""
    assert len(found) == len(wanted)
    np.testing.assert_allclose([d["score"] for d in found], wanted.scores, atol=1e-5)
    np.testing.assert_allclose([d["xyxy"] for d in found], wanted.xyxy, atol=1e-2)
    assert [d["class_id"] for d in found] == wanted.class_ids.tolist()
    if wanted.keypoints is not None:
        np.testing.assert_allclose([d["keypoints"] for d in found], wanted.keypoints, atol=1e-2)
    if wanted.rotated is not None:
        np.testing.assert_allclose([d["rotated"] for d in found], wanted.rotated, atol=1e-2)
    if wanted.masks is not None:
        for one, mask in zip(found, wanted.masks, strict=True):
            assert (one["mask"] != mask).mean() < 1e-3


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_the_detector_says(name, tmp_path):
    picture = generated_pictures((64, 64), count=1, seed=4)[0]
    # Of the input's size: nothing is resized, so that nothing but decode and NMS can differ.
    picture = np.ascontiguousarray(np.resize(picture, (64, 64, 3)))
    for file in files(name, tmp_path):
        with boxwright.load(file, "onnxruntime", quiet=True) as detector:
            wanted = detector(picture)
        found = detect_numpy.Model(str(file))(picture)
        assert len(found) > 1
        same(found, wanted)


RULES = {
    "letterbox": Preprocess(),
    "top left": Preprocess(resize="letterbox_top_left", rounding="floor", color="bgr", scale=1.0),
    "stretch cubic": Preprocess(resize="stretch", interpolation="cubic"),
    "area": Preprocess(rounding="floor", interpolation="area"),
    "twice": Preprocess(resize="letterbox_twice", rounding="floor", interpolation="area"),
    "crop": Preprocess(resize="crop"),
    "mean": Preprocess(
        color="bgr", scale=1.0, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)
    ),
}


@pytest.mark.parametrize("size", [(90, 200), (333, 123), (40, 30), (64, 64)])
@pytest.mark.parametrize("rules", RULES)
def test_pictures_are_prepared_alike_within_a_grey_level(rules, size):
    rules = RULES[rules]
    target = (64, 96) if rules.resize != "crop" else (64, 64)
    picture = generated_pictures(size, count=2, seed=1)[1]
    wanted = np.empty((3, *target), np.float32)
    where = prepare(picture, target, rules, wanted)
    found, place = detect_numpy.prepare(picture, target, rules.as_dict())
    steps = 2 if rules.resize == "letterbox_twice" else 1  # each rounds
    level = steps * rules.scale / min(rules.std)
    assert np.abs(found[0] - wanted).max() <= level * 1.01
    assert place == (*where.scale, where.left, where.top)


def test_numpy_and_onnxruntime_are_enough(tmp_path, environment):
    """A process in which nothing else can be imported, not even Boxwright."""
    file = next(iter(files("ultralytics segment", tmp_path)))
    script = tmp_path / "detect_numpy.py"
    script.write_bytes(Path(detect_numpy.__file__).read_bytes())
    picture = generated_pictures((80, 100), count=1)[0]
    np.save(tmp_path / "a.npy", picture)
    height, width = picture.shape[:2]
    ppm = b"P6\n# made by hand\n%d %d\n255\n" % (width, height)
    (tmp_path / "a.ppm").write_bytes(ppm + picture[..., ::-1].tobytes())
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    code = """
import sys, runpy
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(name)
BANNED = {"boxwright", "cv2", "PIL", "onnx", "torch", "click", "rich", "pydantic"}
sys.meta_path.insert(0, Only())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not BANNED & set(sys.modules)
"""
    command = [sys.executable, "-c", code, str(script), str(file)]
    ran = subprocess.run(
        [*command, "a.npy", "a.ppm"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, second = (json.loads(line)["detections"] for line in ran.stdout.splitlines())
    assert first == second and len(first) > 1 and first[0]["mask_pixels"] > 0
    ran = subprocess.run([*command, "a.jpg"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and "neither Pillow nor OpenCV" in ran.stderr


def test_export_puts_it_beside_the_files(cli, tmp_path):
    from boxwright.sample import onnx_file

    ran = cli("export", onnx_file(), "--out", tmp_path / "runs", "--numpy-script")
    assert ran.code == 0, ran.err
    written = next((tmp_path / "runs").rglob("detect_numpy.py"))
    assert written.read_bytes() == Path(detect_numpy.__file__).read_bytes()
    assert str(written) in ran.out
    again = cli("export", onnx_file(), "--out", tmp_path / "runs", "--numpy-script")
    assert again.code == 0
    written.write_text("# mine")
    kept = cli("export", onnx_file(), "--out", tmp_path / "runs", "--numpy-script")
    assert kept.code == 2 and "was changed" in kept.error and written.read_text() == "# mine"
