"""A graph that maps the boxes of end-to-end files to source pixels, for ensembles.

A graph rather than Python: behind DALI and a plan no request then waits for an interpreter.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, checker, helper

from boxwright.graph.builder import GraphBuilder
from boxwright.graph.io import bytes_from_model
from boxwright.serve.steps import PLACEMENT_VALUES

__all__ = ["INPUT_BOXES", "to_source_bytes"]

INPUT_BOXES = "input_boxes"
_OPSET = 17
_IR = 8  # ONNX Runtime of 2022 reads it


def to_source_bytes() -> bytes:
    """Return an ONNX file: (N, K, 4) boxes in input pixels and (N, 6) placements to source pixels.

    The rules are those of `boxwright.preprocess.source_from_input`: clipped to the picture. Empty
    rows of zeros stay zeros.
    """
    graph = helper.make_graph(
        [],
        "to_source",
        [
            helper.make_tensor_value_info(INPUT_BOXES, TensorProto.FLOAT, ["batch", "count", 4]),
            helper.make_tensor_value_info(
                "placement", TensorProto.FLOAT, ["batch", PLACEMENT_VALUES]
            ),
        ],
        [helper.make_tensor_value_info("det_boxes", TensorProto.FLOAT, ["batch", "count", 4])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="boxwright"
    )
    model.ir_version = _IR
    b = GraphBuilder(model, "to_source")
    rows = b.unsqueeze("placement", 1)  # (N, 1, 6): resized w, h; left, top; source w, h
    resized, corner, source = (b.slice(rows, 2, at, at + 2) for at in (0, 2, 4))
    scale = b.op("Div", resized, source)
    twice = [b.op("Concat", pair, pair, axis=2) for pair in (scale, corner, source)]
    moved = b.op("Div", b.op("Sub", INPUT_BOXES, twice[1]), twice[0])
    above = b.op("Max", moved, b.constant(0.0, np.float32))
    b.name_output(b.op("Min", above, twice[2]), "det_boxes")
    checker.check_model(model, full_check=True)
    return bytes_from_model(model, "to_source")
