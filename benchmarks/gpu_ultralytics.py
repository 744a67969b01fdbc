"""The peer of gpu_stream.py: Ultralytics' predict from the same files, and one frame at a time.

On a GPU machine with torch, torchvision and ultralytics (Boxwright is not needed):

    python benchmarks/gpu_ultralytics.py yolo11n.pt pictures/ --out gpu_ultralytics.json

`model.predict(folder, batch=N, stream=True)` at each batch size, FP32 and half; the latency
is `model.predict(frame)` on an array in memory. Results are written after each step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np

_SUFFIXES = (".jpg", ".jpeg", ".png")
_WARM = 128


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", help="what YOLO() takes: .pt, .engine, .yaml")
    parser.add_argument("images", type=Path, help="folder of pictures")
    parser.add_argument("--files", type=int, default=4096, help="length of the list, with repeats")
    parser.add_argument("--batches", default="1,8,16,32,64")
    parser.add_argument("--iterations", type=int, default=1000, help="of the latency")
    parser.add_argument("--seconds", type=float, default=8.0, help="of every rate")
    parser.add_argument("--score-threshold", type=float, default=0.25)
    parser.add_argument("--iou-threshold", type=float, default=0.7)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--device", default="0", help="0, cpu, … (default 0)")
    parser.add_argument("--square", action="store_true", help="rect=False: no narrower inputs")
    parser.add_argument("--out", type=Path, default=Path("gpu_ultralytics.json"))
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Return what it ran on."""
    fields = "name,driver_version,compute_cap,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        gpu = "nvidia-smi is missing"
    versions = {}
    for name in ("torch", "torchvision", "ultralytics", "numpy", "opencv-python-headless"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "gpu": gpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "opencv": cv2.__version__,
        **versions,
    }


def precision(half: bool) -> dict[str, Any]:
    """Return the option that asks for FP16; it warns of the older name at every call."""
    return {"quantize": 16} if half else {}


class Peer:
    """The model, the files and the results."""

    def __init__(self, wishes: argparse.Namespace) -> None:
        from ultralytics import YOLO

        self.wishes = wishes
        unique = sorted(p for p in wishes.images.rglob("*") if p.suffix.lower() in _SUFFIXES)
        self.unique = [str(p) for p in unique]
        # A list of paths would be loaded whole and predicted as one batch, a text file is sorted;
        # a folder of links keeps the order in which pictures of all sizes follow each other.
        self.files = wishes.out.with_suffix(".files")
        self.files.mkdir(exist_ok=True)
        count = max(wishes.files, len(unique))
        for index, picture in enumerate(islice(cycle(unique), count)):
            link = self.files / f"{index:06d}{picture.suffix.lower()}"
            if not link.is_symlink():
                link.symlink_to(picture.resolve())
        self.model: Any = YOLO(wishes.checkpoint)
        self.common = {
            "conf": wishes.score_threshold,
            "iou": wishes.iou_threshold,
            "imgsz": wishes.image_size,
            "rect": not wishes.square,
            "device": wishes.device,
            "verbose": False,
        }
        self.result: dict[str, Any] = {
            "machine": machine(),
            "checkpoint": str(wishes.checkpoint),
            "settings": {k: str(v) for k, v in vars(wishes).items()},
            "files": {"unique": len(self.unique), "listed": count},
            "steps": {},
            "errors": {},
        }

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do one step, and write what there is."""
        try:
            found = work()
            self.result["steps"][name] = found
            shown = {k: v for k, v in found.items() if not isinstance(v, (list, dict))}
            print(name, json.dumps(shown), flush=True)
        except (RuntimeError, TypeError, ValueError, AttributeError, OSError, AssertionError):
            self.result["errors"][name] = traceback.format_exc()  # the other steps still run
            traceback.print_exc()
        self.wishes.out.write_text(json.dumps(self.result))

    def files_rate(self, batch: int, half: bool) -> dict[str, Any]:
        """Predict from the list of files for some seconds."""
        count, begin, stamps, detections = 0, 0.0, [], 0
        results = self.model.predict(
            str(self.files), batch=batch, stream=True, **precision(half), **self.common
        )
        for index, found in enumerate(results):
            if index < len(self.unique):
                detections += len(found.boxes)
            if index == _WARM:
                begin = perf_counter()
            elif index > _WARM:
                count += 1
                if count % batch == 0:
                    stamps.append(round(perf_counter() - begin, 5))
                    if stamps[-1] > self.wishes.seconds:
                        break
        results.close()
        return {
            "batch": batch,
            "half": half,
            "images_per_s": count / stamps[-1],
            "count": count,
            "seconds": stamps[-1],
            "detections_of_unique_files": detections,
            "stamps_s": stamps,
        }

    def latency(self, half: bool) -> dict[str, Any]:
        """Time `predict` on a frame in memory."""
        frames = [cv2.imread(p) for p in self.unique]
        for frame in frames[:50]:
            self.model.predict(frame, **precision(half), **self.common)
        samples = []
        for frame in islice(cycle(frames), self.wishes.iterations):
            begin = perf_counter()
            self.model.predict(frame, **precision(half), **self.common)
            samples.append((perf_counter() - begin) * 1e3)
        return {
            "batch": 1,
            "half": half,
            **{f"p{q}_ms": float(np.percentile(samples, q)) for q in (50, 95, 99)},
            "images_per_s": 1e3 / float(np.mean(samples)),
            "samples_ms": samples,
        }


def main() -> int:
    """Run every step."""
    wishes = arguments()
    peer = Peer(wishes)
    for half in (False, True):
        kind = "half" if half else "fp32"
        peer.step(f"latency, {kind}", lambda h=half: peer.latency(h))  # type: ignore[misc]
        for batch in (int(n) for n in wishes.batches.split(",")):
            peer.step(
                f"files, batch {batch}, {kind}",
                lambda b=batch, h=half: peer.files_rate(b, h),  # type: ignore[misc]
            )
    return 1 if peer.result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
