"""Files beside a checkpoint that say what its file does not: names, threshold, kind.

The convention is that of the deepghs model repositories: labels.json (a list of class names),
threshold.json ({"threshold": 0.272}), model_type.json ({"model_type": "yolo"}).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from boxwright.errors import RequestError, SourceError

__all__ = [
    "COCO_NAMES",
    "Labels",
    "Sidecars",
    "labels_from_json",
    "read_labels",
    "read_sidecars",
]

_FILES = ("labels.json", "threshold.json", "model_type.json")
_COLORED = re.compile(r"(?P<name>.*\S)\s+(?P<color>#[0-9a-fA-F]{6})", re.DOTALL)
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


class Labels(NamedTuple):
    """Class names, and their colours `#rrggbb`; no colours at all where no class has one."""

    names: tuple[str, ...]
    colors: tuple[str, ...] = ()


def labels_from_json(value: Any, what: str) -> Labels:
    """Read a list of names, a mapping of numbers to names, or MMDetection's classes and palette.

    A name may end in its colour, ` #rrggbb`; a palette is a list of (red, green, blue).

    Raises:
        SourceError: It is none of these.
    """
    palette = None
    if isinstance(value, dict):
        told = {str(k).lower(): v for k, v in value.items()}
        if "classes" in told:
            value, palette = told["classes"], told.get("palette")
        else:
            try:
                value = [value[k] for k in sorted(value, key=int)]
            except ValueError:
                value = None
    if isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, list) or not value or not all(isinstance(n, str) for n in value):
        raise SourceError(
            what, "it is not a list of class names", 'write e.g. ["person", "bicycle"]'
        )
    found = [_COLORED.fullmatch(name) for name in value]
    names = tuple(m["name"] if m else n for m, n in zip(found, value, strict=True))
    colors = tuple(m["color"].lower() if m else "" for m in found)
    if palette is not None:
        colors = _colors_from_palette(palette, len(names), what)
    return Labels(names, colors if any(colors) else ())


def _colors_from_palette(palette: Any, count: int, what: str) -> tuple[str, ...]:
    rows = palette if isinstance(palette, (list, tuple)) else ()
    whole = [
        isinstance(row, (list, tuple))
        and len(row) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in row)
        for row in rows
    ]
    if not all(whole) or len(rows) != count:
        raise SourceError(
            what,
            f"its palette is not {count} colours of three numbers from 0 to 255",
            "give each class one, or drop the palette",
        )
    return tuple("#{:02x}{:02x}{:02x}".format(*row) for row in rows)


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
            labels = labels_from_json(value, str(path)).names
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


def read_labels(text: str) -> Labels:
    """Read `--labels`: a JSON or text file (a name per line), or `coco` for COCO's 80 names.

    Raises:
        RequestError: There is no such file.
        SourceError: It holds no names, or a colour that is none.
    """
    if text.lower() in ("coco", "coco80"):
        return Labels(COCO_NAMES)
    path = Path(text)
    if not path.is_file():
        raise RequestError(
            f"--labels {text}", "there is no such file", "give a JSON or text file, or coco"
        )
    if path.suffix.lower() == ".json":
        return labels_from_json(_json(path), str(path))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise SourceError(str(path), f"it cannot be read ({error})", "give UTF-8 text") from None
    return labels_from_json([line.strip() for line in lines if line.strip()], str(path))
