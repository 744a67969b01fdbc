"""A plan of pictures of any size: contexts and CUDA graphs kept for the sizes that come often.

    python benchmarks/gpu_image_sizes.py yolo11n.fp16.end2end.image.trt8.6.0-sm90.plan \
        coco128/images --count 1000 --out image_sizes.json

On a GPU machine with the base package, the plan's TensorRT and cuda-bindings. One size: the most
frequent one of the pictures again and again. Changing sizes: all pictures, in an order of chance
that is the same for every setting. Timed is `TensorRtBackend.infer`, from uint8 pixels on the host
to boxes on the host. Each setting opens the plan anew, in `--rounds` rounds of alternating order.
Memory is what the whole GPU lost between before the plan was opened and the end of its pictures, so
that nobody else must use the GPU. Every setting's boxes are compared with those of the first
setting of its kind. The exit status is 1 where boxes differ.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.backends.tensorrt import TensorRtBackend
from boxwright.detector import Detector
from boxwright.environment import package_versions
from boxwright.images import read_image
from boxwright.loading import load
from boxwright.nvidia import cuda_result, cuda_runtime
from boxwright.store import sha256_of_file, write_atomic
from boxwright.types import Detections

_SUFFIXES = (".jpg", ".jpeg", ".png")
_BOX_PX, _SCORE = 0.01, 0.0005  # the same kernels: as a rule not one bit differs


@dataclass(frozen=True, slots=True)
class Setting:
    """How a plan is opened: with graphs of the first context, and how many kept shapes."""

    name: str
    changing: bool
    graph: bool
    kept: int


@dataclass(frozen=True, slots=True)
class Work:
    """Pictures as they are fed, and the order in which they come."""

    feeds: Sequence[npt.NDArray[Any]]
    places: Sequence[Any]
    order: Sequence[int]


def settings(kept: Sequence[int]) -> list[Setting]:
    """Return all settings; the first of each kind is the one that others are compared with."""
    found = [
        Setting("one size, launch by launch", False, False, 0),
        Setting("one size, CUDA graph", False, True, 0),
        Setting("changing, launch by launch", True, False, 0),
        Setting("changing, captured at every change", True, True, 0),
    ]
    for count in kept:
        if count:
            found.append(Setting(f"one size, kept {count}", False, False, count))
            found.append(Setting(f"changing, kept {count}", True, False, count))
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("images", nargs="+", type=Path, help="pictures, or folders of them")
    parser.add_argument("--count", type=int, default=1000, help="pictures of each setting")
    parser.add_argument("--warmup", type=int, default=20, help="pictures before, of one size")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kept", default="4,8,16", help="numbers of kept shapes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("image_sizes.json"))
    return parser.parse_args()


def read_pictures(paths: Sequence[Path]) -> list[npt.NDArray[Any]]:
    """Return the pictures of files and folders, in the order of their names."""
    files = []
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [f for f in inside if f.suffix.lower() in _SUFFIXES]
    if not files:
        raise SystemExit(f"{', '.join(map(str, paths))}: there is no picture")
    return [read_image(f) for f in files]


def works(detector: Detector, wishes: argparse.Namespace) -> dict[bool, Work]:
    """Return the work of changing sizes (True) and of one size (False)."""
    images = read_pictures(wishes.images)
    prepared = [detector.preprocess([image]) for image in images]
    feeds = [np.array(batch) for batch, _ in prepared]
    places = [where[0] for _, where in prepared]
    chance = random.Random(wishes.seed)
    changing = [chance.randrange(len(feeds)) for _ in range(wishes.count)]
    (shape, _), *_ = Counter(feed.shape for feed in feeds).most_common(1)
    same = [i for i, feed in enumerate(feeds) if feed.shape == shape]
    one = [same[i % len(same)] for i in range(wishes.count)]
    return {True: Work(feeds, places, changing), False: Work(feeds, places, one)}


def free_bytes() -> int:
    """Return the free memory of the GPU."""
    cuda: Any = cuda_runtime()
    # A call that returns two values comes as a tuple of them.
    free, _ = cuda_result(cuda.cudaMemGetInfo(), "cudaMemGetInfo")
    return int(free)


def measure(
    plan: Path, setting: Setting, work: Work, warmup: int
) -> tuple[dict[str, Any], dict[int, Detections]]:
    """Run all pictures of a setting; return its facts, and the detections of every picture."""
    before = free_bytes()
    detector = load(plan, cuda_graph=setting.graph)
    try:
        backend = detector.backend
        assert isinstance(backend, TensorRtBackend)
        backend.keep_shapes(setting.kept)
        if not setting.changing:
            for index in work.order[:warmup]:
                backend.infer(detector.feed(work.feeds[index]))
        kept = backend.kept_shapes
        samples, found = [], {}
        captured, changes, last = [], 0, None
        for number, index in enumerate(work.order):
            feed = detector.feed(work.feeds[index])
            changes += work.feeds[index].shape != last
            last = work.feeds[index].shape
            made = kept.captures if kept else 0
            begin = perf_counter()
            outputs = backend.infer(feed)
            samples.append((perf_counter() - begin) * 1e3)
            if kept and kept.captures > made:
                captured.append(number)
            (found[index],) = detector.postprocess(outputs, [work.places[index]])
        used = before - free_bytes()
        everywhere = setting.graph and not setting.kept  # each change captures then
        facts = {
            "setting": setting.name,
            "runs_on": backend.description,
            "captures": kept.captures if kept else changes * everywhere,
            "captured_at": captured,
            "kept": [list(s[0]) for s in kept.shapes] if kept else [],
            "gpu_bytes": used,
            "samples_ms": [round(s, 4) for s in samples],
        }
        return facts, found
    finally:
        detector.close()


def differences(one: dict[int, Detections], other: dict[int, Detections]) -> dict[str, Any]:
    """Compare detections picture by picture."""
    wrong, box, score = [], 0.0, 0.0
    for index, a in one.items():
        b = other[index]
        if len(a) != len(b) or not np.array_equal(a.class_ids, b.class_ids):
            wrong.append(index)
            continue
        gap = float(np.abs(a.xyxy - b.xyxy).max(initial=0))
        change = float(np.abs(a.scores - b.scores).max(initial=0))
        box, score = max(box, gap), max(score, change)
        if gap > _BOX_PX or change > _SCORE:
            wrong.append(index)
    boxes = sum(map(len, one.values()))
    return {"pictures": len(one), "boxes": boxes, "wrong": wrong, "px": box, "score": score}


def machine() -> dict[str, Any]:
    """Return what it ran on."""
    fields = "name,driver_version,compute_cap,clocks.sm,clocks.max.sm,memory.used,utilization.gpu"
    asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        gpu = "nvidia-smi is missing"
    python = platform.python_version()
    return {"gpu": gpu, "python": python, **package_versions(("tensorrt", "cuda-bindings"))}


def main() -> int:
    """Measure every setting; the exit status says whether all boxes agree."""
    wishes = arguments()
    with load(wishes.plan, cuda_graph=False) as detector:
        work = works(detector, wishes)
    shapes = Counter("x".join(map(str, feed.shape)) for feed in work[True].feeds)
    report: dict[str, Any] = {
        "machine": machine(),
        "plan": wishes.plan.name,
        "plan_sha256": sha256_of_file(wishes.plan),
        "wishes": {key: str(value) for key, value in vars(wishes).items()},
        "shapes": dict(shapes.most_common()),
        "order": {"changing": list(work[True].order), "one size": list(work[False].order)},
        "runs": [],
    }
    asked = settings([int(n) for n in wishes.kept.split(",")])
    first: dict[bool, dict[int, Detections]] = {}
    agree = True
    for number in range(wishes.rounds):
        for setting in asked if number % 2 == 0 else asked[::-1]:
            facts, found = measure(wishes.plan, setting, work[setting.changing], wishes.warmup)
            gaps = differences(first.setdefault(setting.changing, found), found)
            agree = agree and not gaps["wrong"]
            report["runs"].append({"round": number, **facts, "differences": gaps})
            write_atomic(wishes.out, json.dumps(report).encode())
            times = facts["samples_ms"]
            print(
                f"{number} {setting.name:36} p50 {statistics.median(times):7.3f} ms, "
                f"mean {statistics.fmean(times):7.3f}, captures {facts['captures']:4}, "
                f"{facts['gpu_bytes'] / 2**20:6.0f} MiB, differing pictures {len(gaps['wrong'])} "
                f"({gaps['px']:.4f} px)",
                flush=True,
            )
    print(f"{wishes.out}: {len(report['runs'])} runs, boxes {'agree' if agree else 'DIFFER'}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
