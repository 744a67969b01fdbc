"""One suite over the catalog: every family, precision, output form, NMS form and batch.

Tiny generated networks always run. Real files run where BOXWRIGHT_ASSETS (default:
`../shared/assets` beside the repository) holds them, and are skipped loudly elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from official_graphs import CASES as OFFICIAL
from tiny_models import nms_free_onnx, ultralytics_onnx, yolov5_onnx, yolox_onnx

import boxwright
from boxwright import catalog
from boxwright.errors import GraphError, RequestError, SourceError, UnknownFamilyError
from boxwright.graph.io import model_from_file, signature_of
from boxwright.graph.precision import fp16_from_fp32
from boxwright.pictures import generated_pictures
from boxwright.recipe import recipe_from_mapping
from boxwright.sources import SourceRequest

ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
)
needs_assets = pytest.mark.skipif(
    not ASSETS.is_dir(), reason=f"the real weights and pictures are not at {ASSETS}"
)

TINY = {
    "ultralytics": ultralytics_onnx,
    "ultralytics-nms-free": nms_free_onnx,
    "yolox": yolox_onnx,
    "yolov5": yolov5_onnx,
}
REAL = {
    "checkpoints/yolo11n-deq.pt": ("ultralytics", 80),
    "checkpoints/yolov8n-deq.pt": ("ultralytics", 80),
    "checkpoints/yolov10n-deq.pt": ("ultralytics-nms-free", 80),
    "checkpoints/yolo26n-deq.pt": ("ultralytics-nms-free", 80),
    "checkpoints/yolov9t_volleyball_1cls.pt": ("ultralytics", 1),
    "onnx/yolox_nano_416_static.onnx": ("yolox", 80),
    "onnx/yolov5n_v7_fp32_upcast.onnx": ("yolov5", 80),
}


TIMELESS = {"latency": False, "accuracy": False}  # which take their time, and have their own tests
# Others of the same kinds always run.
LONG = ("yolov8n", "yolov9t", "yolov10n")


def run(source: Path, out: Path, **extra):
    """Run the main job on a source with every precision, output and NMS form."""
    targets = [
        {"precision": p, "outputs": o, "nms": n}
        for p in ("fp32", "fp16")
        for o, n in (
            ("raw", "onnx"),
            ("end2end", "onnx"),
            ("end2end", "portable"),
            ("end2end", "efficient_nms"),
        )
    ]
    asked = {"source": str(source), "targets": targets, "measure": TIMELESS, **extra}
    recipe = recipe_from_mapping(asked, "test")
    return boxwright.run(recipe, out)


def test_every_family_is_covered_here():
    official = {family for _, _, family, _ in OFFICIAL.values()}  # proven in test_official.py
    assert {f.name for f in catalog.families()} == set(TINY) | official


@pytest.mark.parametrize("family", TINY)
def test_a_tiny_network_of_each_family_is_proven(family, tmp_path):
    source = TINY[family](tmp_path / "tiny.onnx")
    outcome = run(source, tmp_path / "runs")
    assert len(outcome.rows) == 8
    for row in outcome.rows:
        assert row.parity is not None and row.parity.passed, row
        assert row.parity.detections > 0, "the verification compared no detections"


@pytest.mark.parametrize("family", TINY)
def test_a_tiny_network_is_recognised(family, tmp_path):
    model = model_from_file(TINY[family](tmp_path / "tiny.onnx"))
    found, _ = catalog.recognise(signature_of(model), None, "tiny")
    assert found.name == family


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("family", TINY)
def test_detections_do_not_depend_on_batch_or_form(family, batch, tmp_path):
    outcome = run(TINY[family](tmp_path / "tiny.onnx"), tmp_path / "runs", verify=False)
    pictures = generated_pictures((64, 64), count=8, seed=5)
    wanted = None
    for row in outcome.rows:
        if "fp16" in row.path.name or "efficient" in row.path.name:
            continue
        with boxwright.load(row.path, "onnxruntime", quiet=True) as detector:
            found = []
            for start in range(0, 8, batch):
                found += detector(pictures[start : start + batch])
        if wanted is None:
            wanted = found
            assert sum(map(len, wanted)) > 8
            continue
        for a, b in zip(wanted, found, strict=True):
            assert len(a) == len(b)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
            np.testing.assert_allclose(a.xyxy, b.xyxy, atol=1e-2)


@pytest.mark.parametrize("family", TINY)
def test_a_fixed_batch_is_kept(family, tmp_path):
    source = TINY[family](tmp_path / "tiny.onnx")
    outcome = run(source, tmp_path / "runs", batch=3)
    for row in outcome.rows:
        assert ".b3." in row.path.name and row.parity is not None and row.parity.passed
    with boxwright.load(outcome.rows[0].path, "onnxruntime", quiet=True) as detector:
        assert detector.fixed_batch == 3
        assert len(detector(generated_pictures((64, 64), count=7))) == 7


@pytest.mark.parametrize(("stored", "asked"), [(13, 17), (17, 18), (17, 20)])
def test_opset_is_honoured(stored, asked, tmp_path):
    source = ultralytics_onnx(tmp_path / "tiny.onnx", opset=stored)
    recipe = recipe_from_mapping(
        {"source": str(source), "opset": asked, "measure": TIMELESS}, "test"
    )
    outcome = boxwright.run(recipe, tmp_path / "runs")
    model = model_from_file(outcome.rows[0].path)
    assert [o.version for o in model.opset_import if o.domain == ""] == [asked]


def test_an_older_opset_than_the_files_own_is_refused(tmp_path):
    source = ultralytics_onnx(tmp_path / "tiny.onnx", opset=17)
    recipe = recipe_from_mapping({"source": str(source), "opset": 13}, "test")
    with pytest.raises(GraphError, match="use --opset 17"):
        boxwright.run(recipe, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_unknown_family_is_refused(tmp_path):
    source = ultralytics_onnx(tmp_path / "tiny.onnx")
    model = model_from_file(source)
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 5
    with pytest.raises(UnknownFamilyError, match="--family"):
        catalog.recognise(signature_of(model), None, "tiny")
    with pytest.raises(RequestError, match="yolox"):
        catalog.family("yolx")


def test_a_file_with_nms_inside_is_no_source(tmp_path):
    outcome = run(ultralytics_onnx(tmp_path / "tiny.onnx"), tmp_path / "runs", verify=False)
    baked = next(r.path for r in outcome.rows if "end2end" in r.path.name)
    with pytest.raises(SourceError, match="NMS already"):
        catalog.source_for(".onnx").describe(SourceRequest(baked, "again"))


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=pytest.mark.long if any(w in f for w in LONG) else ()) for f in REAL],
)
def test_real_weights_are_proven(file, tmp_path):
    """FP32 and FP16, raw and end-to-end in all forms, on real pictures."""
    if file.endswith(".pt"):
        pytest.importorskip("ultralytics", reason="the export extra is not installed")
    family, classes = REAL[file]
    pictures = [str(ASSETS / "images" / "bus.jpg"), str(ASSETS / "images" / "coco128")]
    outcome = run(ASSETS / file, tmp_path, images=pictures, max_images=5, threads=1)
    for row in outcome.rows:
        assert row.parity is not None and row.parity.passed, row
        assert row.parity.detections >= (0 if classes == 1 else 15)
        worst = {c.name: c.measured for c in row.parity.checks}
        if ".fp32" in row.path.name:
            assert worst.get("raw boxes, px", 0) <= 0.05 and worst.get("raw scores", 0) <= 1e-4
    with boxwright.load(outcome.rows[0].path, "onnxruntime", quiet=True) as detector:
        assert detector.spec.family == family and len(detector.spec.class_names) == classes


@needs_assets
@pytest.mark.slow
def test_a_real_export_with_nms_inside_is_proven(tmp_path):
    """RTMDet nano of MMDeploy: free picture size, free number of detections."""
    (tmp_path / "names.txt").write_text("person")
    outcome = run(
        ASSETS / "onnx" / "rtmdet_nano_person_mmdeploy_nms.onnx",
        tmp_path / "runs",
        image_size=320,
        labels=str(tmp_path / "names.txt"),
        images=[str(ASSETS / "images" / "bus.jpg")],
    )
    for row in outcome.rows:
        assert row.parity is not None and row.parity.passed and row.parity.detections == 3, row


@needs_assets
def test_bus_holds_four_persons_and_a_bus(tmp_path):
    """What the picture shows, found by two families of real weights."""
    for file in ("onnx/yolox_nano_416_static.onnx",):
        with boxwright.load(ASSETS / file, "onnxruntime", labels="coco", quiet=True) as detector:
            found = detector(ASSETS / "images" / "bus.jpg")
        names = [found.class_name(int(c)) for c in found.class_ids]
        assert names.count("person") == 4 and names.count("bus") == 1
        assert found.image_size == (1080, 810)
        bus = found.xyxy[names.index("bus")]
        np.testing.assert_allclose(bus, [13, 231, 801, 735], atol=12)


def test_a_newer_opset_than_the_default_is_kept(tmp_path):
    source = ultralytics_onnx(tmp_path / "tiny.onnx", opset=18)
    outcome = boxwright.run(
        recipe_from_mapping({"source": str(source), "measure": TIMELESS}, "test"), tmp_path / "runs"
    )
    with boxwright.load(outcome.rows[0].path, "onnxruntime", quiet=True) as detector:
        assert detector.target.opset == 18


def test_a_dynamic_picture_size_is_settled_by_image_size(tmp_path):
    source = ultralytics_onnx(tmp_path / "tiny.onnx")
    model = model_from_file(source)
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "anchors"
    source.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="--image-size"):
        run(source, tmp_path / "refused")
    outcome = run(source, tmp_path / "runs", image_size=64)
    assert all(row.parity is not None and row.parity.passed for row in outcome.rows)


def test_half_precision_and_quantised_files_are_no_source(tmp_path):
    source = ultralytics_onnx(tmp_path / "tiny.onnx")
    half = fp16_from_fp32(model_from_file(source))
    (tmp_path / "half.onnx").write_bytes(half.SerializeToString())
    with pytest.raises(SourceError, match="float16"):
        run(tmp_path / "half.onnx", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
