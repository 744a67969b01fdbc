"""INT8: what becomes integer, how, and that a broken file does not pass."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import nms_free_onnx, pictures, ultralytics_onnx, yolov5_onnx, yolox_onnx

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.calibrate import METHODS, Calibration, calibrate
from boxwright.errors import GraphError, RequestError
from boxwright.graph.io import bytes_from_model, model_from_file
from boxwright.graph.quantize import (
    Range,
    _largest_pair,
    int8_from_fp32,
    quantisable_layers,
    tensors_to_observe,
)
from boxwright.sample import generate_page, onnx_file
from boxwright.sources import RawModel, SourceRequest

MAKERS = {
    "ultralytics": ultralytics_onnx,
    "nms-free": nms_free_onnx,
    "yolox": yolox_onnx,
    "yolov5": yolov5_onnx,
}


def raw_model(tmp_path: Path, family: str) -> RawModel:
    path = onnx_file() if family == "sample" else MAKERS[family](tmp_path / f"{family}.onnx")
    return catalog.source_for(".onnx").export(SourceRequest(path, family))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The embedded detector and its calibration for each deployment."""
    raw = raw_model(tmp_path_factory.mktemp("s"), "sample")
    pages = [generate_page(s).image for s in (30_000, 30_001)]
    found = {d: calibrate(raw.model, raw.spec, pages, d) for d in ("cpu", "openvino", "tensorrt")}
    return raw, found


def pairs_before(model: onnx.ModelProto, tensor: str) -> bool:
    """Whether a tensor comes out of QuantizeLinear and DequantizeLinear."""
    made = {o: n for n in model.graph.node for o in n.output}
    back = made.get(tensor)
    if back is None or back.op_type != "DequantizeLinear":
        return False
    stored = {i.name for i in model.graph.initializer}
    return back.input[0] in stored or made[back.input[0]].op_type == "QuantizeLinear"


@pytest.mark.parametrize("deployment", ["cpu", "openvino", "tensorrt"])
def test_every_inner_layer_is_integer_and_the_head_is_not(sample, deployment):
    raw, calibrations = sample
    model = int8_from_fp32(raw.model, calibrations[deployment].ranges, deployment)
    onnx.checker.check_model(model, full_check=True)
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    integer = [n for n in convolutions if pairs_before(model, n.input[1])]
    assert len(convolutions) == 83 and len(integer) == 74  # 9 are the head's outputs
    assert all(pairs_before(model, n.input[0]) for n in integer)
    assert [n.name for n in integer] == quantisable_layers(raw.model)
    assert len(bytes_from_model(model, "m")) <= 0.30 * onnx_file().stat().st_size


def test_tensorrt_graphs_are_symmetric_and_signed(sample):
    raw, calibrations = sample
    model = int8_from_fp32(raw.model, calibrations["tensorrt"].ranges, "tensorrt")
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) > 200
    for node in nodes:
        assert len(node.input) == 3, "TensorRT 8.6 cannot parse a pair without its zero point"
        zero = stored[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
        assert zero.shape == stored[node.input[1]].shape
    weights = [n for n in nodes if n.input[0] in stored]
    for node in weights:
        assert stored[node.input[1]].shape == (stored[node.input[0]].shape[0],), "per channel"


def test_both_inputs_of_each_residual_addition_have_a_pair(sample):
    raw, calibrations = sample
    model = int8_from_fp32(raw.model, calibrations["tensorrt"].ranges, "tensorrt")
    additions = [n for n in model.graph.node if n.op_type == "Add"]
    assert len(additions) == 7
    for node in additions:
        assert all(pairs_before(model, name) for name in node.input), node.name


@pytest.mark.parametrize("deployment", ["cpu", "openvino", "tensorrt"])
@pytest.mark.parametrize("family", MAKERS)
def test_every_family_quantises_and_runs(tmp_path, family, deployment):
    raw = raw_model(tmp_path, family)
    calibration = calibrate(raw.model, raw.spec, pictures(4), deployment)
    assert set(calibration.ranges) == set(tensors_to_observe(raw.model, deployment))
    model = int8_from_fp32(raw.model, calibration.ranges, deployment)
    onnx.checker.check_model(model, full_check=True)
    runtime = catalog.backend("onnxruntime")
    options = BackendOptions(device="cpu")
    ours = runtime.open_bytes(bytes_from_model(model, family), options)
    theirs = runtime.open_bytes(bytes_from_model(raw.model, family), options)
    feed = {ours.inputs[0].name: _feed(raw)}
    for name, expected in theirs.infer(feed).items():
        found = ours.infer(feed)[name]
        assert found.shape == expected.shape
        if raw.spec.layout.nms_free:  # rows change places: their scores in order are alike
            found, expected = np.sort(found[..., 4]), np.sort(expected[..., 4])
        correlation = np.corrcoef(found.ravel(), expected.ravel())[0, 1]
        assert correlation > 0.98, (name, correlation)


def _feed(raw: RawModel) -> np.ndarray:
    from boxwright.preprocess import prepare

    batch = np.zeros((1, 3, *raw.spec.input_size), np.float32)
    prepare(pictures(1)[0], raw.spec.input_size, raw.spec.preprocess, batch[0])
    return batch


def test_kept_layers_stay_in_float(sample):
    raw, calibrations = sample
    layers = quantisable_layers(raw.model)
    kept = layers[:5]
    model = int8_from_fp32(raw.model, calibrations["cpu"].ranges, "cpu", keep_float=kept)
    for node in model.graph.node:
        if node.op_type == "Conv" and node.name in layers:
            assert pairs_before(model, node.input[1]) == (node.name not in kept)


@pytest.mark.parametrize("family", ["sample", "yolox", "ultralytics"])
def test_onnxruntime_leaves_kept_layers_in_float(tmp_path, family):
    """Its optimiser rounds the weights of a float convolution between integer ones, if it can."""
    import onnxruntime

    raw = raw_model(tmp_path, family)
    seen = [generate_page(30_000).image] if family == "sample" else pictures(2)
    ranges = calibrate(raw.model, raw.spec, seen, "cpu").ranges
    layers = quantisable_layers(raw.model)
    kept = layers[1::3]
    model = int8_from_fp32(raw.model, ranges, "cpu", keep_float=kept)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(bytes_from_model(model, family), options)
    optimised = onnx.load(tmp_path / "optimised.onnx", load_external_data=False)
    integer = [n for n in optimised.graph.node if n.op_type == "QLinearConv"]
    assert len(integer) == len(layers) - len(kept) > 0


def test_weights_cannot_overflow_sixteen_bits(sample):
    """255 times the sum of two neighbouring weights stays within int16, or vpmaddubsw clips it."""
    raw, calibrations = sample
    model = int8_from_fp32(raw.model, calibrations["cpu"].ranges, "cpu")
    wide = int8_from_fp32(raw.model, calibrations["cpu"].ranges, "cpu", any_processor=False)
    largest = [_worst_pair(m) for m in (model, wide)]
    assert largest[0] * 255 <= 32767 < largest[1] * 255


def _worst_pair(model: onnx.ModelProto) -> int:
    worst = 0
    for stored in model.graph.initializer:
        values = numpy_helper.to_array(stored)
        if values.dtype == np.int8 and values.ndim == 4 and values[0].size > 1:
            flat = np.abs(np.moveaxis(values, 1, -1).reshape(len(values), -1).astype(int))
            worst = max(worst, int((flat[:, :-1] + flat[:, 1:]).max()))
    return worst


def test_the_largest_pair_counts_every_neighbour():
    values = np.zeros((2, 3, 1, 2), np.float32)
    values[0, :, 0, 0] = (1, 2, 4)
    values[0, :, 0, 1] = (5, 0, 0)  # 4 and 5 are neighbours: the next position follows
    values[1, 0, 0, 0] = -7
    assert _largest_pair(values, 0).tolist() == [9, 7]
    assert _largest_pair(np.ones((4, 1, 1, 1), np.float32), 0).tolist() == [0] * 4


@pytest.mark.parametrize("method", METHODS)
def test_calibration_sees_the_values(tmp_path, method):
    raw = raw_model(tmp_path, "ultralytics")
    few = calibrate(raw.model, raw.spec, pictures(2), "cpu", method=method)
    same = calibrate(raw.model, raw.spec, pictures(2), "cpu", method=method)
    assert few == same and few.pictures == 2
    more = calibrate(raw.model, raw.spec, pictures(4), "cpu", method=method)
    assert more.fingerprint != few.fingerprint
    if method == "minmax":
        for name, seen in few.ranges.items():
            assert more.ranges[name].low <= seen.low <= seen.high <= more.ranges[name].high
    else:
        widest = calibrate(raw.model, raw.spec, pictures(2), "cpu").ranges
        for name, seen in few.ranges.items():
            span = widest[name].high - widest[name].low
            assert seen.low >= widest[name].low - 1e-6 * span
            assert seen.high <= widest[name].high + 1e-6 * span
    assert Calibration.from_dict(json.loads(json.dumps(few.as_dict()))) == few


def test_what_cannot_be_quantised_is_refused(tmp_path):
    raw = raw_model(tmp_path, "ultralytics")
    with pytest.raises(RequestError, match="no pictures"):
        calibrate(raw.model, raw.spec, [], "cpu")
    with pytest.raises(GraphError, match="was not calibrated"):
        int8_from_fp32(raw.model, {}, "cpu")
    old = onnx.ModelProto()
    old.CopyFrom(raw.model)
    old.opset_import[0].version = 12
    with pytest.raises(GraphError, match="opset 12"):
        int8_from_fp32(old, {}, "cpu")
    plain = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    with pytest.raises(GraphError, match="no layer"):
        int8_from_fp32(plain, {"x": Range(0, 1)}, "cpu")


# -- through the command line


@pytest.fixture
def calibration_folder(tmp_path):
    folder = tmp_path / "calib"
    folder.mkdir()
    for seed in (30_000, 30_001, 30_002):
        cv2.imwrite(str(folder / f"{seed}.png"), generate_page(seed).image)
    return folder


def test_run_makes_and_proves_int8(cli, place, calibration_folder):
    pages = place / "pages"
    pages.mkdir()
    for seed in (3, 5):
        cv2.imwrite(str(pages / f"{seed}.png"), generate_page(seed).image)
    words = [
        "run", onnx_file(), "--precision", "int8", "--deploy", "cpu,tensorrt",
        "--outputs", "raw,end2end", "--images", pages, "--out", "o", "--json",
        "--calib-images", calibration_folder, "--calib-cache", "cache.json",
    ]  # fmt: skip
    done = cli(*words, "--deploy", "cpu")
    assert done.code == 0, done.err
    files = {Path(f["path"]).name: f for f in json.loads(done.out)["files"]}
    assert set(files) == {"text_block.int8.onnx", "text_block.int8.end2end.onnx"}
    assert all(f["parity"]["passed"] and f["parity"]["detections"] > 10 for f in files.values())
    assert json.loads(Path("cache.json").read_text())["deployments"]["cpu"]["pictures"] == 3
    again = cli(*words, "--deploy", "cpu", "--calib-images", place / "pics", "--force-convert")
    assert "calibration of 3 pictures from cache.json" in again.err
    assert again.code == 0
    wrong = cli(*words, "--deploy", "tensorrt")
    assert wrong.code == 2 and "it is for cpu, not for tensorrt" in wrong.error


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--precision", "int8"], "it needs pictures"),
        (["--calib-images", "pics"], "no INT8 file is asked for"),
        (["--deploy", "tensorrt"], "no INT8 file is asked for"),
        (["--precision", "int8", "--deploy", "tensort"], "did you mean tensorrt?"),
        (["--precision", "int8", "--calib-images", "nowhere"], "nowhere"),
        (["--precision", "int8", "--calib-images", "pics", "--calib-method", "kl"], "known are"),
        (["--precision", "int8", "--calib-images", "pics", "--calib-count", "0"], "--count 0"),
    ],
)
def test_bad_int8_requests_make_nothing(cli, place, snapshot, words, found):
    before = snapshot(place)
    done = cli("run", "tiny.onnx", "--out", "o", *words)
    assert done.code == 2 and found in done.error, done.err
    assert snapshot(place) == before


def test_one_cache_serves_both_deployments(cli, place):
    words = ["run", "tiny.onnx", "--out", "o", "--precision", "int8", "--skip-verify"]
    words += ["--deploy", "cpu,tensorrt", "--calib-cache", "both.json"]
    done = cli(*words, "--calib-images", "pics")
    assert done.code == 0, done.err
    first = {p.name: p.read_bytes() for p in (place / "o" / "tiny").glob("*.onnx")}
    done = cli(*words)
    assert done.code == 0, "the cache stands for its pictures: nothing is made again"
    assert "calibration of" not in done.err
    done = cli(*words, "--force-convert")
    assert done.code == 0, done.err
    assert done.err.count("calibration of 2 pictures from both.json") == 2
    assert {p.name: p.read_bytes() for p in (place / "o" / "tiny").glob("*.onnx")} == first


def test_a_damaged_cache_is_one_line(cli, place):
    Path("bad.json").write_text("{}")
    done = cli("run", "tiny.onnx", "--out", "o", "--precision", "int8", "--calib-cache", "bad.json")
    assert done.code == 2 and "no calibration cache of ours" in done.error


def test_a_broken_int8_file_is_rejected_by_name(cli, place, calibration_folder, monkeypatch):
    """Wrong scales pass the checker and run; only detections tell."""
    from boxwright import quantization

    def broken(model, ranges, deployment, **options):
        shrunk = {n: Range(r.low / 30, r.high / 30) for n, r in ranges.items()}
        return int8_from_fp32(model, shrunk, deployment, **options)

    monkeypatch.setattr(quantization, "int8_from_fp32", broken)
    done = cli(
        "run", onnx_file(), "--precision", "int8", "--out", "o",
        "--calib-images", calibration_folder, "--images", calibration_folder,
    )  # fmt: skip
    assert done.code == 1
    assert "detections missing" in done.error or "raw" in done.error
    assert not (place / "o" / "text_block" / "text_block.int8.onnx").exists()
    assert (place / "o" / "text_block" / "text_block.int8.onnx.rejected").exists()
    onnx.checker.check_model(
        model_from_file(place / "o" / "text_block" / "text_block.int8.onnx.rejected")
    )
