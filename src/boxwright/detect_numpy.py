"""Detects with an ONNX file that Boxwright made; needs NumPy and ONNX Runtime, nothing else.

    python detect_numpy.py model.fp32.onnx picture.ppm [more pictures]

Prints one JSON object for each picture. `Model(path)(picture)` does the same in Python. The file
may be copied away from Boxwright and changed; it reads what the model says of itself (family,
preprocessing, head, classes) from the ONNX metadata. Raw and end-to-end files of every family and
task are read; those that take pictures themselves (`--input image`) need no preprocessing and are
refused. Pictures are .npy arrays (H, W, 3) uint8 BGR or .ppm files, and whatever Pillow or OpenCV
read where one of them is installed.

Each resizing is done in NumPy: a pixel may differ by a grey level from OpenCV's, which Boxwright
uses.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Model", "nms", "prepare", "read_picture", "resize"]

Array = npt.NDArray[Any]
_PRE_TOPK, _KEEP_TOPK, _BEST_CLASSES = 1000, 300, 5


def read_picture(path: str) -> Array:
    """Return (H, W, 3) uint8 BGR."""
    if path.endswith(".npy"):
        array = np.load(path, allow_pickle=False)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise SystemExit(f"{path}: give (H, W, 3) uint8 BGR, not {array.dtype} {array.shape}")
        return np.asarray(array)
    data = Path(path).read_bytes()
    head = re.match(rb"P6\s+(?:#[^\n]*\n\s*)*(\d+)\s+(\d+)\s+255\s", data)
    if head is not None:
        width, height = int(head.group(1)), int(head.group(2))
        pixels = np.frombuffer(data, np.uint8, width * height * 3, head.end())
        return pixels.reshape(height, width, 3)[..., ::-1]
    try:
        from PIL import Image

        return np.asarray(Image.open(path).convert("RGB"))[..., ::-1]
    except ImportError:
        pass
    try:
        import cv2

        return np.asarray(cv2.imread(path, cv2.IMREAD_COLOR))
    except ImportError:
        raise SystemExit(
            f"{path}: neither Pillow nor OpenCV is installed; give a .npy or .ppm file"
        ) from None


def _weights(source: int, target: int, kind: str) -> Array:
    """Return the matrix (target, source) that resizes one axis."""
    step = source / target
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    if kind == "area":
        edges = np.arange(source)
        low = np.maximum(rows[:, None] * step, edges)
        high = np.minimum((rows[:, None] + 1) * step, edges + 1)
        matrix = np.maximum(high - low, 0) / step
    elif kind == "antialias":  # Pillow's bilinear filter: a triangle as wide as the step
        support = max(step, 1.0)
        centre = (rows[:, None] + 0.5) * step
        matrix = np.maximum(1 - np.abs(np.arange(source) + 0.5 - centre) / support, 0)
        matrix /= matrix.sum(axis=1, keepdims=True)
    else:
        place = (rows + 0.5) * step - 0.5
        first = np.floor(place).astype(int)
        part = place - first
        taps: list[tuple[int, Array]] = [(0, 1 - part), (1, part)]
        if kind == "cubic":  # OpenCV's, a = -0.75
            a = -0.75
            outer = ((a * (part + 1) - 5 * a) * (part + 1) + 8 * a) * (part + 1) - 4 * a
            inner = ((a + 2) * part - (a + 3)) * part * part + 1
            back = 1 - part
            mirrored = ((a + 2) * back - (a + 3)) * back * back + 1
            last = 1 - outer - inner - mirrored
            taps = [(-1, outer), (0, inner), (1, mirrored), (2, last)]
        for offset, weight in taps:
            np.add.at(matrix, (rows, np.clip(first + offset, 0, source - 1)), weight)
    return matrix.astype(np.float32)


def resize(image: Array, size: tuple[int, int], kind: str) -> Array:
    """Return (H, W, 3) uint8 resized to (height, width): `linear`, `cubic`, `area`, `antialias`."""
    height, width, channels = image.shape
    if (height, width) == tuple(size):
        return image
    flat = image.reshape(height, width * channels).astype(np.float32)
    rows = (_weights(height, size[0], kind) @ flat).reshape(size[0], width, channels)
    columns = np.einsum("ow,hwc->hoc", _weights(width, size[1], kind), rows, optimize=True)
    return np.asarray(np.clip(np.rint(columns), 0, 255).astype(np.uint8))


def _sizes(
    source: tuple[int, int], target: tuple[int, int], rules: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """Return the (height, width) after each resizing; the last is the final one."""
    height, width = source
    if rules["resize"] == "stretch":
        return [target]
    if rules["resize"] == "crop":
        if target[0] != target[1]:
            return [target]
        side = target[0]
        if width <= height:
            return [(int(side * height / width), side)]
        return [(side, int(side * width / height))]
    if rules["resize"] == "letterbox_twice":
        ratio = min(max(target) / max(source), min(target) / min(source))
        first = (max(1, int(height * ratio)), max(1, int(width * ratio)))
        ratio = min(target[0] / first[0], target[1] / first[1], 1.0)
        return [first, (max(1, round(first[0] * ratio)), max(1, round(first[1] * ratio)))]
    ratio = min(target[0] / height, target[1] / width)
    whole = round if rules["rounding"] == "round" else int
    return [
        (
            min(max(1, whole(height * ratio)), target[0]),
            min(max(1, whole(width * ratio)), target[1]),
        )
    ]


def prepare(
    image: Array, target: tuple[int, int], rules: Mapping[str, Any]
) -> tuple[Array, tuple[float, float, int, int]]:
    """Return the tensor (1, 3, height, width) float32, and scale x, scale y, left, top."""
    source = image.shape[0], image.shape[1]
    sizes = _sizes(source, target, rules)
    resized = image
    for number, size in enumerate(sizes):
        kind = rules["interpolation"]
        if rules["resize"] == "crop":
            kind = "antialias"
        elif kind == "area" and (number or min(size[0] / source[0], size[1] / source[1]) >= 1):
            kind = "linear"
        resized = resize(resized, size, kind)
    height, width = sizes[-1]
    left = top = 0
    if rules["resize"] in ("letterbox", "letterbox_twice"):
        left = max(0, round((target[1] - width) / 2 - 0.1))
        top = max(0, round((target[0] - height) / 2 - 0.1))
    canvas = np.full((*target, 3), rules["pad_value"], np.float32)
    if rules["resize"] == "crop":
        left, top = -round((width - target[1]) / 2), -round((height - target[0]) / 2)
        canvas[...] = resized[-top : target[0] - top, -left : target[1] - left]
    else:
        canvas[top : top + height, left : left + width] = resized
    if rules["color"] == "rgb":
        canvas = canvas[..., ::-1]
    mean, std = _single(rules["mean"]), _single(rules["std"])
    tensor = (canvas * np.float32(rules["scale"]) - mean) / std
    place = (width / source[1], height / source[0], left, top)
    return np.ascontiguousarray(tensor.transpose(2, 0, 1)[None]), place


def _single(values: Sequence[Any]) -> Array:
    return np.array(values, np.float32)


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def decode(raw: Array, layout: Mapping[str, Any], size: tuple[int, int]) -> tuple[Array, ...]:
    """Return boxes (A, 4) xyxy, scores (A, classes), extras (A, E) of one picture's raw head.

    Of an NMS-free head the scores are one column, and a fourth array holds the class ids.
    """
    rows = raw.T if layout["axes"] == "nca" else raw
    box = rows[:, :4].astype(np.float32)
    if layout["box_encoding"] == "grid_exp":
        cells = [
            (x, y, stride)
            for stride in layout["strides"]
            for y in range(-(-size[0] // stride))
            for x in range(-(-size[1] // stride))
        ]
        grid = np.array(cells, np.float32)
        step = grid[:, 2:]
        box = np.concatenate([(box[:, :2] + grid[:, :2]) * step, np.exp(box[:, 2:]) * step], 1)
    if layout["normalised"]:
        box = box * _single([size[1], size[0]] * 2)
    if layout["box_format"] == "cxcywh":
        half = box[:, 2:] / 2
        box = np.concatenate([box[:, :2] - half, box[:, :2] + half], 1)
    activate = (lambda x: x) if layout["scores_activated"] else _sigmoid
    if layout["nms_free"]:
        labels = np.rint(rows[:, 5]).astype(int)
        return box, activate(rows[:, 4:5]), rows[:, 6:], labels
    first, last = 5 if layout["objectness"] else 4, rows.shape[1] - layout["extras"]
    scores = activate(rows[:, first:last])
    if layout["objectness"]:
        scores = scores * activate(rows[:, 4:5])
    return box, scores, rows[:, last:]


def _areas(box: Array) -> Array:
    return np.asarray(np.prod(np.maximum(box[..., 2:] - box[..., :2], 0), axis=-1))


def nms(box: Array, labels: Array, limit: float) -> list[int]:
    """Return the places that greedy NMS per class keeps of boxes (N, 4) that come best first."""
    kept: list[int] = []
    left = np.arange(len(box))
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        low = np.maximum(box[best, :2], box[left, :2])
        high = np.minimum(box[best, 2:], box[left, 2:])
        shared = _areas(np.concatenate([low, high], axis=1))
        union = _areas(box[best]) + _areas(box[left]) - shared
        over = (shared > np.float32(limit) * union) & (labels[left] == labels[best])
        left = left[~over]
    return kept


def rotated_nms(rotated: Array, labels: Array, limit: float) -> list[int]:
    """Return what Ultralytics' fast NMS by probabilistic IoU keeps of (N, 5), best first."""
    wide, high = rotated[:, 2] ** 2 / 12, rotated[:, 3] ** 2 / 12
    cos, sin = np.cos(rotated[:, 4]), np.sin(rotated[:, 4])
    a, b, c = (
        wide * cos**2 + high * sin**2,
        wide * sin**2 + high * cos**2,
        (wide - high) * cos * sin,
    )
    own = np.maximum(a * b - c**2, 0)
    a, b, c = (v[:, None] + v[None] for v in (a, b, c))
    dx = rotated[None, :, 0] - rotated[:, None, 0]
    dy = rotated[:, None, 1] - rotated[None, :, 1]
    whole = a * b - c**2
    near = (a * dy**2 + b * dx**2) / (whole + 1e-7) / 4 + c * dx * dy / (whole + 1e-7) / 2
    shape = np.log(whole / (4 * np.sqrt(own[:, None] * own[None]) + 1e-7) + 1e-7) / 2
    alike = 1 - np.sqrt(1 - np.exp(-np.clip(near + shape, 1e-7, 100)) + 1e-7)
    over = (alike > limit) & (labels[:, None] == labels[None])
    return [int(i) for i in np.flatnonzero(~np.triu(over, 1).any(axis=0))]


def _plane(plane: Array, size: tuple[int, int]) -> Array:
    """Return logits (h, w) resized bilinearly to (height, width)."""
    rows = _weights(plane.shape[0], size[0], "linear") @ plane.astype(np.float32)
    return np.asarray(rows @ _weights(plane.shape[1], size[1], "linear").T)


def mask_in_picture(plane: Array, box: Array, size: tuple[int, int]) -> Array:
    """Return (H, W) bool: logits (h, w) without the padding, upsampled, over 0, in the box."""
    mask_h, mask_w = plane.shape
    gain = min(4 * mask_h / size[0], 4 * mask_w / size[1])
    pad = (4 * mask_h - max(round(size[0] * gain), 1)) | (
        4 * mask_w - max(round(size[1] * gain), 1)
    )
    factor = 4 // math.gcd(4, pad | pad // 2)  # cuts the padding at whole pixels
    height, width = mask_h * factor, mask_w * factor
    if factor > 1:
        plane = _plane(plane, (height, width))
    if (height, width) != tuple(size):
        gain = min(height / size[0], width / size[1])
        sides = max(round(size[0] * gain), 1), max(round(size[1] * gain), 1)
        top, left = round((height - sides[0]) / 2 - 0.1), round((width - sides[1]) / 2 - 0.1)
        plane = plane[top : top + sides[0], left : left + sides[1]]
    mask = _plane(plane, size) > 0
    x, y = np.arange(size[1]), np.arange(size[0])
    inside = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))
    return np.asarray(mask & inside)


class Model:
    """An ONNX file that Boxwright made, open in ONNX Runtime on the CPU."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        told = self.session.get_modelmeta().custom_metadata_map
        if "boxwright.spec" not in told:
            raise SystemExit(f"{path}: it carries no Boxwright metadata; export it with boxwright")
        self.spec = json.loads(told["boxwright.spec"])
        target = json.loads(told.get("boxwright.target", "{}"))
        if target.get("input", "tensor") != "tensor":
            raise SystemExit(f"{path}: it takes pictures itself; feed it {target['image_layout']}")
        baked = json.loads(told.get("boxwright.nms", "{}"))
        self.end2end = target.get("outputs") == "end2end"
        self.score = float(baked.get("score_threshold", self.spec["score_threshold"]))
        self.iou = float(baked.get("iou_threshold", self.spec["iou_threshold"]))
        self.size: tuple[int, int] = tuple(self.spec["input_size"])

    def __call__(self, image: Array) -> list[dict[str, Any]]:
        """Return what is in a picture, (H, W, 3) uint8 BGR, best first."""
        tensor, place = prepare(image, self.size, self.spec["preprocess"])
        given = self.session.get_inputs()[0]
        if isinstance(given.shape[0], int):
            tensor = np.repeat(tensor, given.shape[0], axis=0)
        names = [o.name for o in self.session.get_outputs()]
        found = self.session.run(names, {given.name: tensor})
        first = {name: value[0] for name, value in zip(names, found, strict=True)}
        rows = self._final(first) if self.end2end else self._raw(list(first.values()))
        return self._records(rows, place, (image.shape[0], image.shape[1]))

    def _raw(self, outputs: Sequence[Array]) -> dict[str, Array]:
        layout, task = self.spec["layout"], self.spec["task"]
        head = outputs[0].astype(np.float32)
        if task == "classify":
            order = np.argsort(-head, kind="stable")[:_BEST_CLASSES]
            order = order[head[order] > self.score]
            return {"scores": head[order], "labels": order}
        box, scores, extras, *known = decode(head, layout, self.size)
        labels = known[0] if known else scores.argmax(1)
        best = scores.max(1)
        chosen = np.flatnonzero(best > np.float32(self.score))
        chosen = chosen[np.argsort(-best[chosen], kind="stable")]
        chosen = chosen if layout["nms_free"] else chosen[:_PRE_TOPK]
        rows = {"box": box[chosen], "scores": best[chosen], "labels": labels[chosen]}
        rows["extras"] = extras[chosen]
        if not layout["nms_free"]:
            rows = self._suppressed(rows)
        rows = {name: values[:_KEEP_TOPK] for name, values in rows.items()}
        if task == "segment":
            planes = outputs[1].astype(np.float32)
            logits = rows["extras"] @ planes.reshape(len(planes), -1)
            rows["logits"] = logits.reshape(-1, *planes.shape[1:])
        return rows

    def _suppressed(self, rows: dict[str, Array]) -> dict[str, Array]:
        if self.spec["layout"]["rotated"]:
            kept = rotated_nms(_rotated(rows), rows["labels"], self.iou)
        else:
            kept = nms(rows["box"], rows["labels"], self.iou)
        return {name: values[kept] for name, values in rows.items()}

    def _final(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        count = int(outputs["num_dets"][0])
        names = {"det_boxes": "box", "det_scores": "scores", "det_classes": "labels"}
        names |= {"det_keypoints": "extras", "det_angles": "extras", "det_masks": "logits"}
        rows = {names[n]: v[:count] for n, v in outputs.items() if n in names}
        if "extras" in rows:
            rows["extras"] = rows["extras"].reshape(count, -1)
        if "nms_converged" in outputs and not outputs["nms_converged"][0]:
            if count == len(outputs["det_scores"]):
                raise SystemExit("portable NMS did not settle; export with more --nms-iterations")
            rows = self._suppressed(rows)  # one more pass makes it exact
        return rows

    def _records(
        self, rows: dict[str, Array], place: tuple[float, float, int, int], size: tuple[int, int]
    ) -> list[dict[str, Any]]:
        """Return the detections in pixels of the picture."""
        task, names = self.spec["task"], self.spec["class_names"]
        scale, shift = _single(place[:2]), _single(place[2:])
        limit = _single([size[1], size[0]])
        found = []
        for i, (score, label) in enumerate(zip(rows["scores"], rows["labels"], strict=True)):
            one: dict[str, Any] = {"score": float(score), "class_id": int(label)}
            one["class_name"] = names[int(label)]
            if task == "classify":
                found.append({"xyxy": [0.0, 0.0, float(size[1]), float(size[0])], **one})
                continue
            corners = np.clip((rows["box"][i].reshape(2, 2) - shift) / scale, 0, limit)
            if task == "pose":
                points = rows["extras"][i].reshape(self.spec["layout"]["keypoint_shape"]).copy()
                points[:, :2] = np.clip((points[:, :2] - shift) / scale, 0, limit)
                one["keypoints"] = points.tolist()
            elif task == "obb":
                x, y, width, height, angle = _rotated({n: v[i : i + 1] for n, v in rows.items()})[0]
                centre = (_single([x, y]) - shift) / scale
                width, height = width / scale[0], height / scale[1]
                one["rotated"] = [*centre.tolist(), float(width), float(height), float(angle)]
                along = _single([np.cos(angle), np.sin(angle)]) * width / 2
                across = _single([-np.sin(angle), np.cos(angle)]) * height / 2
                reach = np.abs(along) + np.abs(across)
                corners = np.clip(np.stack([centre - reach, centre + reach]), 0, limit)
            elif task == "segment":
                one["mask"] = mask_in_picture(rows["logits"][i], corners.ravel(), size)
                if not one["mask"].any():
                    continue
            found.append({"xyxy": corners.ravel().tolist(), **one})
        return found


def _rotated(rows: Mapping[str, Array]) -> Array:
    """Return (N, 5): centre x, centre y, width, height, angle."""
    low, high = rows["box"][:, :2], rows["box"][:, 2:]
    return np.concatenate([(low + high) / 2, high - low, rows["extras"][:, -1:]], axis=1)


def main(arguments: Sequence[str]) -> None:
    """Print what is in each picture; of a mask its number of pixels."""
    if len(arguments) < 2:
        raise SystemExit("python detect_numpy.py MODEL.onnx PICTURE...")
    model = Model(arguments[0])
    for path in arguments[1:]:
        found = model(read_picture(path))
        for one in found:
            if "mask" in one:
                one["mask_pixels"] = int(one.pop("mask").sum())
        print(json.dumps({"picture": path, "detections": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
