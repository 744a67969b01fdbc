"""Calibration: which values the tensors of a network take on real pictures.

Methods: `minmax` keeps every value that was seen; `percentile` cuts the rarest at both ends;
`entropy` clips where the quantised distribution says most of the original (Kullback-Leibler, as in
Migacz, 8-bit Inference with TensorRT, GTC 2017).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.errors import GraphError, RequestError
from boxwright.graph.io import bytes_from_model
from boxwright.graph.quantize import Range, tensors_to_observe, with_outputs
from boxwright.graph.shapes import real_inputs
from boxwright.preprocess import prepare
from boxwright.types import Deployment, FloatArray, Image, ModelSpec

__all__ = ["METHODS", "Calibration", "CalibrationMethod", "calibrate"]

CalibrationMethod = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[CalibrationMethod, ...] = ("minmax", "percentile", "entropy")
_BINS = 2048
_LEVELS = 128  # of one sign, in the entropy method
_TAIL = 1e-5  # share of the values that `percentile` gives up at each end


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was seen, and on what.

    Attributes:
        ranges: By tensor.
        method: How they were chosen.
        pictures: How many.
        fingerprint: SHA-256 over the pictures' pixels, in their order.
    """

    ranges: Mapping[str, Range]
    method: CalibrationMethod
    pictures: int
    fingerprint: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "method": self.method,
            "pictures": self.pictures,
            "fingerprint": self.fingerprint,
            "ranges": {n: [r.low, r.high] for n, r in self.ranges.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Read what `as_dict` wrote."""
        ranges = {str(n): Range(float(a), float(b)) for n, (a, b) in data["ranges"].items()}
        return cls(ranges, data["method"], int(data["pictures"]), str(data["fingerprint"]))


@dataclass(slots=True)
class _Observed:
    """One tensor: its extremes, and in a second pass how its values are spread between them."""

    low: float = np.inf
    high: float = -np.inf
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def widen(self, values: FloatArray) -> None:
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    def count(self, values: FloatArray) -> None:
        span = max(self.high - self.low, 1e-12)
        scaled = (values.ravel() - np.float32(self.low)) * np.float32(_BINS / span)
        bins = np.clip(scaled.astype(np.int32), 0, _BINS - 1)
        self.counts += np.bincount(bins, minlength=_BINS)

    def edges(self) -> npt.NDArray[np.float64]:
        return np.linspace(self.low, self.high, _BINS + 1)


def calibrate(
    model: onnx.ModelProto,
    spec: ModelSpec,
    pictures: Sequence[Path | Image],
    deployment: Deployment,
    *,
    method: CalibrationMethod = "minmax",
    batch: int = 1,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Calibration:
    """Run an FP32 graph on pictures and return the ranges of the tensors to quantise.

    Args:
        model: FP32 raw graph.
        spec: How pictures are fed.
        pictures: Paths or (H, W, 3) uint8 BGR.
        deployment: Decides which tensors are quantised.
        method: How ranges are chosen.
        batch: Pictures in one run, where the graph's batch is free.
        threads: CPU threads.
        advance: Called with the number of pictures done.

    Raises:
        RequestError: There are no pictures.
        ImageError: One cannot be read.
        GraphError: Nothing of the graph can be quantised.
    """
    if not pictures:
        raise RequestError("calibration", "there are no pictures", "give --calib-images")
    names = tensors_to_observe(model, deployment)
    if not names:
        raise GraphError("int8", "no layer of the graph can be quantised", "keep it in float")
    observing = with_outputs(model, names)
    backend = catalog.backend("onnxruntime").open_bytes(
        bytes_from_model(observing, "calibration"), BackendOptions(threads, "cpu", spin=False)
    )
    tensor = real_inputs(model.graph)[0]
    size = backend.inputs[0].shape[0]
    step = size if isinstance(size, int) else batch
    seen = {name: _Observed() for name in names}
    digest = hashlib.sha256()
    passes = 1 if method == "minmax" else 2
    for number in range(passes):
        for feed, images in _feeds(pictures, spec, step):
            if number == 0:
                for image in images:
                    digest.update(image.tobytes())
            for name, values in backend.infer({tensor.name: feed}).items():
                kept = values[: len(images)]
                seen[name].widen(kept) if number == 0 else seen[name].count(kept)
            if number == passes - 1:
                advance(len(images))
    ranges = {name: _chosen(one, method) for name, one in seen.items()}
    return Calibration(ranges, method, len(pictures), digest.hexdigest())


def _feeds(
    pictures: Sequence[Path | Image], spec: ModelSpec, step: int
) -> Iterable[tuple[FloatArray, list[Image]]]:
    from boxwright.detector import Detector

    for start in range(0, len(pictures), step):
        images = [Detector.read(p) for p in pictures[start : start + step]]
        feed = np.zeros((step, 3, *spec.input_size), np.float32)
        for row, image in zip(feed, images, strict=False):
            prepare(image, spec.input_size, spec.preprocess, row)
        yield feed, images


def _chosen(seen: _Observed, method: CalibrationMethod) -> Range:
    if method == "minmax" or seen.high <= seen.low:
        return Range(seen.low, seen.high)
    if method == "percentile":
        share = np.cumsum(seen.counts) / max(int(seen.counts.sum()), 1)
        edges = seen.edges()
        first = int(np.searchsorted(share, _TAIL))
        last = int(np.searchsorted(share, 1 - _TAIL))
        return Range(float(edges[first]), float(edges[min(last + 1, _BINS)]))
    limit = _entropy_limit(seen)
    return Range(max(seen.low, -limit), min(seen.high, limit))


def _entropy_limit(seen: _Observed) -> float:
    """Return the magnitude at which clipping costs least information."""
    edges = seen.edges()
    middle = np.abs((edges[:-1] + edges[1:]) / 2)
    top = max(abs(seen.low), abs(seen.high))
    spread = np.zeros(_BINS)
    np.add.at(spread, np.minimum((middle / top * _BINS).astype(int), _BINS - 1), seen.counts)
    spread[0] = 0  # exact zeros, of ReLU above all, need no range
    best, limit = np.inf, top
    for bins in range(_LEVELS, _BINS + 1, 16):
        kept = spread[:bins].copy()
        kept[-1] += spread[bins:].sum()
        if kept.sum() == 0:
            continue
        cost = _divergence(kept, spread[:bins])
        if cost < best:
            best, limit = cost, bins / _BINS * top
    return float(limit)


def _divergence(clipped: npt.NDArray[np.float64], original: npt.NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence of a histogram from its version in `_LEVELS` levels."""
    groups = np.arange(len(original)) * _LEVELS // len(original)
    filled = original > 0
    total = np.bincount(groups, original, _LEVELS)
    count = np.bincount(groups, filled, _LEVELS)
    level = np.where(filled, (total / np.maximum(count, 1))[groups], 0.0)
    p, q = clipped / clipped.sum(), level / max(level.sum(), 1e-12)
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-9))))
