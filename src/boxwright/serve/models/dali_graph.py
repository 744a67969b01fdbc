"""Decode and letterbox on the GPU (or the CPU): the body of a served `dali.py`.

Generated from Boxwright's boxwright/serve/models/dali_graph.py. Everything needed stands in this
file, since the DALI backend reads it alone. The rules are those of `boxwright.preprocess`, sizes
in float64 and halves to even as there, and OpenCV's bilinear filter within a grey level.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def device() -> str:
    """Return `gpu` or `cpu`: BOXWRIGHT_DALI_DEVICE says it, otherwise whether a GPU is here."""
    asked = os.environ.get("BOXWRIGHT_DALI_DEVICE", "")
    if asked in ("cpu", "gpu"):
        return asked
    nodes = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")
    return "gpu" if any(Path(node).exists() for node in nodes) else "cpu"


def letterbox(rules: dict[str, Any], on: str) -> tuple[Any, Any]:
    """Return the outputs of the pipeline: `images` float32 and `placement` float32.

    Args:
        rules: Of the model: input_size, resize, rounding, color, scale, mean, std, pad_value.
        on: `gpu` or `cpu`.
    """
    from nvidia.dali import fn, types
    from nvidia.dali import math as dali_math

    height, width = rules["input_size"]
    encoded = fn.external_source(device="cpu", name=rules["input_name"], dtype=types.UINT8, ndim=1)
    color = types.RGB if rules["color"] == "rgb" else types.BGR
    pixels = fn.decoders.image(encoded, device="mixed" if on == "gpu" else "cpu", output_type=color)
    shape = fn.cast(fn.peek_image_shape(encoded), dtype=types.FLOAT64)
    source_h, source_w = shape[0], shape[1]
    if rules["resize"] == "stretch":
        new_h, new_w = source_h * 0.0 + float(height), source_w * 0.0 + float(width)
    else:
        ratio = dali_math.min(
            types.Constant(float(height), dtype=types.FLOAT64) / source_h,
            types.Constant(float(width), dtype=types.FLOAT64) / source_w,
        )
        new_h = _side(source_h * ratio, height, rules["rounding"])
        new_w = _side(source_w * ratio, width, rules["rounding"])
    size_h, size_w = (fn.cast(v, dtype=types.FLOAT) for v in (new_h, new_w))
    resized = fn.resize(
        pixels,
        resize_y=size_h,
        resize_x=size_w,
        interp_type=types.INTERP_LINEAR,
        antialias=False,
        subpixel_scale=False,
    )
    if rules["resize"] == "letterbox":
        left = dali_math.floor((float(width) - new_w) * 0.5)
        top = dali_math.floor((float(height) - new_h) * 0.5)
        anchor = 0.5
    else:
        left, top = new_w * 0.0, new_h * 0.0
        anchor = 0.0
    scale, mean, std = rules["scale"], rules["mean"], rules["std"]
    images = fn.crop_mirror_normalize(
        resized,
        dtype=types.FLOAT,
        output_layout="CHW",
        crop=(height, width),
        crop_pos_x=anchor,
        crop_pos_y=anchor,
        rounding="truncate",
        out_of_bounds_policy="pad",
        fill_values=[(rules["pad_value"] * scale - m) / s for m, s in zip(mean, std, strict=True)],
        mean=[m / scale for m in mean],
        std=[s / scale for s in std],
    )
    row = fn.stack(new_w, new_h, left, top, source_w, source_h)
    return images, fn.cast(row, dtype=types.FLOAT)


def _side(value: Any, limit: int, rounding: str) -> Any:
    """Round a side as Python does (halves to even), or down; at least 1, at most the limit."""
    from nvidia.dali import math as dali_math

    if rounding == "floor":
        whole = dali_math.floor(value)
    else:
        up = dali_math.floor(value + 0.5)
        half = up - value == 0.5
        odd = up - 2.0 * dali_math.floor(up * 0.5) == 1.0
        whole = up - 1.0 * (half & odd)
    return dali_math.clamp(whole, 1.0, float(limit))
