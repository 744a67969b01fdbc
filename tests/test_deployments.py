"""INT8 for OpenVINO, OpenVINO's fixed shapes, and the size of files."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_quantize import pairs_before, raw_model
from tiny_models import nms_free_onnx, ultralytics_onnx, yolov5_onnx, yolox_onnx

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.calibrate import calibrate
from boxwright.graph.compact import with_half_weights, with_small_constants
from boxwright.graph.end2end import add_end2end
from boxwright.graph.io import bytes_from_model
from boxwright.graph.quantize import int8_from_fp32
from boxwright.loading import load
from boxwright.sample import generate_page, onnx_file
from boxwright.types import NmsSettings, Target

ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
)
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="NOT TESTED: openvino is not installed"
)
MAKERS = {
    "ultralytics": ultralytics_onnx,
    "nms-free": nms_free_onnx,
    "yolox": yolox_onnx,
    "yolov5": yolov5_onnx,
}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """The embedded detector in INT8 for OpenVINO, with the FP32 graph."""
    raw = raw_model(tmp_path_factory.mktemp("o"), "sample")
    pages = [generate_page(s).image for s in (30_000, 30_001)]
    ranges = calibrate(raw.model, raw.spec, pages, "openvino").ranges
    return raw, int8_from_fp32(raw.model, ranges, "openvino")


def run(runtime: str, data: bytes, feed: np.ndarray) -> dict[str, np.ndarray]:
    backend = catalog.backend(runtime).open_bytes(data, BackendOptions(2, "cpu", spin=False))
    found = backend.infer({backend.inputs[0].name: feed})
    copied = {n: v.copy() for n, v in found.items()}
    backend.close()
    return copied


# -- the openvino deployment


def test_pairs_stand_before_layers_alone(quantised):
    _, model = quantised
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    activations = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert len(activations) > 50
    for node in activations:
        assert stored[node.input[2]].dtype == np.uint8
        back = readers[node.output[0]][0]
        kinds = {r.op_type for r in readers[back.output[0]]}
        # nothing but layers and residual additions reads integers
        assert kinds <= {"Conv", "Add", "MaxPool", "Slice", "Concat"}, kinds
        assert "Conv" in kinds or "Add" in kinds
    biased = [n for n in model.graph.node if n.op_type == "Conv" and len(n.input) > 2]
    assert not any(pairs_before(model, n.input[2]) for n in biased), "biases stay in float"


@needs_openvino
def test_openvino_computes_what_onnxruntime_computes(quantised):
    raw, model = quantised
    page = generate_page(30_002).image
    from boxwright.detector import Detector

    batch = np.zeros((2, 3, *raw.spec.input_size), np.float32)
    from boxwright.preprocess import prepare

    prepare(Detector.read(page), raw.spec.input_size, raw.spec.preprocess, batch[1])
    data = bytes_from_model(model, "m")
    (mine,) = run("openvino", data, batch).values()
    (other,) = run("onnxruntime", data, batch).values()
    score = other[1, :, 4] * other[1, :, 5]
    found = score > 0.3
    assert found.sum() > 20
    assert np.abs(mine[1, found, :4] - other[1, found, :4]).mean() < 0.02
    assert np.abs(mine[1, found, 4] * mine[1, found, 5] - score[found]).mean() < 0.02


# -- OpenVINO's shapes


@needs_openvino
@pytest.mark.parametrize("deployment", ["cpu", "openvino"])
def test_end_to_end_int8_is_right_in_plain_openvino(tmp_path, deployment):
    """OpenVINO 2026.4 computes the body wrongly where GatherND reads it and the batch is free."""
    import openvino as ov

    raw = raw_model(tmp_path, "sample")
    pages = [generate_page(s).image for s in (30_000, 30_001)]
    body = int8_from_fp32(
        raw.model, calibrate(raw.model, raw.spec, pages, deployment).ranges, deployment
    )
    whole = add_end2end(body, raw.spec, NmsSettings(), Target("int8", "end2end"))
    data = bytes_from_model(whole, "m")
    assert not any(n.op_type == "GatherND" for n in whole.graph.node)
    from boxwright.preprocess import prepare

    batch = np.zeros((1, 3, *raw.spec.input_size), np.float32)
    prepare(generate_page(30_002).image, raw.spec.input_size, raw.spec.preprocess, batch[0])
    core = ov.Core()
    plain = core.read_model(data)
    compiled = core.compile_model(plain, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert compiled.inputs[0].get_partial_shape()[0].is_dynamic
    answer = compiled({0: batch})
    results = {n: answer[n] for n in ("num_dets", "det_scores", "det_boxes")}
    wanted = run("onnxruntime", data, batch)
    count = int(wanted["num_dets"][0, 0])
    assert count > 3 and int(results["num_dets"][0, 0]) == count
    assert np.abs(results["det_scores"] - wanted["det_scores"]).max() < 0.03
    order = [np.lexsort(v["det_boxes"][0, :count].T) for v in (results, wanted)]
    boxes = [v["det_boxes"][0, :count][o] for v, o in zip((results, wanted), order, strict=True)]
    assert np.abs(boxes[0] - boxes[1]).max() < 4.0


@needs_openvino
def test_batches_of_changing_size_give_the_same_rows():
    with load(onnx_file(), "openvino", threads=2, quiet=True) as detector:
        pages = [generate_page(s).image for s in (1, 2, 3)]
        alone = [detector(p) for p in pages]
        for size in (1, 2, 3, 2, 1, 3):
            for found, want in zip(detector(pages[:size]), alone, strict=False):
                assert len(found) == len(want) > 0
                assert np.abs(found.xyxy - want.xyxy).max() < 0.05


# -- files of other exporters


def test_a_strangers_int8_file_runs_but_is_no_source(tmp_path, cli):
    """Ultralytics' INT8 export is what ONNX Runtime's quantiser makes of the convolutions."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    plain, other = ultralytics_onnx(tmp_path / "plain.onnx"), tmp_path / "other.onnx"
    model = onnx.load(plain)
    size = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][2:]

    class Reader(CalibrationDataReader):
        left = 2

        def get_next(self):
            self.left -= 1
            rng = np.random.default_rng(abs(self.left))
            feed = {model.graph.input[0].name: rng.random((1, 3, *size), np.float32)}
            return feed if self.left >= 0 else None

    skipped = [n.name for n in model.graph.node if n.op_type != "Conv"]
    quantize_static(plain, other, Reader(), nodes_to_exclude=skipped)
    with load(other, "onnxruntime", quiet=True) as detector:
        assert detector.spec.family == "ultralytics"
        detector(np.zeros((40, 50, 3), np.uint8))
    done = cli("run", other, "--out", tmp_path / "o")
    assert done.code == 2 and "quantised already" in done.error
    assert not (tmp_path / "o").exists()


# -- sizes


def grid_model(constant_along: tuple[int, ...], reader: str = "Add") -> onnx.ModelProto:
    """x (1, 3, 20, 20, 2) and a stored tensor that repeats itself along some axes."""
    rng = np.random.default_rng(0)
    shape = [3, 20, 20, 2]
    values = rng.normal(size=[1 if i in constant_along else n for i, n in enumerate(shape)])
    values = np.broadcast_to(values, shape).astype(np.float32)
    node = helper.make_node(reader, ["x", "grid"], ["y"])
    if reader == "Concat":
        node.attribute.append(helper.make_attribute("axis", 0))
    inputs = [1, 3, 20, 20, 2] if reader != "Concat" else shape
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [node], "g", [x], [y], [numpy_helper.from_array(np.ascontiguousarray(values), "grid")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("along", "reader", "expected"),
    [
        ((0,), "Add", [1, 20, 20, 2]),
        ((1, 2), "Mul", [3, 1, 1, 2]),
        ((), "Add", [3, 20, 20, 2]),
        ((0, 1, 2, 3), "Sub", [1, 1, 1, 1]),
        ((0,), "Concat", [3, 20, 20, 2]),
    ],
)
def test_repetition_goes_and_the_result_stays(along, reader, expected):
    model = grid_model(along, reader)
    small = with_small_constants(model)
    assert list(small.graph.initializer[0].dims) == expected
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    results = [run("onnxruntime", m.SerializeToString(), x)["y"] for m in (model, small)]
    assert np.array_equal(*results)


def test_a_size_that_only_the_constant_has_is_kept():
    """Broadcasting runs the other way: the stored tensor makes the result large."""
    model = grid_model((0,))
    for size in model.graph.input[0].type.tensor_type.shape.dim[1:2]:
        size.dim_value = 1
    assert list(with_small_constants(model).graph.initializer[0].dims) == [3, 20, 20, 2]


def test_half_weights_are_cast_back(tmp_path):
    raw = raw_model(tmp_path, "yolov5")
    small = with_half_weights(raw.model)
    onnx.checker.check_model(small, full_check=True)
    large = [n for n in raw.model.graph.node if n.op_type == "Conv"]
    halves = [i for i in small.graph.initializer if i.data_type == TensorProto.FLOAT16]
    assert 0 < len(halves) <= len(large)
    x = np.random.default_rng(0).random((1, 3, *raw.spec.input_size), np.float32)
    one, two = (next(iter(run("onnxruntime", m.SerializeToString(), x).values()))
                for m in (raw.model, small))  # fmt: skip
    assert not np.array_equal(one, two) and np.abs(one - two).max() < 0.02 * np.abs(one).max()


@pytest.mark.parametrize("deployment", ["cpu", "openvino"])
@pytest.mark.parametrize(
    ("name", "family"),
    [("yolox_nano_416_static.onnx", "yolox"), ("yolov5n_v7_fp32_upcast.onnx", "yolov5")],
)
def test_int8_of_real_weights_is_at_most_0_30_of_fp32(tmp_path, name, family, deployment):
    from boxwright.pictures import generated_pictures
    from boxwright.sources import SourceRequest

    path = ASSETS / "onnx" / name
    if not path.is_file():
        pytest.skip("NOT TESTED, BOXWRIGHT_ASSETS names no folder with real weights")
    raw = catalog.source_for(".onnx").export(SourceRequest(path, "m", family=family))
    pictures = generated_pictures(raw.spec.input_size, 1)
    ranges = calibrate(raw.model, raw.spec, pictures, deployment).ranges
    size = len(bytes_from_model(int8_from_fp32(raw.model, ranges, deployment), "m"))
    assert size <= 0.30 * len(bytes_from_model(raw.model, "m"))
