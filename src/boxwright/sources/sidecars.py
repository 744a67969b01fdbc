"""Files beside a checkpoint that say what its file does not: names, threshold, kind.

The convention is that of the deepghs model repositories: labels.json (a list of class names),
threshold.json ({"threshold": 0.272}), model_type.json ({"model_type": "yolo"}).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.errors import RequestError, SourceError

__all__ = ["COCO_NAMES", "Sidecars", "labels_from_text", "read_sidecars"]

_FILES = ("labels.json", "threshold.json", "model_type.json")
_YOLO_KINDS = frozenset({"yolo", "ultralytics", "detection", "detect"})

# The 80 classes of COCO 2017 in the order of the YOLO projects (cocodataset.org).
COCO_NAMES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What the files beside a checkpoint say; None where they say nothing.

    Attributes:
        files: Those that were read.
        labels: Class names.
        score_threshold: 0..1.
        model_type: Kind of model.
    """

    files: tuple[Path, ...] = ()
    labels: tuple[str, ...] | None = None
    score_threshold: float | None = None
    model_type: str | None = None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SourceError(
            str(path), f"it cannot be read as JSON ({error})", "mend it or move it away"
        ) from None


def _labels(value: Any, what: str) -> tuple[str, ...]:
    if isinstance(value, dict):
        try:
            value = [value[k] for k in sorted(value, key=int)]
        except ValueError:
            value = None
    if not isinstance(value, list) or not value or not all(isinstance(n, str) for n in value):
        raise SourceError(
            what, "it is not a list of class names", 'write e.g. ["person", "bicycle"]'
        )
    return tuple(value)


def read_sidecars(checkpoint: Path) -> Sidecars:
    """Read the files beside a checkpoint.

    Raises:
        SourceError: One is damaged, or tells of a model that is not a YOLO detector.
    """
    present = [checkpoint.parent / n for n in _FILES if (checkpoint.parent / n).is_file()]
    labels: tuple[str, ...] | None = None
    threshold: float | None = None
    kind: str | None = None
    for path in present:
        value = _json(path)
        if path.name == "labels.json":
            labels = _labels(value, str(path))
        elif path.name == "threshold.json":
            number = value.get("threshold") if isinstance(value, dict) else value
            if (
                isinstance(number, bool)
                or not isinstance(number, (int, float))
                or not 0 <= number <= 1
            ):
                raise SourceError(
                    str(path), "it holds no threshold between 0 and 1", 'write {"threshold": 0.25}'
                )
            threshold = float(number)
        else:
            named = value.get("model_type") if isinstance(value, dict) else value
            if not isinstance(named, str) or named.lower() not in _YOLO_KINDS:
                raise SourceError(
                    str(path),
                    f"model type {named!r} is not a YOLO detector",
                    "give a YOLO detector",
                )
            kind = named
    return Sidecars(tuple(present), labels, threshold, kind)


def labels_from_text(text: str) -> tuple[str, ...]:
    """Read `--labels`: a JSON or text file (a name per line), or `coco` for COCO's 80 names.

    Raises:
        RequestError: There is no such file.
        SourceError: It holds no names.
    """
    if text.lower() in ("coco", "coco80"):
        return COCO_NAMES
    path = Path(text)
    if not path.is_file():
        raise RequestError(
            f"--labels {text}", "there is no such file", "give a JSON or text file, or coco"
        )
    if path.suffix.lower() == ".json":
        return _labels(_json(path), str(path))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise SourceError(str(path), f"it cannot be read ({error})", "give UTF-8 text") from None
    return _labels([line.strip() for line in lines if line.strip()], str(path))
