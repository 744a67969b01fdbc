"""Tiny ONNX detectors of the known families, made in milliseconds from a seed.

Each has a few seeded convolutions, the head and decode of its family, and scores that exceed the
thresholds for a few dozen anchors of the pictures of `pictures()`. They see nothing real: equal
input gives equal output, which is what tests of conversion, verification and detection need.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = [
    "CLASS_NAMES",
    "nms_free_onnx",
    "picture",
    "pictures",
    "ultralytics_onnx",
    "yolov5_onnx",
    "yolox_onnx",
]

CLASS_NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")
STRIDES = (8, 16, 32)
_WIDTH = 8  # channels of every inner layer

Array = npt.NDArray[np.float32]


def picture(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return an (H, W, 3) uint8 picture of coarse coloured blocks with a little noise."""
    rng = np.random.default_rng(seed)
    cell = max(1, min(height, width) // 5)
    rows, columns = -(-height // cell), -(-width // cell)
    coarse = rng.integers(0, 256, (rows, columns, 3), np.uint8)
    blocks = coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width].astype(np.int16)
    noisy = blocks + rng.integers(-12, 13, blocks.shape, np.int16)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def pictures(count: int = 3, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Return pictures of different sizes."""
    sizes = ((64, 64), (90, 120), (150, 70), (48, 200))
    return [picture(*sizes[i % len(sizes)], seed + i) for i in range(count)]


class _Graph:
    """Collects nodes and weights; every method returns the name of a tensor."""

    def __init__(self, size: int, seed: int, pixel_range: float) -> None:
        self.size = size
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)
        self._input_gain = 1.0 / pixel_range

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}_{kind}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def store(self, values: npt.NDArray[np.generic]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def floats(self, *values: float) -> str:
        return self.store(np.array(values, np.float32))

    def shape(self, tensor: str, *shape: int) -> str:
        return self.op("Reshape", tensor, self.store(np.array(shape, np.int64)))

    def columns(self, tensor: str, start: int, stop: int, axis: int) -> str:
        bounds = [self.store(np.array([v], np.int64)) for v in (start, stop, axis)]
        return self.op("Slice", tensor, *bounds)

    def conv(
        self,
        tensor: str,
        inner: int,
        outer: int,
        *,
        side: int = 3,
        stride: int = 2,
        gain: npt.ArrayLike = 1.0,
        bias: npt.ArrayLike = 0.0,
    ) -> str:
        gains = np.broadcast_to(np.asarray(gain) / np.sqrt(inner * side * side), (outer,))
        weights = self.rng.normal(0.0, 1.0, (outer, inner, side, side))
        weights = (weights * gains[:, None, None, None]).astype(np.float32)
        # Weights without a mean: flat regions stay near zero, so that scores depend on content.
        weights -= weights.mean(axis=(1, 2, 3), keepdims=True)
        biases = np.broadcast_to(np.asarray(bias, np.float32), (outer,))
        return self.op(
            "Conv", tensor, self.store(weights), self.store(biases),
            kernel_shape=[side, side], strides=[stride, stride], pads=[side // 2] * 4,
        )  # fmt: skip

    def levels(self) -> list[str]:
        """Return feature maps of strides 8, 16 and 32 with `_WIDTH` channels."""
        tensor = self.op("Mul", "images", self.floats(self._input_gain))
        maps = []
        for index in range(5):
            tensor = self.conv(tensor, 3 if index == 0 else _WIDTH, _WIDTH, gain=3.0)
            tensor = self.op("Tanh", tensor)
            if index >= 2:
                maps.append(tensor)
        return maps

    def grid(self, per_cell: int = 1) -> tuple[Array, Array]:
        """Return cell positions (x, y) and strides of every anchor, each (A, 2) float32."""
        places, strides = [], []
        for stride in STRIDES:
            side = self.size // stride
            y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
            cells = np.tile(np.stack([x.ravel(), y.ravel()], 1), (per_cell, 1))
            places.append(cells)
            strides.append(np.full_like(cells, stride))
        return (
            np.concatenate(places).astype(np.float32),
            np.concatenate(strides).astype(np.float32),
        )


def _write(
    g: _Graph, path: Path | str, output: str, name: str, shape: list[int | str],
    batch: int | str, opset: int, metadata: dict[str, str],
) -> Path:  # fmt: skip
    g.nodes[-1].output[0] = name
    assert g.nodes[-1].name == output
    graph = helper.make_graph(
        g.nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, g.size, g.size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])],
        g.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    model.producer_name = "tiny_models"
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    path = Path(path)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _names(classes: int) -> tuple[str, ...]:
    more = tuple(f"thing{i}" for i in range(len(CLASS_NAMES), classes))
    return (*CLASS_NAMES, *more)[:classes]


def _metadata(classes: int, size: int, batch: int | str, **more: str) -> dict[str, str]:
    """Return metadata as Ultralytics writes it."""
    return {
        "description": "Ultralytics YOLO11n model trained on tiny.yaml",
        "author": "Ultralytics",
        "version": "8.4.190",
        "stride": "32",
        "task": "detect",
        "batch": str(batch if isinstance(batch, int) else 1),
        "imgsz": repr([size, size]),
        "names": repr(dict(enumerate(_names(classes)))),
        **more,
    }


def _fused_head(g: _Graph, classes: int, offset: float) -> str:
    """Return boxes and logits of all anchors: (B, 4 + classes, A)."""
    parts = []
    gain = [1.0] * 4 + [4.0] * classes
    bias = [0.0] * 4 + [offset] * classes
    for level in g.levels():
        joint = g.conv(level, _WIDTH, 4 + classes, side=1, stride=1, gain=gain, bias=bias)
        parts.append(g.shape(joint, 0, 4 + classes, -1))
    return g.op("Concat", *parts, axis=2)


def _ultralytics_decode(g: _Graph, classes: int, offset: float) -> tuple[str, str, str]:
    """Return x1y1, x2y2 (B, 2, A) in pixels and scores (B, classes, A)."""
    joint = _fused_head(g, classes, offset)
    reach = g.op("Sigmoid", g.columns(joint, 0, 4, 1))
    cells, strides = g.grid()
    # In cells: large beside the steps of the fine grid, so that NMS has something to suppress.
    span = g.store((16.0 / strides.T[:1])[None].repeat(4, 1))
    reach = g.op("Mul", g.op("Add", reach, g.floats(1.0)), span)
    centres, stride = g.store((cells.T + 0.5)[None]), g.store(strides.T[None])
    low = g.op("Mul", g.op("Sub", centres, g.columns(reach, 0, 2, 1)), stride)
    high = g.op("Mul", g.op("Add", centres, g.columns(reach, 2, 4, 1)), stride)
    return low, high, g.op("Sigmoid", g.columns(joint, 4, 4 + classes, 1))


def ultralytics_onnx(
    path: Path | str,
    *,
    classes: int = 3,
    size: int = 64,
    batch: str | int = "batch",
    opset: int = 17,
    seed: int = 0,
    offset: float = -3.0,
) -> Path:
    """Write a raw head (B, 4 + classes, A) as Ultralytics' anchor-free models have it.

    Args:
        path: File to write.
        classes: Number of classes.
        size: Side of the input in pixels, a multiple of 32.
        batch: Fixed, or the name of the dynamic dimension.
        opset: ONNX operator set.
        seed: Of the weights.
        offset: Added to every class logit; -50 makes a model that detects nothing.
    """
    g = _Graph(size, seed, 1.0)
    low, high, scores = _ultralytics_decode(g, classes, offset)
    centre = g.op("Mul", g.op("Add", low, high), g.floats(0.5))
    output = g.op("Concat", centre, g.op("Sub", high, low), scores, axis=1)
    anchors = sum((size // s) ** 2 for s in STRIDES)
    return _write(
        g, path, output, "output0", [4 + classes, anchors], batch, opset,
        _metadata(classes, size, batch),
    )  # fmt: skip


def nms_free_onnx(
    path: Path | str,
    *,
    classes: int = 3,
    size: int = 64,
    batch: str | int = "batch",
    opset: int = 17,
    seed: int = 0,
    offset: float = -3.0,
    rows: int = 40,
) -> Path:
    """Write an NMS-free head (B, rows, 6) as YOLOv10 and YOLO26 have it."""
    g = _Graph(size, seed, 1.0)
    low, high, scores = _ultralytics_decode(g, classes, offset)
    boxes = g.op("Transpose", g.op("Concat", low, high, axis=1), perm=[0, 2, 1])
    scores = g.op("Transpose", scores, perm=[0, 2, 1])
    if opset < 18:
        best = g.op("ReduceMax", scores, axes=[2], keepdims=1)
    else:  # the axes became an input
        best = g.op("ReduceMax", scores, g.store(np.array([2], np.int64)), keepdims=1)
    label = g.op("ArgMax", scores, axis=2, keepdims=1)
    label = g.op("Cast", label, to=TensorProto.FLOAT)
    every = g.op("Concat", boxes, best, label, axis=2)
    flat = g.shape(best, 0, -1)
    name = "chosen"
    g.nodes.append(
        helper.make_node(
            "TopK", [flat, g.store(np.array([rows], np.int64))], [f"{name}_v", f"{name}_i"], name,
            axis=1, largest=1, sorted=1,
        )
    )  # fmt: skip
    index = g.op("Expand", g.shape(f"{name}_i", 0, -1, 1), g.store(np.array([1, 1, 6], np.int64)))
    output = g.op("GatherElements", every, index, axis=1)
    return _write(
        g, path, output, "output0", [rows, 6], batch, opset,
        _metadata(classes, size, batch, end2end="True"),
    )  # fmt: skip


def yolox_onnx(
    path: Path | str,
    *,
    classes: int = 3,
    size: int = 64,
    batch: str | int = "batch",
    opset: int = 17,
    seed: int = 0,
    offset: float = -0.5,
) -> Path:
    """Write YOLOX's official export: (B, A, 5 + classes), boxes undecoded, no metadata."""
    g = _Graph(size, seed, 255.0)
    parts = []
    for level in g.levels():
        boxes = g.conv(level, _WIDTH, 4, side=1, stride=1, gain=0.8, bias=[0.5, 0.5, 0.6, 0.6])
        bias = [0.5] + [offset] * classes
        rest = g.conv(level, _WIDTH, 1 + classes, side=1, stride=1, gain=4.0, bias=bias)
        joint = g.op("Concat", boxes, g.op("Sigmoid", rest), axis=1)
        parts.append(g.shape(joint, 0, 5 + classes, -1))
    output = g.op("Transpose", g.op("Concat", *parts, axis=2), perm=[0, 2, 1])
    anchors = sum((size // s) ** 2 for s in STRIDES)
    return _write(g, path, output, "output", [anchors, 5 + classes], batch, opset, {})


def yolov5_onnx(
    path: Path | str,
    *,
    classes: int = 3,
    size: int = 64,
    batch: str | int = "batch",
    opset: int = 17,
    seed: int = 0,
    offset: float = -3.0,
) -> Path:
    """Write YOLOv5's decoded export: (B, 3 * cells, 5 + classes), no names."""
    g = _Graph(size, seed, 1.0)
    shapes = {8: ((1.2, 1.6), (2.0, 3.7), (4.1, 2.9)), 16: ((1.9, 3.8), (3.9, 2.8), (3.7, 7.4)),
              32: ((3.6, 2.8), (4.9, 6.2), (11.7, 10.2))}  # fmt: skip
    width = 5 + classes
    parts = []
    for level in g.levels():
        bias = ([0.0] * 4 + [0.5] + [offset] * classes) * 3
        gain = ([1.0] * 4 + [3.0] + [4.0] * classes) * 3
        joint = g.conv(level, _WIDTH, 3 * width, side=1, stride=1, gain=gain, bias=bias)
        split = g.shape(joint, 0, 3, width, -1)
        parts.append(g.shape(g.op("Transpose", split, perm=[0, 1, 3, 2]), 0, -1, width))
    every = g.op("Sigmoid", g.op("Concat", *parts, axis=1))
    cells, strides = g.grid(per_cell=3)
    sizes = np.concatenate(
        [np.repeat(np.array(shapes[s], np.float32) * 8, (size // s) ** 2, axis=0) for s in STRIDES]
    )
    centre = g.op("Mul", g.columns(every, 0, 2, 2), g.floats(2.0))
    centre = g.op("Mul", g.op("Add", centre, g.store((cells - 0.5)[None])), g.store(strides[None]))
    extent = g.columns(every, 2, 4, 2)
    extent = g.op("Mul", g.op("Mul", extent, extent), g.store(sizes[None]))
    output = g.op("Concat", centre, extent, g.columns(every, 4, width, 2), axis=2)
    return _write(
        g, path, output, "output0", [len(cells), width], batch, opset,
        {"stride": "32", "names": repr(dict(enumerate(_names(classes))))},
    )  # fmt: skip
