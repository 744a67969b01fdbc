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
import onnx

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.detector import Detector
from boxwright.graph.io import bytes_from_model
from boxwright.heads import decoded_raw
from boxwright.types import FloatArray, Image, ModelSpec

__all__ = ["BudgetResult", "Lossy", "Sensitivity", "measure_sensitivities", "search_budget"]

_STANDS_OUT = 0.1  # anchors that score less in FP32 are background
_PIXELS = 32.0  # so many pixels of box weigh as much as the whole of a score


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How far the outputs move when one layer alone is converted.

    Attributes:
        layer: Name of its node.
        error: Mean over the anchors that stand out: change of the best score, plus change of the
            box in units of 32 pixels.
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
            _error(want, _decoded(candidate, f)) for want, f in zip(expected, feeds, strict=True)
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


def _decoded(detector: Detector, feed: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return boxes (A, 4) in pixels and best scores (A,)."""
    found, scores = decoded_raw(detector.infer(feed), detector.spec)
    if (
        detector.spec.layout.nms_free
    ):  # rows come in the order of their scores: only those can be compared
        return np.zeros_like(found[0]), scores[0, :, 0].copy()
    return found[0].copy(), scores[0].max(axis=-1)


def _error(want: tuple[FloatArray, FloatArray], got: tuple[FloatArray, FloatArray]) -> float:
    chosen = want[1] >= _STANDS_OUT
    if not chosen.any():
        chosen = want[1] >= np.sort(want[1])[-min(20, len(want[1]))]
    score = np.abs(want[1] - got[1])[chosen]
    box = np.minimum(np.abs(want[0] - got[0]).max(axis=-1)[chosen] / _PIXELS, 1.0)
    # FP16 can overflow: what is no number is as wrong as can be
    return float(np.nan_to_num(score, nan=1.0).mean() + np.nan_to_num(box, nan=1.0).mean())


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
