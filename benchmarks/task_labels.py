"""Makes labels with masks or keypoints for pictures that have boxes alone, to lose accuracy on.

    python benchmarks/task_labels.py yolov8n-seg.fp32.onnx coco128.json images/ --out masks.json

Each labelled box takes the mask (the keypoints) of the detection of its class that overlaps it
most, by at least a half, and what is taken is disturbed: masks are moved and grown or shrunk by
about 2 % of the object's size, keypoints by as much as COCO's annotators differ (its sigmas). Boxes
that no detection meets stay without. So the labels lean towards the very file that they come from:
they tell what another precision of the same weights loses, rather too much than too little, and
nothing of how good the model is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import boxwright
from boxwright.boxes import iou_matrix
from boxwright.images import read_image
from boxwright.overlaps import sigmas_of
from boxwright.rle import rle_from_mask
from boxwright.types import Detections

_SCORE = 0.1
_OVERLAP = 0.5
_MASK_SHARE = 0.02  # of the square root of the area
_SEEN = 0.5


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="FP32 file of the task")
    parser.add_argument("labels", type=Path, help="COCO file with boxes")
    parser.add_argument("images", type=Path, help="folder of its pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("all", "even", "odd"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Detect, match, disturb, write."""
    given = arguments()
    rng = np.random.default_rng(given.seed)
    data = json.loads(given.labels.read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    images = sorted(data["images"], key=lambda i: i["file_name"])
    if given.part != "all":
        images = images[given.part == "odd" :: 2]
    kept, taken = [], 0
    with boxwright.load(given.model) as detector:
        known = set(detector.spec.class_names)
        for image in images:
            own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            own = [a for a in own if names[a["category_id"]] in known]
            picture = read_image(next(given.images.rglob(image["file_name"])))
            found = detector(picture, score_threshold=_SCORE)
            for annotation in own:
                row = _match(annotation, names[annotation["category_id"]], found)
                shape = {} if row is None else _disturbed(found, row, rng)
                taken += bool(shape)
                kept.append({**annotation, **shape})
    given.out.parent.mkdir(parents=True, exist_ok=True)
    made = {**data, "images": images, "annotations": kept}
    given.out.write_text(json.dumps(made))
    print(f"{taken} of {len(kept)} objects in {len(images)} pictures: {given.out}")


def _match(annotation: dict[str, Any], name: str, found: Detections) -> int | None:
    """Return the detection that an annotated box means, or None."""
    x, y, width, height = annotation["bbox"]
    box = np.array([[x, y, x + width, y + height]], np.float32)
    same = np.array([found.class_name(int(c)) == name for c in found.class_ids], bool)
    shared = np.where(same, iou_matrix(box, found.xyxy)[0], 0)
    return int(shared.argmax()) if len(shared) and shared.max() >= _OVERLAP else None


def _disturbed(found: Detections, row: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return `segmentation` or `keypoints` of a detection, with some error, and its area."""
    if found.mask_crops is not None:
        mask: Any = found.mask_crops[row].within(found.image_size).astype(np.uint8)
        step = _MASK_SHARE * float(np.sqrt(mask.sum()))
        size = 2 * round(abs(rng.normal(0, step))) + 1
        edit = cv2.dilate if rng.random() < 0.5 else cv2.erode
        mask = edit(mask, np.ones((size, size), np.uint8))
        dx, dy = rng.normal(0, step, 2)
        shift = np.array([[1, 0, round(dx)], [0, 1, round(dy)]], np.float32)
        mask = cv2.warpAffine(mask, shift, mask.shape[::-1], flags=cv2.INTER_NEAREST)
        if not mask.any():
            return {}
        return {"segmentation": rle_from_mask(mask > 0), "area": float(mask.sum())}
    assert found.keypoints is not None, "the task is segment or pose"
    box, points = found.xyxy[row], found.keypoints[row].astype(np.float64)
    area = float(np.prod(box[2:] - box[:2])) * 0.53
    spread = sigmas_of(len(points)).astype(np.float64)[:, None] * np.sqrt(area)
    places = points[:, :2] + rng.normal(0, 1, (len(points), 2)) * spread
    seen = np.where(points[:, 2] > _SEEN, 2, 0)[:, None]
    rows = np.concatenate([np.where(seen > 0, places, 0), seen], axis=1)
    flat = [round(float(v), 2) for v in rows.ravel()]
    return {"keypoints": flat, "num_keypoints": int((seen > 0).sum()), "area": area}


if __name__ == "__main__":
    main()
