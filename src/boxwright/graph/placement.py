"""Where a picture lands in the network input, as ONNX nodes: `boxwright.preprocess.place` in int32.

The host computes in float64, which the runtimes of graphs lack or drop. Away from ties, whole
numbers give the same result; where a side falls exactly on a half (or, for `floor`, on a whole)
float64's own rounding errors decide, and those are looked up in a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from boxwright.graph.builder import GraphBuilder
from boxwright.types import LONGEST_SIDE_PX, FloatArray, Preprocess

__all__ = ["Placed", "add_placement", "divide", "tie_noise", "tie_thresholds"]


@dataclass(frozen=True, slots=True)
class Placed:
    """Names of int32 tensors of shape (1,), in pixels: a `Placement` inside the graph."""

    source_height: str
    source_width: str
    height: str
    width: str
    top: str
    left: str


def add_placement(
    b: GraphBuilder,
    source: tuple[str, str],
    input_size: tuple[int, int],
    rules: Preprocess,
) -> Placed:
    """Append what `boxwright.preprocess.place` computes.

    Args:
        b: Builder of the graph.
        source: Names of the picture's height and width, int32 (1,).
        input_size: Network input (height, width) in pixels.
        rules: Resize mode and rounding.
    """
    zero = b.constant([0], np.int32)
    limits = [b.constant([side], np.int32) for side in input_size]
    if rules.resize == "stretch":
        return Placed(*source, limits[0], limits[1], zero, zero)
    height, width = source
    # The width limits where input_width / width <= input_height / height.
    gap = b.op("Sub", b.op("Mul", height, limits[1]), b.op("Mul", width, limits[0]))
    by_height = b.op("Greater", gap, zero)
    target = b.op("Where", by_height, limits[0], limits[1])
    limiting = b.op("Where", by_height, height, width)
    if input_size[0] == input_size[1]:
        noise = _looked_up(b, tie_noise(input_size[0]), limiting)
    else:
        tables = [tie_noise(side) for side in input_size]
        found = [_looked_up(b, t, s) for t, s in zip(tables, source, strict=True)]
        noise = b.op("Where", by_height, found[0], found[1])
    thresholds = tie_thresholds(max(input_size), rules.rounding == "floor")
    sides = []
    for side, limit in zip(source, limits, strict=True):
        whole, rest = divide(b, b.op("Mul", side, target), limiting)
        bound = _looked_up(b, thresholds, whole)
        if rules.rounding == "floor":
            lost = b.op("And", _is_zero(b, rest), b.op("Less", noise, bound))
            whole = b.op("Sub", whole, b.as_int32(lost))
        else:
            over = b.op("Sub", b.op("Add", rest, rest), limiting)
            tie = b.op("And", _is_zero(b, over), b.op("Greater", noise, bound))
            up = b.op("Or", b.op("Greater", over, zero), tie)
            whole = b.op("Add", whole, b.as_int32(up))
        sides.append(_between(b, whole, 1, limit))
    if rules.resize == "letterbox_top_left":
        return Placed(*source, sides[0], sides[1], zero, zero)
    top, left = (_half(b, b.op("Sub", li, s)) for li, s in zip(limits, sides, strict=True))
    return Placed(*source, sides[0], sides[1], top, left)


def divide(b: GraphBuilder, value: str, divisor: str) -> tuple[str, str]:
    """Append whole division of int32 tensors, value >= 0 and divisor > 0; return also the rest.

    The estimate is float32's and the rest mends it, so that no runtime's own division counts.
    """
    ratio = b.op("Div", b.as_float(value), b.as_float(divisor))
    estimate = b.as_int32(b.op("Floor", ratio))
    rest = b.op("Sub", value, b.op("Mul", estimate, divisor))
    zero = b.constant([0], np.int32)
    below = b.as_int32(b.op("Less", rest, zero))
    above = b.as_int32(b.op("Not", b.op("Less", b.op("Sub", rest, divisor), zero)))
    whole = b.op("Add", b.op("Sub", estimate, below), above)
    return whole, b.op("Sub", value, b.op("Mul", whole, divisor))


def _looked_up(b: GraphBuilder, table: FloatArray, index: str) -> str:
    return b.op("Gather", b.constant(table, np.float32), index, axis=0)


def _is_zero(b: GraphBuilder, value: str) -> str:
    return b.op("Equal", value, b.constant([0], np.int32))


def _between(b: GraphBuilder, value: str, low: int, high: str) -> str:
    floor = b.constant([low], np.int32)
    raised = b.op("Where", b.op("Less", value, floor), floor, value)
    return b.op("Where", b.op("Greater", raised, high), high, raised)


def _half(b: GraphBuilder, value: str) -> str:
    """Append value // 2, which is round(value / 2 - 0.1) of whole numbers from 0 on."""
    half = b.op("Mul", b.as_float(value), b.constant(0.5, np.float32))
    return b.cast(b.op("Floor", half), TensorProto.INT32)


def tie_noise(target: int, longest: int = LONGEST_SIDE_PX) -> FloatArray:
    """Return how far float64's target / side lies from the true ratio, by side.

    Args:
        target: Side of the network input in pixels.
        longest: Last side of the table.

    Returns:
        (longest + 1,) float32, in units of 2**-53 of the ratio, so between -1 and 1.

    >>> tie_noise(640, 3).tolist()[1:3]
    [0.0, 0.0]
    """
    noise = np.zeros(longest + 1, np.float32)
    for side in range(1, longest + 1):
        numerator, denominator = (target / side).as_integer_ratio()
        error = numerator * side - target * denominator
        # Exact in whole numbers; Python's own division rounds once, at the end.
        noise[side] = (error << 53) / (target * denominator)
    return noise


def tie_thresholds(target: int, floor: bool) -> FloatArray:
    """Return which noise moves a side that falls on a tie, by its whole part.

    With `t` the tie, a product of float64 leaves it when the ratio's error exceeds half a step,
    which is 2**e / t units where 2**e <= t < 2**(e + 1); half as much below a power of two.

    Returns:
        (target + 1,) float32. For `round` (t = whole + 1/2) the side is rounded up when the noise
        is greater: an even whole part needs a push upwards, an odd one a push down to stay. For
        `floor` (t = whole) one is lost when the noise is smaller.
    """
    whole = np.arange(target + 1)
    tie = np.maximum(whole if floor else whole + 0.5, 0.5)
    push = 2.0 ** np.floor(np.log2(tie)) / tie
    if floor:
        return np.where(push == 1, -0.5, -push).astype(np.float32)
    odd = np.nextafter(-push.astype(np.float32), np.float32(-2))
    return np.where(whole % 2 == 0, push.astype(np.float32), odd).astype(np.float32)
