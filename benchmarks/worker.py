"""One side of a comparison in its own process, asked over pipes, a JSON line each way.

Importing ultralytics calls `cv2.setNumThreads(0)` for its whole process and limits OpenMP, so the
sides never share one. Start it as `python worker.py SIDE MODEL SETTINGS`; SIDE is `onnxruntime`,
`openvino`, `auto` (ours) or `ultralytics`; SETTINGS is JSON: pictures, threads, score, iou, decode.

Requests: `["time", index]` answers the spans of one detection in milliseconds, and `cpu`, the
processor time of all threads of this process meanwhile, which other programs disturb less;
`["found", index]` answers [x1, y1, x2, y2, score, class] rows; `["peak"]` the peak RSS in kB.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

__all__ = ["main", "peak_rss_kb", "stand_in_for_torchvision"]

Side = Callable[[Any], tuple[list[list[float]], dict[str, float]]]
_STEPS = ("preprocess", "infer", "postprocess")


def stand_in_for_torchvision() -> None:
    """Give Ultralytics its own NMS as `torchvision.ops.nms`.

    torchvision from PyPI has no compiled operators beside the CPU build of torch, and Ultralytics
    imports it before the first detection.
    """
    from ultralytics.utils.nms import TorchNMS

    package, operators = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    vars(operators)["nms"] = TorchNMS.nms
    vars(package)["ops"] = operators
    sys.modules.update({"torchvision": package, "torchvision.ops": operators})


def peak_rss_kb() -> int:
    """Return the most resident memory that this process ever had (Linux), in kB."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise SystemExit("no VmHWM in /proc/self/status: the memory benchmark needs Linux")


def _ours(model: str, runtime: str, settings: dict[str, Any]) -> Side:
    from boxwright.loading import load

    detector = load(
        model,
        runtime,  # type: ignore[arg-type]
        threads=settings["threads"],
        score_threshold=settings["score"],
        iou_threshold=settings["iou"],
    )
    spans: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = perf_counter()
            result = function(*arguments)
            spans[name] = (perf_counter() - start) * 1e3
            return result

        return call

    for name in _STEPS:  # on this object alone: the call below is the public one
        setattr(detector, name, timed(name, getattr(detector, name)))

    def detect(picture: Any) -> tuple[list[list[float]], dict[str, float]]:
        start = perf_counter()
        found = detector(picture)
        total = (perf_counter() - start) * 1e3
        rows = [
            [*map(float, box), float(score), float(label)]
            for box, score, label in zip(found.xyxy, found.scores, found.class_ids, strict=True)
        ]
        return rows, {**spans, "total": total}

    return detect


def _ultralytics(model: str, settings: dict[str, Any]) -> Side:
    import torch
    from ultralytics import YOLO

    stand_in_for_torchvision()
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    yolo = YOLO(model, task="detect")
    wishes = {"conf": settings["score"], "iou": settings["iou"], "device": "cpu", "verbose": False}

    def detect(picture: Any) -> tuple[list[list[float]], dict[str, float]]:
        start = perf_counter()
        found = yolo.predict(picture, **wishes)[0]
        total = (perf_counter() - start) * 1e3
        speed = found.speed
        spans = {
            "preprocess": float(speed["preprocess"]),
            "infer": float(speed["inference"]),
            "postprocess": float(speed["postprocess"]),
            "total": total,
        }
        return found.boxes.data.tolist(), spans

    return detect


def main() -> None:
    """Answer requests until the pipe closes."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # Ultralytics logs to stdout
    side, model, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    detect = (
        _ultralytics(model, settings) if side == "ultralytics" else _ours(model, side, settings)
    )
    pictures: list[Any] = settings["pictures"]
    if settings["decode"]:
        import cv2
        import numpy as np

        # Ultralytics replaces cv2.imread; decoding the bytes is the same on both sides.

        data = [np.fromfile(path, np.uint8) for path in pictures]
        pictures = [cv2.imdecode(d, cv2.IMREAD_COLOR) for d in data]
    for line in sys.stdin:
        request = json.loads(line)
        if request[0] == "peak":
            answer: Any = peak_rss_kb()
        else:
            begin = process_time()
            rows, spans = detect(pictures[request[1]])
            spans["cpu"] = (process_time() - begin) * 1e3
            answer = rows if request[0] == "found" else spans
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
