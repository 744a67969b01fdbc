"""Our graphs build with TensorRT-RTX: the strict, strongly typed check that needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import nms_free_onnx, pictures, ultralytics_onnx, yolov5_onnx, yolox_onnx

from boxwright import catalog
from boxwright.calibrate import calibrate
from boxwright.graph.end2end import add_end2end
from boxwright.graph.io import bytes_from_model
from boxwright.graph.precision import fp16_from_fp32
from boxwright.graph.quantize import int8_from_fp32
from boxwright.sample import generate_page, onnx_file
from boxwright.sources import RawModel, SourceRequest
from boxwright.types import NmsSettings, Target

trt = pytest.importorskip(
    "tensorrt_rtx_bindings",
    reason="TensorRT-RTX is not installed (pip install boxwright[tensorrt])",
)

_MAKERS = {
    "ultralytics": ultralytics_onnx,
    "nms-free": nms_free_onnx,
    "yolox": yolox_onnx,
    "yolov5": yolov5_onnx,
    "sample": lambda _: onnx_file(),
}


def build(data: bytes) -> int:
    """Parse and build an engine with a dynamic batch; return its size in bytes."""
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(data), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    tensor = network.get_input(0)
    shape = tuple(tensor.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, (1, *shape), (2, *shape), (8, *shape))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, "TensorRT-RTX parsed the graph but could not build it"
    return engine.nbytes


def raw_model(tmp_path: Path, family: str) -> RawModel:
    path = _MAKERS[family](tmp_path / f"{family}.onnx")
    return catalog.source_for(".onnx").export(SourceRequest(path, family))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", _MAKERS)
def test_raw_graphs_build(tmp_path, family, precision):
    model = raw_model(tmp_path, family).model
    if precision == "fp16":
        model = fp16_from_fp32(model)
    assert build(bytes_from_model(model, family)) > 0


@pytest.mark.parametrize("family", _MAKERS)
def test_int8_graphs_build_raw_and_end2end(tmp_path, family):
    raw = raw_model(tmp_path, family)
    images = [generate_page(30_000).image] if family == "sample" else pictures(2)
    calibration = calibrate(raw.model, raw.spec, images, "tensorrt")
    model = int8_from_fp32(raw.model, calibration.ranges, "tensorrt")
    assert build(bytes_from_model(model, family)) > 0
    target = Target("int8", "end2end", "portable", deployment="tensorrt")
    model = add_end2end(model, raw.spec, NmsSettings(), target)
    assert build(bytes_from_model(model, family)) > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", _MAKERS)
def test_portable_end2end_graphs_build(tmp_path, family, precision):
    raw = raw_model(tmp_path, family)
    model = fp16_from_fp32(raw.model) if precision == "fp16" else raw.model
    target = Target(precision, "end2end", "portable")
    model = add_end2end(model, raw.spec, NmsSettings(), target)
    assert build(bytes_from_model(model, family)) > 0
