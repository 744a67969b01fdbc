"""A graph's operators and inputs, read without the onnx package: as that reads them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from boxwright.errors import BackendError
from boxwright.onnx_fields import Sizes, read_graph
from boxwright.ort_providers import facts_of_graph
from boxwright.sample import onnx_file


def by_onnx(model: Path | bytes) -> tuple[frozenset[str], dict[str, Sizes]]:
    """Return what the onnx package reads; raises what it raises."""
    if isinstance(model, bytes):
        graph = onnx.load_model_from_string(model).graph
    else:
        graph = onnx.load(str(model), load_external_data=False).graph
    constants = {i.name for i in graph.initializer}
    return frozenset(n.op_type for n in graph.node), {
        v.name: tuple(
            d.dim_value if d.HasField("dim_value") else (d.dim_param or None)
            for d in v.type.tensor_type.shape.dim
        )
        for v in graph.input
        if v.name not in constants
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The sample as raw, end-to-end, picture and FP16 files."""
    from boxwright.pipeline import run
    from boxwright.recipe import recipe_from_mapping

    recipe = recipe_from_mapping(
        {
            "source": str(onnx_file()),
            "targets": [
                {"outputs": "raw", "precision": "fp16"},
                {"outputs": "end2end"},
                {"outputs": "end2end", "input": "image"},
                {"outputs": "end2end", "nms": "portable", "precision": "fp16"},
            ],
            "verify": False,
            "measure": {"latency": False, "accuracy": False},
        },
        "test",
    )
    return run(recipe, tmp_path_factory.mktemp("runs")).folder


def test_real_files_are_read_as_onnx_reads_them(files):
    found = [onnx_file(), *sorted(files.glob("*.onnx"))]
    assert len(found) >= 5
    for file in found:
        assert read_graph(file) == by_onnx(file), file.name
        assert read_graph(file.read_bytes()) == by_onnx(file), file.name
    assert read_graph(onnx_file())[1]["images"][1:] == (3, 640, 640)
    operators = {file.name: read_graph(file)[0] for file in found}
    assert any("NonMaxSuppression" in o for o in operators.values())


def info(name: str, shape: list[int | str | None] | None, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def branches() -> onnx.ModelProto:
    """An If and a Loop, whose bodies hold operators of their own, and a local function."""
    then = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["z"]), helper.make_node("Cast", ["z"], ["y"], to=1)],
        "then", [], [info("y", None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["y"])], "else", [], [info("y", None)]
    )
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["v"], ["w"])],
        "body",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("v", None)],
        [info("on", [], TensorProto.BOOL), info("w", None)],
    )
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("If", ["c"], ["p"], then_branch=then, else_branch=other),
                helper.make_node("Loop", ["n", "c", "p"], ["q"], body=body),
                helper.make_node("Twice", ["q"], ["r"], domain="own"),
            ],
            "g",
            [info("x", ["batch", None, 3]), info("c", [], TensorProto.BOOL), info("n", [1])],
            [info("r", None)],
            initializer=[helper.make_tensor("n", TensorProto.INT64, [1], [2])],
        ),
        functions=[function],
    )


def quantised() -> onnx.ModelProto:
    """Q/DQ around a convolution, with weights as raw data, lists and packed numbers."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "o"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "o"], ["d"]),
        helper.make_node("Conv", ["d", "w"], ["y"]),
    ]
    weights = np.ones((2, 3, 3, 3), np.float32)
    given = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [0.5]),
        helper.make_tensor("o", TensorProto.INT8, [], [-3]),
        numpy_helper.from_array(weights, "w"),
    ]
    inputs = [info("x", ["n", 3, 8, -1]), info("w", [2, 3, 3, 3])]  # a weight may be an input, too
    return helper.make_model(helper.make_graph(nodes, "g", inputs, [info("y", None)], given))


def others() -> onnx.ModelProto:
    """Inputs that are no tensors, and one without a shape."""
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1, 2])
    node = helper.make_node("Identity", ["x"], ["y"])
    return helper.make_model(
        helper.make_graph([node], "größe", [sequence, info("x", None)], [info("y", None)])
    )


@pytest.mark.parametrize("make", [branches, quantised, others])
def test_made_graphs_are_read_as_onnx_reads_them(make):
    data = make().SerializeToString()
    assert read_graph(data) == by_onnx(data)


def test_what_the_providers_ask_for():
    facts = facts_of_graph(branches().SerializeToString(), "b")
    assert facts.operators == {"If", "Loop", "Twice"} and facts.depends_on_data
    assert facts.inputs == {"x": ("batch", None, 3), "c": ()} and not facts.is_fixed
    assert facts_of_graph(quantised().SerializeToString(), "q").quantised


def test_weights_beside_the_file_are_not_needed(tmp_path):
    file = tmp_path / "a.onnx"
    onnx.save(
        quantised(), file, save_as_external_data=True, location="a.data", size_threshold=0
    )  # fmt: skip
    (tmp_path / "a.data").unlink()
    assert read_graph(file) == by_onnx(file)


def test_every_cut_is_refused_where_onnx_refuses_it():
    data = quantised().SerializeToString()
    refused = 0
    for end in range(len(data)):
        try:
            wanted = by_onnx(data[:end])
        except Exception:  # noqa: BLE001 - whatever onnx raises
            refused += 1
            with pytest.raises(BackendError, match=r"it is no ONNX model .*; check the file"):
                facts_of_graph(data[:end], "cut.onnx")
        else:
            assert read_graph(data[:end]) == wanted
    assert refused > len(data) // 2


@pytest.mark.parametrize(
    "data",
    [b"no graph", b"\x3a\x05abc", b"\xff" * 20, b"\x3b", b"\x3a\x03\x0a\x01\xff", b"<html>\n" * 9],
    ids=["text", "cut off", "endless number", "group", "name that is no text", "page"],
)
def test_garbage_is_refused(data, tmp_path):
    file = tmp_path / "bad.onnx"
    file.write_bytes(data)
    for model in (data, file):
        with pytest.raises(BackendError, match=r"it is no ONNX model .*; check the file"):
            facts_of_graph(model, "bad.onnx")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(BackendError, match="it is no ONNX model"):
            facts_of_graph(path, "none.onnx")


def test_a_file_of_more_than_2_gb_is_read_without_its_weights(tmp_path):
    """More than onnx itself reads; the weights are a hole in the file."""
    size = 2_200_000_000
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [info("x", ["n", 3])], [info("y", None)]
    ).SerializeToString()
    tensor = b"\x42\x01w" + b"\x4a" + varint(size)  # name, and raw_data that follows
    inner = b"\x2a" + varint(len(tensor) + size) + tensor
    file = tmp_path / "large.onnx"
    with file.open("wb") as out:
        out.write(b"\x3a" + varint(len(graph) + len(inner) + size) + graph + inner)
        out.truncate(out.tell() + size)
    if file.stat().st_blocks * 512 > 1_000_000:
        pytest.skip("files have no holes here")
    assert read_graph(file) == (frozenset({"Identity"}), {"x": ("n", 3)})


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def test_the_onnx_package_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "Conv" in facts_of_graph(onnx_file(), "sample").operators
