"""Measures the embedded sample detector on generated pages that it was never trained on.

    python tools/measure_sample.py                     # mAP of 500 pages, the README's figures
    python tools/measure_sample.py --choose-threshold  # the operating threshold, on other pages

mAP comes from faster-coco-eval (COCO's rules, 100 detections a picture, score threshold 0.001).
Recall by size of lettering is counted at the operating threshold: a text block is found when a box
overlaps it with an IoU of 0.5 or more.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

import boxwright
from boxwright.boxes import iou_matrix
from boxwright.environment import describe_environment
from boxwright.sample import onnx_file
from boxwright.sample.pages_on_disk import LabelledPage, coco_from_pages, sample_pages
from boxwright.store import sha256_of_file
from boxwright.types import Detections

TEST_SEEDS = (20_000, 20_500)  # looked at by nothing but this measurement
THRESHOLD_SEEDS = (1000, 1300)
# Letter heights in pixels of the network's input (the page is shrunk to 640).
HEIGHTS = ((0, 4), (4, 6), (6, 9), (9, 16), (16, 1000))


@dataclass(frozen=True, slots=True)
class Seen:
    """A page and what was detected on it, down to the evaluation's threshold."""

    labelled: LabelledPage
    found: Detections


def seen_pages(model: Path, first: int, last: int, cjk: bool, processes: int) -> Iterator[Seen]:
    """Generate pages and detect in them."""
    detector = boxwright.load(model, "onnxruntime", score_threshold=0.001, quiet=True)
    detector.nms = detector.settings(0.001, 0.65)
    chunks = [range(s, min(s + 10, last)) for s in range(first, last, 10)]
    with ProcessPoolExecutor(processes) as pool:
        for pages in pool.map(_pages, chunks, [cjk] * len(chunks)):
            for labelled in pages:
                yield Seen(labelled, detector(labelled.page.image))


def _pages(seeds: range, cjk: bool) -> list[LabelledPage]:
    return sample_pages(seeds, cjk=cjk)


def accuracy(seen: list[Seen]) -> dict[str, float]:
    """Return mAP50-95, mAP50 and AP by box area, as COCO defines them."""
    truth = coco_from_pages(s.labelled for s in seen)
    results = [r for i, s in enumerate(seen, 1) for r in s.found.as_coco(i)]
    for result in results:
        result["category_id"] = 1
    with redirect_stdout(StringIO()):
        known = COCO(truth)
        evaluation = COCOeval_faster(known, known.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("mAP50-95", "mAP50", "mAP75", "AP_small", "AP_medium", "AP_large")
    return {name: round(float(v), 4) for name, v in zip(names, evaluation.stats[:6], strict=True)}


def network_scale(labelled: LabelledPage) -> float:
    """Return the factor from page to network pixels."""
    height, width = labelled.page.image.shape[:2]
    return 640 / max(height, width)


def is_found(labelled: LabelledPage, found: Detections) -> list[float]:
    """Return for each text block the best overlap of a box; each box answers for one block."""
    overlap = iou_matrix(found.xyxy, labelled.page.boxes)
    best = [0.0] * len(labelled.page.blocks)
    for row in overlap:  # best score first
        order = np.argsort(-row)
        for column in order:
            if row[column] < 0.5:
                break
            if best[column] == 0.0:
                best[column] = float(row[column])
                break
    return best


def groups(seen: list[Seen], threshold: float) -> dict[str, dict[str, dict[str, float]]]:
    """Return recall and mean overlap by letter height, kind and script."""
    table: dict[str, dict[str, list[float]]] = {"letter height": {}, "kind": {}, "script": {}}
    for height in HEIGHTS:
        table["letter height"][_range(height)] = []
    for s in seen:
        kept = s.found.select(s.found.scores > threshold)
        scale = network_scale(s.labelled)
        for block, overlap in zip(s.labelled.page.blocks, is_found(s.labelled, kept), strict=True):
            size = block.letter_height_px * scale
            span = next(h for h in HEIGHTS if h[0] <= size < h[1])
            table["letter height"][_range(span)].append(overlap)
            table["kind"].setdefault(block.kind, []).append(overlap)
            table["script"].setdefault(block.script, []).append(overlap)
    return {
        what: {
            name: {
                "blocks": len(values),
                "recall": round(sum(v > 0 for v in values) / len(values), 4),
                "mean IoU of found": round(float(np.mean([v for v in values if v > 0] or [0])), 4),
            }
            for name, values in rows.items()
            if values
        }
        for what, rows in table.items()
    }


def _range(span: tuple[int, int]) -> str:
    return f"{span[0]} to {span[1]} px" if span[1] < 1000 else f"{span[0]} px and more"


def counts(seen: list[Seen], threshold: float) -> dict[str, float]:
    """Return precision, recall and F1 at a threshold, IoU 0.5."""
    true = found = boxes = 0
    for s in seen:
        kept = s.found.select(s.found.scores > threshold)
        hits = sum(v > 0 for v in is_found(s.labelled, kept))
        true, found, boxes = true + len(s.labelled.page.blocks), found + hits, boxes + len(kept)
    precision, recall = found / max(boxes, 1), found / max(true, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    return {
        "threshold": threshold,
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "F1": round(f1, 4),
        "text blocks": true,
        "boxes": boxes,
    }


def picture_of_misses(seen: list[Seen], threshold: float, path: Path, pages: int = 8) -> int:
    """Write the pages with the most misses and wrong boxes; green true, red missed, blue wrong."""
    scored = []
    for s in seen:
        kept = s.found.select(s.found.scores > threshold)
        best = is_found(s.labelled, kept)
        overlap = iou_matrix(kept.xyxy, s.labelled.page.boxes)
        wrong = [i for i, row in enumerate(overlap) if not len(row) or row.max() < 0.5]
        errors = sum(v == 0 for v in best) + len(wrong)
        scored.append((errors, s, best, kept.xyxy[wrong]))
    scored.sort(key=lambda e: -e[0])
    tiles = []
    for _, s, best, wrong_boxes in scored[:pages]:
        canvas = s.labelled.page.image.copy()
        pen = max(2, canvas.shape[0] // 350)
        for block, overlap in zip(s.labelled.page.blocks, best, strict=True):
            _draw(canvas, block.xyxy, (60, 170, 0) if overlap else (0, 0, 255), pen)
        for box in wrong_boxes:
            _draw(canvas, box, (255, 90, 0), pen)
        factor = 440 / max(canvas.shape[:2])
        small = cv2.resize(canvas, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        tile = np.full((470, 470, 3), 235, np.uint8)
        tile[10 : 10 + small.shape[0], 10 : 10 + small.shape[1]] = small
        cv2.putText(tile, s.labelled.name, (12, 464), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1)
        tiles.append(tile)
    rows = [np.concatenate(tiles[i : i + 4], 1) for i in range(0, len(tiles) - 3, 4)]
    cv2.imwrite(str(path), np.concatenate(rows, 0), [cv2.IMWRITE_JPEG_QUALITY, 78])
    return sum(e[0] for e in scored)


def _draw(canvas: Any, box: Any, color: tuple[int, int, int], pen: int) -> None:
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, pen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=onnx_file())
    parser.add_argument("--pages", type=int, default=TEST_SEEDS[1] - TEST_SEEDS[0])
    parser.add_argument("--cjk", action="store_true", help="pages in Chinese, Japanese, Korean")
    parser.add_argument("--choose-threshold", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--misses", type=Path, help="JPEG file for the pages with most errors")
    options = parser.parse_args()
    first, last = TEST_SEEDS[0], TEST_SEEDS[0] + options.pages
    if options.choose_threshold:
        first, last = THRESHOLD_SEEDS
    seen = list(seen_pages(options.model, first, last, options.cjk, options.processes))
    if options.choose_threshold:
        rows = [counts(seen, t / 100) for t in range(10, 91, 2)]
        for row in rows:
            print(row)
        print("best F1:", max(rows, key=lambda r: r["F1"]))
        if options.out:
            lines = ",\n ".join(json.dumps(row) for row in rows)
            options.out.write_text(f"[{lines}]\n", encoding="utf-8")
        return
    spec = boxwright.load(options.model, "onnxruntime", quiet=True).spec
    result = {
        "model": options.model.name,
        "sha256": sha256_of_file(options.model),
        "pages": f"seeds {first} to {last - 1}" + (", cjk" if options.cjk else ""),
        "accuracy": accuracy(seen),
        "operating point": counts(seen, spec.score_threshold),
        "recall at the operating point": groups(seen, spec.score_threshold),
        "environment": {**describe_environment(), "python": platform.python_version()},
    }
    if options.misses:
        result["errors in the picture's ranking"] = picture_of_misses(
            seen, spec.score_threshold, options.misses
        )
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
