"""YOLO labels: a text file beside each picture, of class ids and fractions of its sides.

The layouts are those of Ultralytics (docs.ultralytics.com, "Object Detection Datasets") and of
the darknet family before it: a YAML file that names the parts, a folder with `images/` and
`labels/`, or pictures and labels side by side.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from boxwright.datasets.parts import Part, part_from_folder, part_from_list, part_from_yaml
from boxwright.datasets.records import (
    BAD_CLASS,
    BAD_LINE,
    DUPLICATE_PICTURE,
    MISSING_PICTURE,
    NO_LABEL_FILE,
    NO_PICTURE,
    POLYGON,
    UNKNOWN_CLASS,
    Dataset,
    Item,
    Objects,
    Problems,
    Wanted,
    dataset_from_items,
    item_from_objects,
    model_ids_from_names,
)
from boxwright.datasets.shapes import BOXES_ALONE, Polygons, Shape
from boxwright.errors import SourceError
from boxwright.images import read_image

__all__ = ["dataset_from_yolo"]

_CLASS = re.compile(r"[+-]?[0-9]{1,9}(\.0*)?")  # some tools write 3.0
# Beyond these no rounding explains a fraction of a side: the numbers are pixels.
_LEAST, _MOST = -1.0, 2.0
_NO_LABELS = re.compile(
    r"(classes|train|val|valid|test|trainval|names|labels|requirements|notes|readme.*|license.*)\.txt"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of a label file, in fractions."""

    class_id: int
    box: tuple[float, float, float, float]  # xyxy
    polygon: bool
    shape: Shape = None


def dataset_from_yolo(
    path: Path, class_names: Sequence[str], split: str | None, wanted: Wanted = BOXES_ALONE
) -> Dataset:
    """Open a YAML file, a folder, or a text file that lists pictures.

    A picture without a label file shows nothing, as Ultralytics has it; that is counted.

    Args:
        path: What to open.
        class_names: Of the model.
        split: Part of it.
        wanted: What is read besides boxes and classes: polygons, keypoints or corners.

    Raises:
        RequestError: There is no such part, or several and none is chosen.
        SourceError: It cannot be read, holds no pictures or no labels, no class is the model's, or
            its keypoints are not.
    """
    part = _part(path, split)
    lines = _Lines(wanted, _numbers_of_points(part, path, wanted))
    problems = Problems()
    ids = None if part.names is None else model_ids_from_names(part.names, class_names, str(path))
    classes = _Classes(part.names, ids, len(class_names))
    pictures = _pictures(part, problems)
    if not pictures:
        raise SourceError(str(path), "it holds no pictures", "check the path, or --split")
    root = Path(os.path.commonpath([p.parent for p in pictures]))
    items: list[Item] = []
    labels: set[Path] = set()
    for picture in pictures:
        label, objects = _label_of(picture), Objects()
        if label is None:
            problems.add(NO_LABEL_FILE, str(picture))
        else:
            labels.add(label)
            objects = _objects_from_file(label, classes, problems, lines)
        read = partial(read_image, picture)
        name = picture.relative_to(root).as_posix()
        where = str(label or picture)
        items.append(item_from_objects(name, picture, read, None, objects, problems, where, wanted))
    if not labels:
        raise SourceError(
            str(path),
            f"it holds {len(pictures)} pictures and not one label file",
            "put labels/NAME.txt next to images/, or NAME.txt beside each picture",
        )
    if (
        wanted.task == "obb"
        and BAD_LINE in problems.counts
        and not any(len(i.boxes) for i in items)
    ):
        raise SourceError(
            str(path),
            f"not one label is a rotated box (first: {problems.first[BAD_LINE]})",
            "give lines of a class and four corners x y, in fractions of the sides",
        )
    _count_labels_without_picture(part, labels, problems)
    return dataset_from_items(part.name, class_names, items, problems, wanted)


@dataclass(frozen=True, slots=True)
class _Lines:
    """How lines are read.

    Attributes:
        wanted: What besides boxes and classes.
        dimensions: Numbers of each keypoint, 2 or 3; None where either may be.
    """

    wanted: Wanted
    dimensions: int | None


def _numbers_of_points(part: Part, path: Path, wanted: Wanted) -> int | None:
    """Return how many numbers a keypoint has, where the data says it.

    Raises:
        SourceError: The data has another number of keypoints than the model.
    """
    if wanted.task != "pose" or part.keypoint_shape is None:
        return None
    count, dimensions = part.keypoint_shape
    if count != wanted.keypoints:
        raise SourceError(
            str(path),
            f"its kpt_shape says {count} keypoints, and the model has {wanted.keypoints}",
            "check that data and model belong together",
        )
    return dimensions


def _part(path: Path, split: str | None) -> Part:
    if path.is_dir():
        return part_from_folder(path, split)
    if not path.is_file():
        raise SourceError(f"--data {path}", "there is no such file or folder", "check the path")
    if path.suffix.lower() in (".yaml", ".yml"):
        return part_from_yaml(path, split)
    if path.suffix.lower() == ".txt":
        return part_from_list(path, split)
    raise SourceError(
        f"--data {path}",
        "it is no kind of data set that is known",
        "give a COCO .json, a data .yaml, a folder with images/ and labels/, or sample",
    )


def _pictures(part: Part, problems: Problems) -> list[Path]:
    """Return the pictures that are there, each once."""
    found: dict[Path, Path] = {}
    for picture in part.pictures:
        if not picture.is_file():
            problems.add(MISSING_PICTURE, str(picture))
            continue
        real = picture.resolve()
        if real in found:
            problems.add(DUPLICATE_PICTURE, str(picture))
        else:
            found[real] = picture.absolute()
    return list(found.values())


def _label_of(picture: Path) -> Path | None:
    """Return the label file: `labels` in the place of the last `images`, or beside the picture."""
    beside = picture.with_suffix(".txt")
    parts = list(beside.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            if (mirrored := Path(*parts)).is_file():
                return mirrored
            break
    return beside if beside.is_file() else None


@dataclass(frozen=True, slots=True)
class _Classes:
    """What the class ids of label files mean.

    Attributes:
        names: The data's own, by id; None when it names none, and counts as the model does.
        ids: The model's id by the data's, of the classes that the model has.
        count: Of the model's classes.
    """

    names: dict[int, str] | None
    ids: dict[int, int] | None
    count: int

    def model_id(self, class_id: int, where: str, problems: Problems) -> int | None:
        """Return the model's class id, or None and count why there is none."""
        if self.names is None or self.ids is None:
            if 0 <= class_id < self.count:
                return class_id
        elif class_id in self.ids:
            return self.ids[class_id]
        elif class_id in self.names:
            problems.add(UNKNOWN_CLASS, f"{where}, {self.names[class_id]}")
            return None
        problems.add(BAD_CLASS, f"{where}, class {class_id}")
        return None


def _objects_from_file(file: Path, classes: _Classes, problems: Problems, lines: _Lines) -> Objects:
    """Read a label file; what is wrong in it is counted, and the rest goes on."""
    objects = Objects()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError):
        problems.add(BAD_LINE, f"{file}, which is no text")
        return objects
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{file}:{number}"
        row = _row(words, lines)
        if row is None:
            problems.add(BAD_LINE, where)
            continue
        class_id = classes.model_id(row.class_id, where, problems)
        if class_id is None:
            continue
        if row.polygon:
            problems.add(POLYGON, where)
        objects.add(row.box, class_id, shape=row.shape)
    return objects


def _row(words: list[str], lines: _Lines = _Lines(BOXES_ALONE, None)) -> _Row | None:
    """Read one line: class, then centre and size, or three and more points.

    Of poses the keypoints follow centre and size; of rotated boxes there are four corners alone.

    >>> _row("2 0.5 0.5 0.25 0.5".split())
    _Row(class_id=2, box=(0.375, 0.25, 0.625, 0.75), polygon=False, shape=None)
    >>> _row("0 0.125 0.25 0.5 0.25 0.5 0.75".split())
    _Row(class_id=0, box=(0.125, 0.25, 0.5, 0.75), polygon=True, shape=None)
    >>> _row("0 0.5 0.5 0.25".split()), _row("0 320 240 100 100".split())
    (None, None)
    """
    if not _CLASS.fullmatch(words[0]):
        return None
    try:
        values = [float(w) for w in words[1:]]
    except ValueError:
        return None
    if not all(math.isfinite(v) and _LEAST <= v <= _MOST for v in values):
        return None
    class_id, task = int(float(words[0])), lines.wanted.task
    if task == "obb":
        return _around(class_id, values, task) if len(values) == 8 else None
    if len(values) == 4:
        return _Row(class_id, _from_centre(values), False)
    if task == "pose":
        return _pose(class_id, values, lines)
    if len(values) >= 6 and len(values) % 2 == 0:
        return _around(class_id, values, task)
    return None


def _from_centre(values: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = values
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _around(class_id: int, values: list[float], task: str) -> _Row:
    """Return the box around some points, and what they are to the task."""
    xs, ys = values[0::2], values[1::2]
    points = np.array(values, np.float64).reshape(-1, 2)
    shape: Shape = None
    if task == "segment":
        shape = Polygons((points,))
    elif task == "obb":
        shape = points
    return _Row(class_id, (min(xs), min(ys), max(xs), max(ys)), shape is None, shape)


def _pose(class_id: int, values: list[float], lines: _Lines) -> _Row | None:
    """Read centre, size and keypoints; points of two numbers are labelled unless negative."""
    count = lines.wanted.keypoints
    given = (len(values) - 4) / count if count else 0
    allowed = (2, 3) if lines.dimensions is None else (lines.dimensions,)
    if given not in allowed:
        return None
    points = np.array(values[4:], np.float64).reshape(count, int(given))
    if given == 2:
        seen = np.where((points < 0).any(axis=1), 0.0, 2.0)
        points = np.concatenate([points, seen[:, None]], axis=1)
    shape = points if (points[:, 2] > 0).any() else None
    return _Row(class_id, _from_centre(values[:4]), False, shape)


def _count_labels_without_picture(part: Part, used: set[Path], problems: Problems) -> None:
    """Count label files in the part's folders that belong to none of its pictures."""
    with_pictures = {p.absolute().parent for p in part.pictures}
    found: set[Path] = set()
    for folder in part.label_folders:
        found |= {p.absolute() for p in folder.rglob("*.txt")}
    for file in sorted(found - used):
        inside = "labels" in file.parts[:-1] or file.parent in with_pictures
        if inside and not _NO_LABELS.fullmatch(file.name.lower()):
            problems.add(NO_PICTURE, str(file))
