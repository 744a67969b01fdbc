"""mAP of Boxwright's files beside Ultralytics' own validation of the same checkpoints.

Three things differ between the two, and each is measured by itself: the rules that turn detections
into an average precision, the shape of the input, and the detections.

Run: `python benchmarks/accuracy_vs_ultralytics.py yolo11n.pt ... --data coco128/`
The folder holds `images/` and `labels/`; it is copied, since Ultralytics writes into it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import (
    environment,
    export_ours,
    markdown_table,
    ultralytics_variables,
    write_results,
)
from worker import stand_in_for_torchvision

from boxwright.boxes import xyxy_from_xywh
from boxwright.datasets import Dataset, open_dataset
from boxwright.evaluate import MAX_DETECTIONS, evaluate
from boxwright.loading import load
from boxwright.scoring import Labelled, average_precision
from boxwright.types import Accuracy

_SHAPES = {"square": False, "rect": True}


def measure(checkpoint: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Return the figures of one checkpoint, on both sides.

    Args:
        checkpoint: Of Ultralytics.
        data: A copy of the data set that may be written to, with `data.yaml`.
        folder: For files in between.
    """
    with load(export_ours(checkpoint, folder), "onnxruntime", quiet=True) as detector:
        dataset = open_dataset(str(data), class_names=detector.spec.class_names)
        ours = evaluate({"ours": detector}, dataset)["ours"]
        nms_free = detector.spec.layout.nms_free
    shutil.rmtree(folder / "ours")
    theirs = {shape: _validate(checkpoint, data, nms_free, shape, folder) for shape in _SHAPES}
    rescored = {
        shape: _rescore(dataset, Path(figures.pop("file"))) for shape, figures in theirs.items()
    }
    return {
        "checkpoint": checkpoint.name,
        "nms_free_head": nms_free,
        "ours": _short(ours),
        "their_detections_by_our_rules": rescored,
        "theirs": theirs,
        "ours_in_full": {k: v for k, v in ours.as_dict().items() if k != "pr_curve"},
    }


def _short(accuracy: Accuracy) -> dict[str, float | None]:
    return {"map50_95": accuracy.map50_95, "map50": accuracy.map50}


def _validate(
    checkpoint: Path, data: Path, nms_free: bool, shape: str, folder: Path
) -> dict[str, Any]:
    """Run Ultralytics' validation in a process of its own."""
    settings = {
        "checkpoint": str(checkpoint.absolute()),
        "data": str(data / "data.yaml"),
        "nms_free": nms_free,
        "rect": _SHAPES[shape],
        "out": str(folder / shape),
    }
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(settings)],
        env=ultralytics_variables(folder),
        check=True,
        capture_output=True,
        text=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _child(settings: dict[str, Any]) -> None:
    """Validate as Ultralytics does by default, and say what it measured and where it wrote."""
    answers, sys.stdout = sys.stdout, sys.stderr  # Ultralytics logs to stdout
    from ultralytics import YOLO

    stand_in_for_torchvision()
    found = YOLO(settings["checkpoint"], task="detect").val(
        data=settings["data"],
        rect=settings["rect"],
        batch=8,
        workers=0,
        device="cpu",
        plots=False,
        save_json=True,
        project=settings["out"],
        name="val",
        exist_ok=True,
        **({"nms": False} if settings["nms_free"] else {}),
    )
    file = next(Path(settings["out"]).rglob("predictions.json"))
    figures = {"map50_95": float(found.box.map), "map50": float(found.box.map50), "file": str(file)}
    print(json.dumps(figures), file=answers)


def _rescore(dataset: Dataset, predictions: Path) -> dict[str, float]:
    """Score Ultralytics' detections by the rules that ours are scored by."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(predictions.read_bytes()):
        by_name.setdefault(row["file_name"], []).append(row)
    pictures = []
    for item in dataset.items:
        height, width = item.read().shape[:2]
        truth = item.truth((height, width))
        rows = sorted(by_name.get(Path(item.name).name, []), key=lambda r: -float(r["score"]))
        boxes = np.array([r["bbox"] for r in rows], np.float32).reshape(-1, 4)
        pictures.append(
            Labelled(
                xyxy=truth.xyxy,
                class_ids=truth.class_ids,
                crowd=truth.crowd,
                areas=truth.areas,
                found_xyxy=xyxy_from_xywh(boxes),
                found_scores=np.array([r["score"] for r in rows], np.float32),
                found_class_ids=np.array([r["category_id"] - 1 for r in rows], np.int64),
            )
        )
    table = average_precision(pictures, len(dataset.class_names), MAX_DETECTIONS)
    return {"map50_95": table.mean, "map50": table.mean_50}


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> Path:
    """Copy the data set and describe it, so that Ultralytics may write its cache into it."""
    data = folder / "data"
    for part in ("images", "labels"):
        shutil.copytree(source / part, data / part)
    lines = [f"path: {data}", "train: images", "val: images", "names:"]
    lines += [f"  {i}: {json.dumps(name)}" for i, name in enumerate(names)]
    (data / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return data


def _row(figures: dict[str, Any]) -> list[str]:
    rescored, theirs = figures["their_detections_by_our_rules"], figures["theirs"]
    sides = (figures["ours"], rescored["square"], theirs["square"], theirs["rect"])
    cells = [f"{s['map50_95']:.4f} / {s['map50']:.4f}" for s in sides]
    head = " (NMS-free)" if figures["nms_free_head"] else ""
    return [figures["checkpoint"].removesuffix(".pt") + head, *cells]


def main() -> None:
    """Measure every checkpoint; print a table and write the figures."""
    if sys.argv[1:2] == ["--child"]:
        _child(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    wishes = parser.parse_args()
    facts: dict[str, Any] = {"environment": environment(), "models": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from boxwright.sources.sidecars import COCO_NAMES

        data = _copy(wishes.data, folder, COCO_NAMES)
        for checkpoint in wishes.checkpoints:
            facts["models"].append(measure(checkpoint, data, folder))
    head = [
        "mAP50-95 / mAP50",
        "Boxwright",
        "theirs, COCO's rules",
        "theirs, square",
        "theirs, rect",
    ]
    print(markdown_table(head, [_row(m) for m in facts["models"]]))
    print(f"\nfigures: {write_results('accuracy_vs_ultralytics', facts, wishes.out).name}")


if __name__ == "__main__":
    main()
