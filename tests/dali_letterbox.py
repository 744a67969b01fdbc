"""Compares a served DALI pipeline with the host's letterbox, in the Python that has DALI.

With Boxwright's sources on PYTHONPATH it prints, for each kind of preprocessing, the largest
difference in grey levels and how many placements differ.
"""

from __future__ import annotations

import importlib.util
import json
import random
import tempfile
from pathlib import Path

import cv2
import numpy as np

from boxwright.serve.dali import dali_file
from boxwright.serve.steps import prepared
from boxwright.types import HeadLayout, ModelSpec, Preprocess

BATCH = 8
ODD = [(1, 1), (3, 1000), (1280, 720), (641, 640), (640, 641), (1281, 1280), (640, 640), (83, 1280)]
KINDS = {
    "ultralytics": (Preprocess(), (640, 640)),
    "yolox": (
        Preprocess(resize="letterbox_top_left", rounding="floor", color="bgr", scale=1.0),
        (416, 416),
    ),
    "stretch": (
        Preprocess(resize="stretch", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        (320, 480),
    ),
}


def pipeline_of(rules: Preprocess, size: tuple[int, int]):
    """Load the generated file as the server does."""
    spec = ModelSpec("x", "x", "detect", ("a",), size, rules, HeadLayout())
    path = Path(tempfile.mkdtemp()) / "dali.py"
    path.write_text(dali_file(spec, BATCH, 2, "checked_image"))
    found = importlib.util.spec_from_file_location("served", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    pipeline = module.pipeline(prefetch_queue_depth=1)
    pipeline.build()
    return spec, pipeline


def compare(name: str) -> dict[str, float]:
    """Return the largest difference, in grey levels, and the placements that differ."""
    rules, size = KINDS[name]
    spec, pipeline = pipeline_of(rules, size)
    chance = random.Random(name)
    sizes = [*ODD, *((chance.randint(1, 900), chance.randint(1, 900)) for _ in range(40))]
    worst, wrong = 0.0, 0
    for start in range(0, len(sizes), BATCH):
        noise = np.random.default_rng(start)
        images = [
            cv2.GaussianBlur(noise.integers(0, 255, (*s, 3), dtype=np.uint8), (5, 5), 0)
            for s in sizes[start : start + BATCH]
        ]
        encoded = [np.asarray(cv2.imencode(".png", i)[1]).reshape(-1) for i in images]
        pipeline.feed_input("checked_image", encoded)
        tensors, rows = (v.as_array() for v in pipeline.run())
        batch, placement = prepared(images, spec)
        wrong += int((rows != placement).any(axis=1).sum())
        levels = np.abs(tensors - batch) * (np.array(rules.std)[:, None, None] / rules.scale)
        worst = max(worst, float(levels.max()))
    return {"levels": worst, "placements": wrong}


if __name__ == "__main__":
    print(json.dumps({name: compare(name) for name in KINDS}))
