"""Puts preprocessing into a graph: uint8 pictures in, boxes in source pixels out.

The rules are those of `boxwright.preprocess`, which is OpenCV's bilinear resize in its fixed-point
arithmetic (11 bits of weight), so that pictures differ by a grey level at most. Pixels are picked
by index rather than by Resize: then every size behind the picks is fixed, even where the picture's
is free, and no runtime has a say in how coordinates are rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from boxwright.errors import GraphError, RequestError
from boxwright.graph.builder import GraphBuilder
from boxwright.graph.placement import Placed, add_placement, divide
from boxwright.graph.shapes import real_inputs
from boxwright.preprocess import Placement, place
from boxwright.types import ImageLayout, ModelSpec, Preprocess, Target

__all__ = [
    "IMAGE",
    "NETWORK_INPUT",
    "add_image_input",
    "check_preprocess",
    "with_network_input",
]

IMAGE = "image"
NETWORK_INPUT = "network_input"  # the tensor that preprocessing ends in
_BOXES = "det_boxes"
_UNIT = 1 << 11  # of the weights of OpenCV's INTER_LINEAR on 8-bit pictures
_AXES: dict[ImageLayout, tuple[int, int]] = {"nhwc": (1, 2), "nchw": (2, 3)}


def check_preprocess(rules: Preprocess, what: str) -> None:
    """Refuse preprocessing that a graph cannot do.

    Raises:
        RequestError: It resizes with another filter than bilinear, or cuts the centre out.
    """
    if rules.resize == "crop":
        raise RequestError(
            f"{what} --input image",
            "its pictures are scaled with antialiasing and cropped, which the graph cannot do",
            "use --input tensor",
        )
    if rules.interpolation != "linear":
        raise RequestError(
            f"{what} --input image",
            f"its pictures are resized with the {rules.interpolation} filter, the graph has "
            "bilinear only",
            "use --input tensor",
        )


def add_image_input(model: onnx.ModelProto, spec: ModelSpec, target: Target) -> onnx.ModelProto:
    """Return a copy of a raw or end-to-end graph whose input is pictures.

    Input: `image` uint8, (N, H, W, 3) or (N, 3, H, W) as `target.image_layout` says, channels in
    the order `target.image_color`; H and W are `target.source_size`, or free up to
    `LONGEST_SIDE_PX`. det_boxes of an end-to-end graph are in source pixels, clipped to the
    picture; a raw head stays in input pixels.

    Args:
        model: Graph whose only input without a default is `images` (N, 3, h, w) float32.
        spec: The model; `spec.preprocess` says what is done.
        target: What is asked for.

    Raises:
        RequestError: The preprocessing is none that a graph can do.
        GraphError: The graph's input is another.
    """
    check_preprocess(spec.preprocess, spec.name)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    network_input = _network_input(result, spec)
    body = [_renamed(n, network_input.name, NETWORK_INPUT) for n in result.graph.node]
    del result.graph.node[:]
    b = GraphBuilder(result, IMAGE)
    axes = _AXES[target.image_layout]
    pixels = b.as_float(IMAGE)  # first of all: TensorRT does nothing else with uint8
    rules, size = spec.preprocess, spec.input_size
    if target.source_size is not None:
        fixed = place(target.source_size, size, rules)
        placed = None
        grey = _fixed_grey(b, pixels, axes, fixed, size, rules)
        mapping = _fixed_mapping(b, fixed)
    else:
        placed = add_placement(b, _sides(b, pixels, axes), size, rules)
        grey = _free_grey(b, pixels, axes, placed, size, rules)
        mapping = _free_mapping(b, placed)
    _normalise(b, grey, spec, target)
    front = list(result.graph.node)
    del result.graph.node[:]
    result.graph.node.extend([*front, *body])
    if target.outputs == "end2end":
        _map_boxes(b, mapping)
    _declare_input(result, network_input, target)
    del result.graph.value_info[:]
    return result


def with_network_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of an image-input graph that also returns `NETWORK_INPUT`, as its last output.

    For verification.

    Raises:
        GraphError: There is no such tensor.
    """
    if all(NETWORK_INPUT not in node.output for node in model.graph.node):
        raise GraphError(NETWORK_INPUT, "the graph computes no such tensor", "export it again")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    sides: list[int | str] = ["batch", 3, "input_height", "input_width"]
    copy.graph.output.append(helper.make_tensor_value_info(NETWORK_INPUT, TensorProto.FLOAT, sides))
    return copy


def _renamed(node: onnx.NodeProto, old: str, new: str) -> onnx.NodeProto:
    """Return a copy of a node that reads a tensor by another name."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for position, name in enumerate(copy.input):
        if name == old:
            copy.input[position] = new
    return copy


def _network_input(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ValueInfoProto:
    """Return the tensor that the network takes, after a look at its type."""
    inputs = real_inputs(model.graph)
    kinds = [i.type.tensor_type.elem_type for i in inputs]
    if kinds != [TensorProto.FLOAT]:
        raise GraphError(
            f"image input of {spec.name}",
            f"the graph takes {', '.join(i.name for i in inputs)}, not one float32 tensor",
            "give the graph of a detector that takes one",
        )
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(inputs[0])
    return kept


def _declare_input(
    model: onnx.ModelProto, network_input: onnx.ValueInfoProto, target: Target
) -> None:
    """Put `image` in the place of the network's input, first of all."""
    first = network_input.type.tensor_type.shape.dim[0]
    batch: int | str = first.dim_value if first.HasField("dim_value") else first.dim_param
    sides: tuple[int | str, int | str] = target.source_size or ("height", "width")
    shape: list[int | str] = [batch or "batch", sides[0], sides[1]]
    shape.insert(3 if target.image_layout == "nhwc" else 1, 3)
    others = [i for i in model.graph.input if i.name != network_input.name]
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, shape))
    model.graph.input.extend(others)


def _sides(b: GraphBuilder, pixels: str, axes: tuple[int, int]) -> tuple[str, str]:
    """Return the picture's height and width, int32 (1,)."""
    shape = b.op("Shape", pixels)
    height, width = (b.as_int32(b.op("Gather", shape, b.ints(a), axis=0)) for a in axes)
    return height, width


# -- resampling


@dataclass(frozen=True, slots=True)
class _Taps:
    """Names: of one side, which two source pixels each result is made of, and their weights.

    Attributes:
        first, second: Positions, (length,) int.
        first_weight, second_weight: float32, along their axis of four; see `_resample`.
    """

    first: str
    second: str
    first_weight: str
    second_weight: str


def _shape_of(axis: int, axes: tuple[int, int]) -> list[int]:
    """Return how weights lie along an axis; those of columns are repeated for channels that follow.

    Runtimes on CPUs are slow at broadcasting along a last axis of three.
    """
    shape = [-1 if a == axis else 1 for a in range(4)]
    if axis == axes[1] and axis != 3:
        shape[3] = 3
    return shape


def _steps(axis: int, axes: tuple[int, int]) -> float:
    """Return what weights of 11 bits are multiplied by: the bits that are dropped behind them."""
    return 2.0**-16 if axis == axes[0] else 2.0**-4


def _fixed_taps(
    b: GraphBuilder, source: int, resized: int, axis: int, axes: tuple[int, int]
) -> _Taps:
    positions = np.arange(resized, dtype=np.int64)
    numerator = np.maximum((2 * positions + 1) * source - resized, 0)
    first, rest = np.divmod(numerator, 2 * resized)
    fraction = np.where(first >= source - 1, 0.0, rest / (2 * resized))
    first = np.minimum(first, source - 1)
    shape = _shape_of(axis, axes)
    line = [resized if n == -1 else 1 for n in shape]
    weights = []
    for part in (1 - fraction, fraction):
        weight = np.rint(part * _UNIT) * _steps(axis, axes)
        full = np.broadcast_to(
            weight.reshape(line), [max(n, k) for n, k in zip(line, shape, strict=True)]
        )
        weights.append(b.constant(np.ascontiguousarray(full), np.float32))
    second = b.constant(np.minimum(first + 1, source - 1), np.int64)
    return _Taps(b.constant(first, np.int64), second, *weights)


def _free_taps(
    b: GraphBuilder,
    side: tuple[str, str, str],
    length: int,
    axis: int,
    axes: tuple[int, int],
) -> tuple[_Taps, str]:
    """Return the taps of every position of the network input, and which of them show the picture.

    Source coordinate of position x: ((2 (x - offset) + 1) source - resized) / (2 resized). Weights
    outside the picture are 0.

    Args:
        b: Builder of the graph.
        side: Names of source, resized and offset, int32 (1,).
        length: Of the network input.
        axis, axes: Of this side; of height and width.

    Returns:
        The taps, and 1 where the picture is and 0 elsewhere, float32 along the axis.
    """
    source, resized, offset = side
    zero, one = b.constant([0], np.int32), b.constant([1], np.int32)
    positions = b.op("Sub", b.constant(np.arange(length), np.int32), offset)
    odd = b.op("Add", b.op("Add", positions, positions), one)
    numerator = b.op("Sub", b.op("Mul", odd, source), resized)
    numerator = b.op("Where", b.op("Less", numerator, zero), zero, numerator)
    divisor = b.op("Add", resized, resized)
    whole, rest = divide(b, numerator, divisor)
    fraction = b.op("Div", b.as_float(rest), b.as_float(divisor))
    last = b.op("Sub", source, one)
    before = b.op("Less", whole, last)  # others lie on the last pixel or behind it
    first = b.op("Where", before, whole, last)
    second = b.op("Where", before, b.op("Add", whole, one), last)
    fraction = b.op("Mul", fraction, b.as_float(before))
    behind = b.op("Less", positions, zero)
    inside = b.as_float(b.op("And", b.op("Not", behind), b.op("Less", positions, resized)))
    unit, step = b.constant(_UNIT, np.float32), b.constant(_steps(axis, axes), np.float32)
    weights = []
    for part in (b.op("Sub", b.constant(1, np.float32), fraction), fraction):
        weight = b.op("Mul", b.op("Round", b.op("Mul", part, unit)), step)
        weights.append(_along(b, b.op("Mul", weight, inside), axis, axes))
    return _Taps(first, second, *weights), _along(b, inside, axis, axes)


def _along(b: GraphBuilder, vector: str, axis: int, axes: tuple[int, int]) -> str:
    """Lay a vector along its axis of four, as `_shape_of` says."""
    shape = _shape_of(axis, axes)
    line = b.op("Reshape", vector, b.ints(*(n if n == -1 else 1 for n in shape)))
    if max(shape) == 1:
        return line
    return b.op("Expand", line, b.ints(*(max(n, 1) for n in shape)))


def _resample(
    b: GraphBuilder, pixels: str, axes: tuple[int, int], rows: _Taps, columns: _Taps
) -> str:
    """Append OpenCV's bilinear resize of 8-bit pictures; the result holds whole grey levels.

    Its arithmetic (VResizeLinearVec_32s8u), with weights in units of 2**-11: sums of a row lose
    their last 4 bits, products with a row's weight 16 bits, and the sum of two is rounded by its
    last 2 bits. The weights hold these divisions.
    """
    vertical, horizontal = axes
    sums = []
    for row, weight in ((rows.first, rows.first_weight), (rows.second, rows.second_weight)):
        line = b.op("Gather", pixels, row, axis=vertical)
        left = b.op("Gather", line, columns.first, axis=horizontal)
        right = b.op("Gather", line, columns.second, axis=horizontal)
        total = b.op(
            "Add",
            b.op("Mul", left, columns.first_weight),
            b.op("Mul", right, columns.second_weight),
        )
        sums.append(b.op("Floor", b.op("Mul", b.op("Floor", total), weight)))
    total = b.op("Add", b.op("Add", *sums), b.constant(2, np.float32))
    return b.op("Floor", b.op("Mul", total, b.constant(0.25, np.float32)))


def _fixed_grey(
    b: GraphBuilder,
    pixels: str,
    axes: tuple[int, int],
    where: Placement,
    size: tuple[int, int],
    rules: Preprocess,
) -> str:
    """Return the resized and padded picture of a known size, in grey levels."""
    if where.resized_size != where.source_size:
        rows, columns = (
            _fixed_taps(b, s, r, axis, axes)
            for s, r, axis in zip(where.source_size, where.resized_size, axes, strict=True)
        )
        pixels = _resample(b, pixels, axes, rows, columns)
    before, after = [0] * 4, [0] * 4
    for axis, start, resized, side in zip(
        axes, (where.top, where.left), where.resized_size, size, strict=True
    ):
        before[axis], after[axis] = start, side - start - resized
    if not any(before) and not any(after):
        return pixels
    value = b.constant(rules.pad_value, np.float32)
    return b.op("Pad", pixels, b.ints(*before, *after), value, mode="constant")


def _free_grey(
    b: GraphBuilder,
    pixels: str,
    axes: tuple[int, int],
    where: Placed,
    size: tuple[int, int],
    rules: Preprocess,
) -> str:
    """Return the resized and padded picture of a free size, in grey levels."""
    height = (where.source_height, where.height, where.top)
    width = (where.source_width, where.width, where.left)
    rows, in_height = _free_taps(b, height, size[0], axes[0], axes)
    columns, in_width = _free_taps(b, width, size[1], axes[1], axes)
    grey = _resample(b, pixels, axes, rows, columns)  # 0 outside the picture
    if rules.resize == "stretch":
        return grey
    outside = b.op("Sub", b.constant(1, np.float32), b.op("Mul", in_height, in_width))
    padding = b.op("Mul", outside, b.constant(rules.pad_value, np.float32))
    return b.op("Add", grey, padding)


def _normalise(b: GraphBuilder, grey: str, spec: ModelSpec, target: Target) -> None:
    """Append order of axes and channels, scale, mean and std, as the host computes them."""
    rules = spec.preprocess
    if target.image_layout == "nhwc":
        grey = b.op("Transpose", grey, perm=[0, 3, 1, 2])
    if target.image_color != rules.color:
        grey = b.op("Gather", grey, b.ints(2, 1, 0), axis=1)
    factors = [np.float32(rules.scale / s) for s in rules.std]
    shifts = [np.float32(-m / s) for m, s in zip(rules.mean, rules.std, strict=True)]
    scaled = b.op("Mul", grey, _per_channel(b, factors))
    if any(shifts):
        scaled = b.op("Add", scaled, _per_channel(b, shifts))
    b.name_output(scaled, NETWORK_INPUT)


def _per_channel(b: GraphBuilder, values: list[np.float32]) -> str:
    if len(set(values)) == 1:
        return b.constant(values[0], np.float32)
    return b.constant(np.array(values).reshape(1, 3, 1, 1), np.float32)


# -- boxes


@dataclass(frozen=True, slots=True)
class _Mapping:
    """Names of float32 (4,) tensors: what takes xyxy from input pixels to source pixels."""

    shift: str
    scale: str
    limit: str


def _fixed_mapping(b: GraphBuilder, where: Placement) -> _Mapping:
    height, width = where.source_size
    return _Mapping(
        b.constant((where.left, where.top) * 2, np.float32),
        b.constant(where.scale * 2, np.float32),
        b.constant((width, height) * 2, np.float32),
    )


def _free_mapping(b: GraphBuilder, where: Placed) -> _Mapping:
    def twice(x: str, y: str) -> str:
        return b.as_float(b.op("Concat", x, y, x, y, axis=0))

    limit = twice(where.source_width, where.source_height)
    scale = b.op("Div", twice(where.width, where.height), limit)
    return _Mapping(twice(where.left, where.top), scale, limit)


def _map_boxes(b: GraphBuilder, mapping: _Mapping) -> None:
    """Turn det_boxes into source pixels and clip them, as `source_from_input` does."""
    inner = f"{_BOXES}/input_px"
    for node in b.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == _BOXES:
                    names[position] = inner
    boxes = b.op("Div", b.op("Sub", inner, mapping.shift), mapping.scale)
    boxes = b.op("Min", b.op("Max", boxes, b.constant(0, np.float32)), mapping.limit)
    b.name_output(boxes, _BOXES)
