"""Counted parameters and operations, by hand and against the figures that the projects print."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models
from onnx import TensorProto, helper, numpy_helper

from boxwright.graph.flops import count_flops, count_parameters


def _model(nodes, weights, input_shape, *, outputs=("y",)) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in weights.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def _node(kind, *inputs, output="y", **attributes):
    return helper.make_node(kind, list(inputs), [output], **attributes)


# name: (nodes, weights, input shape, parameters, operations)
BY_HAND = {
    "conv": (
        [_node("Conv", "x", "w", "b", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])],
        {"w": (16, 3, 3, 3), "b": (16,)},
        ["n", 3, 32, 32],
        16 * 27 + 16,
        2 * 16 * 16 * 16 * 27,
    ),
    "depthwise": (
        [_node("Conv", "x", "w", kernel_shape=[3, 3], pads=[1] * 4, group=8)],
        {"w": (8, 1, 3, 3)},
        ["n", 8, 10, 10],
        72,
        2 * 8 * 100 * 9,
    ),
    "transposed": (
        [_node("ConvTranspose", "x", "w", kernel_shape=[2, 2], strides=[2, 2])],
        {"w": (4, 6, 2, 2)},
        [1, 4, 5, 5],
        96,
        2 * (4 * 25) * (6 * 4),
    ),
    "gemm": (
        [_node("Gemm", "x", "w", "b", transB=1)],
        {"w": (7, 5), "b": (7,)},
        ["n", 5],
        42,
        2 * 5 * 7,
    ),
    "matmul": (
        [_node("MatMul", "x", "w")],
        {"w": (5, 7)},
        ["n", 3, 5],
        35,
        2 * 3 * 5 * 7,
    ),
    "attention has no weights": (
        [
            _node("Transpose", "x", output="t", perm=[0, 2, 1]),
            _node("MatMul", "x", "t"),
        ],
        {},
        ["n", 6, 4],
        0,
        2 * 6 * 4 * 6,
    ),
    "fixed batch is shared out": (
        [_node("Conv", "x", "w", kernel_shape=[1, 1])],
        {"w": (2, 3, 1, 1)},
        [8, 3, 4, 4],
        6,
        2 * 2 * 16 * 3,
    ),
    "shared weights count once, merged biases twice": (
        [
            _node("Conv", "x", "w", "b", output="a", kernel_shape=[1, 1]),
            _node("Conv", "a", "w", "b", output="c", kernel_shape=[1, 1]),
            _node("Conv", "c", "v", "b", kernel_shape=[1, 1]),
        ],
        {"w": (3, 3, 1, 1), "v": (3, 3, 1, 1), "b": (3,)},
        ["n", 3, 2, 2],
        2 * (9 + 3),
        3 * 2 * 12 * 3,
    ),
    "other constants": (
        [_node("Mul", "x", "grid")],
        {"grid": (1, 3, 4, 4)},
        ["n", 3, 4, 4],
        0,
        0,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    nodes, weights, shape, parameters, operations = BY_HAND[name]
    model = _model(nodes, weights, shape)
    before = model.SerializeToString(deterministic=True)
    assert count_parameters(model) == parameters
    assert count_flops(model) == operations
    assert model.SerializeToString(deterministic=True) == before, "counting changes nothing"


def test_shapes_that_cannot_be_told():
    node = _node("Conv", "x", "w", kernel_shape=[1, 1])
    assert count_flops(_model([node], {"w": (2, 3, 1, 1)}, ["n", 3, "h", "w"])) is None


def test_precision_changes_no_count(tmp_path):
    from boxwright.graph.precision import fp16_from_fp32

    model = onnx.load(tiny_models.ultralytics_onnx(tmp_path / "tiny.onnx"))
    half = fp16_from_fp32(model)
    assert count_parameters(half) == count_parameters(model) > 1000
    assert count_flops(half) == count_flops(model) > 100_000


ASSETS = Path(
    os.environ.get("BOXWRIGHT_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
)
# file: (parameters M, FLOPs G) as the projects print them
RELEASED = {"yolov5n_v7_fp32_upcast.onnx": (1.9, 4.5), "yolox_nano_416_static.onnx": (0.91, 1.08)}


@pytest.mark.parametrize("name", RELEASED)
def test_released_files(name):
    path = ASSETS / "onnx" / name
    if not path.is_file():
        pytest.skip("NOT TESTED, BOXWRIGHT_ASSETS names no folder with real weights")
    model, (parameters, operations) = onnx.load(path), RELEASED[name]
    assert count_parameters(model) / 1e6 == pytest.approx(parameters, abs=0.05)
    assert count_flops(model) / 1e9 == pytest.approx(operations, abs=0.06)


# configuration: (parameters M, FLOPs G) of Ultralytics' own model tables
CONFIGURATIONS = {"yolov8n": (3.2, 8.7), "yolo11n": (2.6, 6.5)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("yolov8n", marks=pytest.mark.long), "yolo11n"])
def test_configurations(name, tmp_path):
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("NOT TESTED, ultralytics is not installed")
    from boxwright.contenders import entries_from_texts

    entry = entries_from_texts([f"{name}.yaml"], ["onnxruntime"], tmp_path)[0]
    assert (entry.name, entry.random_weights) == (name, True)
    model, (parameters, operations) = onnx.load(entry.path), CONFIGURATIONS[name]
    assert round(count_parameters(model) / 1e6, 1) == parameters
    assert round(count_flops(model) / 1e9, 1) == operations
