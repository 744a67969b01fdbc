"""The accuracy budget: which layers go back to FP32 so that a file costs no more than allowed.

Layers are tried in the order of their sensitivity, which is measured: one layer alone is converted,
and the outputs of the network are compared with those of FP32 on a few pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.detector import Detector
from boxwright.graph.io import bytes_from_model
from boxwright.heads import decoded_raw
from boxwright.masks import mask_logits
from boxwright.types import FloatArray, Image, ModelSpec

__all__ = ["BudgetResult", "Lossy", "Sensitivity", "measure_sensitivities", "search_budget"]

_STANDS_OUT = 0.1  # anchors that score less in FP32 are background
_PIXELS = 32.0  # so many pixels of box weigh as much as the whole of a score
_SEEN = 0.5  # keypoints that the source does not see may lie anywhere
_MASKS = 20  # of a picture, that are compared


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How far the outputs move when one layer alone is converted.

    Attributes:
        layer: Name of its node.
        error: Mean over the anchors that stand out: change of the best score, plus change of the
            box in units of 32 pixels, plus change of what the task adds: keypoints in the same
            unit, masks as 1 - IoU, the sine of the angle between rotated boxes.
    """

    layer: str
    error: float


@dataclass(frozen=True, slots=True)
class Lossy:
    """A conversion that costs accuracy, layer by layer.

    Attributes:
        name: What it makes, in words.
        layers: Nodes that can each stay in FP32.
        build: Returns the graph with the named layers in FP32.
    """

    name: str
    layers: tuple[str, ...]
    build: Callable[[Sequence[str]], onnx.ModelProto]


@dataclass(frozen=True, slots=True)
class BudgetResult:
    """What a search found.

    Attributes:
        model: The graph that was accepted, or the best that was seen.
        kept: Layers that stay in FP32.
        layers: How many could be converted.
        reference, measured: Accuracy of FP32 and of `model`.
        tried: (layers in FP32, accuracy) of each graph that was measured.
        within: The budget holds.
    """

    model: onnx.ModelProto
    kept: tuple[str, ...]
    layers: int
    reference: float
    measured: float
    tried: tuple[tuple[int, float], ...]
    within: bool

    @property
    def drop(self) -> float:
        """Accuracy lost."""
        return self.reference - self.measured

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the graph."""
        return {
            "kept_float": list(self.kept),
            "layers": self.layers,
            "reference": self.reference,
            "measured": self.measured,
            "tried": [list(t) for t in self.tried],
            "within": self.within,
        }


def measure_sensitivities(
    model: onnx.ModelProto,
    spec: ModelSpec,
    lossy: Lossy,
    pictures: Sequence[Path | Image],
    *,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Sensitivity]:
    """Measure every layer that can lose accuracy; the most sensitive comes first.

    Args:
        model: FP32 raw graph.
        spec: How it is fed and read.
        lossy: What the layers become.
        pictures: A few that show objects.
        threads: CPU threads.
        advance: Called with 1 for each layer.
    """
    detector = _opened(model, spec, threads)
    feeds = [detector.preprocess([Detector.read(p)])[0].copy() for p in pictures]
    expected = [_decoded(detector, feed) for feed in feeds]
    found = []
    for layer in lossy.layers:
        others = [name for name in lossy.layers if name != layer]
        candidate = _opened(lossy.build(others), spec, threads)
        errors = [
            _error(want, _decoded(candidate, f), spec)
            for want, f in zip(expected, feeds, strict=True)
        ]
        found.append(Sensitivity(layer, float(np.mean(errors))))
        candidate.close()
        advance(1)
    detector.close()
    return sorted(found, key=lambda s: -s.error)


def _opened(model: onnx.ModelProto, spec: ModelSpec, threads: int | None) -> Detector:
    options = BackendOptions(threads, "cpu", spin=False)
    data = bytes_from_model(model, spec.name)
    return Detector(catalog.backend("onnxruntime").open_bytes(data, options), spec)


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    """What a head says of one picture.

    Attributes:
        boxes: (A, 4) in pixels.
        scores: (A,) the best of each anchor.
        extras: (A, E) what the task adds to an anchor.
        prototypes: (M, h, w), for masks.
    """

    boxes: FloatArray
    scores: FloatArray
    extras: FloatArray
    prototypes: FloatArray | None


def _decoded(detector: Detector, feed: FloatArray) -> _Decoded:
    spec, outputs = detector.spec, detector.infer(feed)
    found, scores = decoded_raw(outputs, spec)
    arrays = [np.asarray(a, np.float32) for a in outputs.values()]
    if spec.layout.nms_free:
        # rows come in the order of their scores: only those can be compared
        count = len(scores[0])
        none = np.zeros((count, 0), np.float32)
        return _Decoded(np.zeros_like(found[0]), scores[0, :, 0].copy(), none, None)
    rows = arrays[0][0] if spec.layout.axes == "nac" else arrays[0][0].T
    extras = rows[:, rows.shape[1] - spec.layout.extras :] if spec.layout.extras else rows[:, :0]
    prototypes = arrays[1][0].copy() if spec.task == "segment" else None
    return _Decoded(found[0].copy(), scores[0].max(axis=-1), extras.copy(), prototypes)


def _error(want: _Decoded, got: _Decoded, spec: ModelSpec) -> float:
    if spec.layout.nms_free:
        # with NMS inside there are as many rows as were found: a missing one scores nothing
        count = max(len(want.scores), len(got.scores))
        if not count:
            return 0.0
        want, got = _filled(want, count), _filled(got, count)
    chosen = want.scores >= _STANDS_OUT
    if not chosen.any():
        chosen = want.scores >= np.sort(want.scores)[-min(20, len(want.scores))]
    score = np.abs(want.scores - got.scores)[chosen]
    moved = np.abs(want.boxes - got.boxes).max(axis=-1)[chosen]
    box = np.minimum(moved / _PIXELS, 1.0)
    added = _task_error(want, got, np.flatnonzero(chosen), spec)
    # FP16 can overflow: what is no number is as wrong as can be
    parts = (score, box, added)
    return float(sum(np.nan_to_num(p, nan=1.0).mean() for p in parts if len(p)))


def _filled(found: _Decoded, count: int) -> _Decoded:
    """Return ranked rows with rows of nothing behind them, up to a number."""
    scores = np.zeros(count, np.float32)
    scores[: len(found.scores)] = found.scores
    none = np.zeros((count, 0), np.float32)
    return _Decoded(np.zeros((count, 4), np.float32), scores, none, None)


def _task_error(
    want: _Decoded, got: _Decoded, chosen: npt.NDArray[np.intp], spec: ModelSpec
) -> FloatArray:
    """Return how far what the task adds is off, 0..1 each; nothing for boxes alone."""
    if not want.extras.shape[1]:
        return np.zeros(0, np.float32)
    first, second = want.extras[chosen], got.extras[chosen]
    if spec.task == "pose":
        points, others = (e.reshape(len(e), *spec.layout.keypoint_shape) for e in (first, second))
        away = np.hypot(*np.moveaxis(points[..., :2] - others[..., :2], -1, 0)) / _PIXELS
        seen = points[..., 2] > _SEEN if points.shape[2] == 3 else np.ones(away.shape, bool)
        return np.asarray(np.minimum(away, 1.0)[seen], np.float32)
    if spec.task == "obb":
        return np.asarray(np.abs(np.sin(first[:, -1] - second[:, -1])), np.float32)
    if want.prototypes is None or got.prototypes is None:
        return np.zeros(0, np.float32)
    best = chosen[np.argsort(-want.scores[chosen], kind="stable")][:_MASKS]
    pair = [
        _masks(d.extras[best], d.prototypes, want.boxes[best], spec.input_size)
        for d in (want, got)
        if d.prototypes is not None
    ]
    union = (pair[0] | pair[1]).sum(axis=(1, 2))
    different = (pair[0] ^ pair[1]).sum(axis=(1, 2))
    return np.asarray(different / np.maximum(union, 1), np.float32)


def _masks(
    coefficients: FloatArray, prototypes: FloatArray, boxes: FloatArray, size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Return masks (N, h, w) at the prototypes' size, inside boxes (N, 4) in input pixels."""
    height, width = prototypes.shape[1:]
    scaled = boxes * (np.array([width, height] * 2) / np.array([size[1], size[0]] * 2))
    x, y = np.arange(width), np.arange(height)[:, None]
    left, top, right, bottom = (scaled[:, i, None, None] for i in range(4))
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    return np.asarray((mask_logits(coefficients, prototypes) > 0) & inside, bool)


def search_budget(
    lossy: Lossy,
    order: Callable[[], Sequence[Sensitivity]],
    measure: Callable[[onnx.ModelProto], float],
    reference: float,
    max_drop: float,
    step: int = 1,
) -> BudgetResult:
    """Return the graph with the fewest layers in FP32 that keeps a budget.

    None is tried first; then the 1, 2, 4, 8, ... most sensitive (times `step`) go back to FP32
    until the budget holds; then a smaller number between the last two is looked for by halving,
    until it is known to within `step`.

    Args:
        lossy: What the layers become.
        order: Returns the layers, the most sensitive first; asked only when it is needed.
        measure: Accuracy of a graph.
        reference: Accuracy of FP32.
        max_drop: The most that may be lost.
        step: How closely the number of layers is looked for.
    """
    count = len(lossy.layers)
    tried: dict[int, tuple[float, onnx.ModelProto, tuple[str, ...]]] = {}
    ranked: list[str] = []

    def attempt(kept_count: int) -> bool:
        kept = tuple(ranked[:kept_count])
        graph = lossy.build(kept)
        tried[kept_count] = (measure(graph), graph, kept)
        return reference - tried[kept_count][0] <= max_drop

    good = 0
    if not attempt(0):
        ranked = [s.layer for s in order()]
        bad, good = 0, step
        while good < count and not attempt(good):
            bad, good = good, good * 2
        if good >= count:
            best = max(tried, key=lambda k: (tried[k][0], -k))
            return _result(best, tried, count, reference, within=False)
        while good - bad > step:
            middle = (good + bad) // 2
            if attempt(middle):
                good = middle
            else:
                bad = middle
    return _result(good, tried, count, reference, within=True)


def _result(
    chosen: int,
    tried: Mapping[int, tuple[float, onnx.ModelProto, tuple[str, ...]]],
    count: int,
    reference: float,
    *,
    within: bool,
) -> BudgetResult:
    measured, graph, kept = tried[chosen]
    steps = tuple((k, v[0]) for k, v in tried.items())
    return BudgetResult(graph, kept, count, reference, measured, steps, within)
