"""Mask and OKS mAP of one ONNX file beside the figures that Ultralytics' own validator prints.

    python benchmarks/task_accuracy_vs_ultralytics.py yolov8n-pose.fp32.onnx poses.json images/

The labels are a COCO file with masks or keypoints (`task_labels.py` makes one); the objects that
have them are written as YOLO text, which both read. Figures differ for the reasons that
docs/accuracy.md and docs/tasks.md name.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import environment, ultralytics_variables, write_results

import boxwright
from boxwright.datasets import open_dataset, wanted_of
from boxwright.evaluate import evaluate
from boxwright.rle import mask_from_rle


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, help="raw FP32 ONNX file of the task")
    parser.add_argument("labels", type=Path, help="COCO file with masks or keypoints")
    parser.add_argument("images", type=Path, help="folder of its pictures")
    parser.add_argument("--out", type=Path, help="result file")
    return parser.parse_args()


def line_of(annotation: dict[str, Any], class_id: int, size: tuple[int, int]) -> str | None:
    """Return a line of YOLO text, or None for an object without mask and keypoints."""
    height, width = size
    x, y, w, h = annotation["bbox"]
    if annotation.get("segmentation"):
        mask = mask_from_rle(annotation["segmentation"]).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outline = max(outlines, key=cv2.contourArea).reshape(-1, 2)
        if len(outline) < 3:
            return None
        values = (outline / np.array([width, height])).ravel()
    elif annotation.get("keypoints"):
        points = np.array(annotation["keypoints"], np.float64).reshape(-1, 3)
        points[:, :2] = np.clip(points[:, :2] / np.array([width, height]), 0, 1)
        box = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
        values = np.concatenate([box, points.ravel()])
    else:
        return None
    return f"{class_id} " + " ".join(f"{v:.6f}" for v in values)


def write_yolo(folder: Path, labels: Path, images: Path, names: tuple[str, ...]) -> Path:
    """Write the labelled pictures as a YOLO data set; return its YAML file."""
    data = json.loads(labels.read_text())
    known = {c["id"]: names.index(c["name"]) for c in data["categories"] if c["name"] in names}
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for image in data["images"]:
        own = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        own = [a for a in own if a["category_id"] in known]
        size = image["height"], image["width"]
        lines = [line_of(a, known[a["category_id"]], size) for a in own]
        name = Path(image["file_name"])
        (folder / "images" / name.name).symlink_to(next(images.rglob(name.name)).resolve())
        text = "\n".join(line for line in lines if line)
        (folder / "labels" / f"{name.stem}.txt").write_text(text + "\n")
    yaml: dict[str, Any] = {
        "path": str(folder),
        "train": "images",
        "val": "images",
        "names": list(names),
    }
    if any("keypoints" in a for a in data["annotations"]):
        yaml["kpt_shape"] = [17, 3]
    (folder / "data.yaml").write_text(json.dumps(yaml))
    return folder / "data.yaml"


def main() -> None:
    """Measure with both, print and write."""
    given = arguments()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ.update(ultralytics_variables(folder))
        with boxwright.load(given.model, "onnxruntime") as detector:
            spec = detector.spec
            data = write_yolo(folder / "data", given.labels, given.images, spec.class_names)
            dataset = open_dataset(str(data), class_names=spec.class_names, wanted=wanted_of(spec))
            ours = evaluate({"ours": detector}, dataset)["ours"]
        theirs = validated(given.model, spec.task, data, folder)
    facts = {
        "environment": environment(),
        "model": given.model.name,
        "pictures": ours.pictures,
        "objects": ours.objects,
        "ours": {
            "measure": ours.measure,
            "map50_95": ours.map50_95,
            "map50": ours.map50,
            **ours.beside,
        },
        "ultralytics": theirs,
    }
    print(json.dumps({k: facts[k] for k in ("ours", "ultralytics")}, indent=1))
    print(write_results(Path(__file__).stem, facts, given.out))


def validated(model: Path, task: str, data: Path, folder: Path) -> dict[str, float]:
    """Return what Ultralytics' validator says, with the file's own square input."""
    from worker import stand_in_for_torchvision

    answers, sys.stdout = sys.stdout, sys.stderr  # Ultralytics logs to stdout
    stand_in_for_torchvision()
    from ultralytics import YOLO

    found = YOLO(str(model), task=task).val(
        data=str(data), rect=False, batch=1, workers=0, device="cpu", plots=False,
        project=str(folder), name="val", exist_ok=True,
    )  # fmt: skip
    sys.stdout = answers
    return {k: float(v) for k, v in found.results_dict.items()}


if __name__ == "__main__":
    main()
