"""What MMYOLO's easydeploy does, flag by flag: end-to-end files, raw maps, NumPy inference.

docs/mmyolo.md is the page of it. The checkpoint is a small one of `test_native`'s shapes.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from test_native import CONFIG, write, yolov8_weights

import boxwright
from boxwright import catalog, detect_numpy
from boxwright.backends import BackendOptions
from boxwright.graph.shapes import dimensions
from boxwright.pictures import generated_pictures
from boxwright.sources import SourceRequest

SIZE = (64, 128)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    weights = yolov8_weights()
    for name, value in weights.items():  # so that some score, and some do not
        if "cls_preds" in name and name.endswith("2.weight"):
            value.mul_(4)
        if "cls_preds" in name and name.endswith("2.bias"):
            value.fill_(-1.0)
    return write(tmp_path_factory.mktemp("mmyolo") / "tiny.pth", weights)


def test_the_guide_flag_by_flag(checkpoint, cli, tmp_path):
    """--backend onnxruntime and tensorrt8, the four thresholds, opset 11, a fixed batch."""
    config = tmp_path / "own.py"
    config.write_text(CONFIG)
    ran = cli(
        "export", checkpoint, "--config", config, "--out", tmp_path / "work_dir",
        "--image-size", "64,128", "--batch", "1", "--opset", "11",
        "--outputs", "raw,end2end", "--nms", "onnx,efficient_nms",
        "--pre-topk", "1000", "--keep-topk", "100",
        "--iou-threshold", "0.65", "--score-threshold", "0.25",
        "--level-maps", "--numpy-script",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    folder = tmp_path / "work_dir" / "tiny"
    for form in ("b1", "efficient_nms.b1"):
        name = f"tiny.fp32.end2end.{form}.onnx"
        model = onnx.load(folder / name)
        assert [o.version for o in model.opset_import if not o.domain] == [11]
        shapes = {o.name: dimensions(o) for o in model.graph.output}
        assert shapes == {
            "num_dets": (1, 1),
            "det_boxes": (1, 100, 4),
            "det_scores": (1, 100),
            "det_classes": (1, 100),
        }
    plugin = next(n for n in model.graph.node if n.op_type == "EfficientNMS_TRT")
    values = {a.name: onnx.helper.get_attribute_value(a) for a in plugin.attribute}
    assert values["max_output_boxes"] == 100
    assert values["iou_threshold"] == pytest.approx(0.65)
    assert values["score_threshold"] == pytest.approx(0.25)

    picture = generated_pictures((90, 120), count=1)[0]
    with boxwright.load(folder / "tiny.fp32.end2end.b1.onnx", "onnxruntime", quiet=True) as one:
        wanted = one(picture)
        assert one.spec.preprocess.resize == "letterbox_twice"
    assert 1 < len(wanted) <= 100
    with boxwright.load(
        folder / "tiny.fp32.b1.onnx", "onnxruntime", iou_threshold=0.65, quiet=True
    ) as raw:
        host = raw(picture)
    np.testing.assert_allclose(host.xyxy[: len(wanted)], wanted.xyxy, atol=0.01)
    found = detect_numpy.Model(str(folder / "tiny.fp32.end2end.b1.onnx"))(picture)
    assert len(found) == pytest.approx(len(wanted), abs=1)  # its pixels are a grey level off

    # The bare network: a map per level, and nothing of a head or of its decode.
    maps = onnx.load(folder / "tiny.fp32.maps.onnx")
    assert [dimensions(o) for o in maps.graph.output] == [
        (1, 67, 8, 16), (1, 67, 4, 8), (1, 67, 2, 4)
    ]  # fmt: skip
    simple = {"Conv", "Sigmoid", "Mul", "Add", "Concat", "Split", "Slice", "MaxPool", "Resize"}
    assert {n.op_type for n in maps.graph.node} <= simple | {"Constant"}
    request = SourceRequest(
        folder / "tiny.fp32.maps.onnx", "again", family="yolov8", config=config, batch=1
    )
    again = catalog.source_of(request.path).export(request)
    assert again.spec.class_names == ("a", "b", "c")
    assert again.spec.preprocess.resize == "letterbox_twice"
    tensor = np.random.default_rng(2).random((1, 3, *SIZE), np.float32)
    results = []
    for model in (again.model, onnx.load(folder / "tiny.fp32.b1.onnx")):
        backend = catalog.backend("onnxruntime").open_bytes(
            model.SerializeToString(), BackendOptions()
        )
        results.append(next(iter(backend.infer({"images": tensor}).values())))
    assert np.abs(results[0] - results[1]).max() <= 0.01


def test_only_mmyolo_has_level_maps(cli, tmp_path):
    from boxwright.sample import onnx_file

    ran = cli("export", onnx_file(), "--out", tmp_path, "--level-maps")
    assert ran.code == 2 and "--level-maps" in ran.error
    assert not any(tmp_path.iterdir())


def test_model_only_is_the_raw_head(checkpoint, cli, tmp_path):
    ran = cli("export", checkpoint, "--out", tmp_path, "--model-only", "--no-simplify")
    assert ran.code == 0, ran.err
    assert [p.name for p in (tmp_path / "tiny").glob("*.onnx")] == ["tiny.fp32.onnx"]
    refused = cli("export", checkpoint, "--out", tmp_path, "--model-only", "--keep-topk", "100")
    assert refused.code == 2 and "--keep-topk" in refused.error
