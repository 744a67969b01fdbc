"""The records of a data set, and what every kind of it does in the same way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from boxwright.datasets.shapes import (
    BOXES_ALONE,
    Shape,
    Wanted,
    areas_of_masks,
    key_of_shape,
    keypoints_from_shapes,
    masks_from_shapes,
    rotated_from_shapes,
)
from boxwright.errors import SourceError
from boxwright.types import FloatArray, Image, IntArray

__all__ = [
    "BAD_CLASS",
    "BAD_LINE",
    "CLIPPED",
    "DUPLICATE",
    "DUPLICATE_PICTURE",
    "FLAT",
    "MISSING_PICTURE",
    "NO_LABEL_FILE",
    "NO_OBJECTS",
    "NO_PICTURE",
    "NO_SHAPE",
    "POLYGON",
    "UNKNOWN_CLASS",
    "UNREADABLE",
    "WRONG_SIZE",
    "Dataset",
    "Item",
    "Objects",
    "Problems",
    "Truth",
    "Wanted",
    "dataset_from_items",
    "item_from_objects",
    "model_ids_from_names",
]

# What can be wrong, in the words in which it is reported.
NO_OBJECTS = "pictures without objects"
NO_LABEL_FILE = "pictures without a label file, taken to show nothing"
NO_PICTURE = "labels without a picture, left out"
MISSING_PICTURE = "pictures that are not there, left out"
UNREADABLE = "pictures that cannot be read, left out"
WRONG_SIZE = "pictures of another size than the labels say, left out"
DUPLICATE_PICTURE = "pictures named twice, counted once"
CLIPPED = "boxes outside the picture, clipped"
FLAT = "boxes without area, left out"
BAD_CLASS = "class ids out of range, left out"
BAD_LINE = "labels that cannot be read, left out"
POLYGON = "polygons, of which the bounding box is taken"
NO_SHAPE: Mapping[str, str] = MappingProxyType(
    {
        "segment": "objects without a mask: where they are, masks are neither right nor wrong",
        "pose": "objects without a labelled keypoint: where they are, poses are neither right nor "
        "wrong",
    }
)
DUPLICATE = "objects given twice, counted once"
UNKNOWN_CLASS = "objects of classes that the model does not have, left out"

_BODY = 0.53  # of a person's box that the person fills
_LEAST_OUTSIDE = 1e-3  # of a side, or a whole pixel in COCO files: rounding is no mistake

DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Key = TypeVar("Key", int, str)


@dataclass(slots=True)
class Problems:
    """Counts what is wrong, and remembers where each was first met."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Count a problem; `where` is a file, with a line or the like."""
        if count:
            self.counts[what] = self.counts.get(what, 0) + count
            self.first.setdefault(what, where)


@dataclass(slots=True)
class Objects:
    """The labelled objects of one picture while it is read: one entry per object in each list."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # xyxy
    class_ids: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float | None] = field(default_factory=list)  # None: that of the box
    shapes: list[Shape] = field(default_factory=list)

    def add(
        self,
        box: tuple[float, float, float, float],
        class_id: int,
        crowd: bool = False,
        area: float | None = None,
        shape: Shape = None,
    ) -> None:
        self.boxes.append(box)
        self.class_ids.append(class_id)
        self.crowd.append(crowd)
        self.areas.append(area)
        self.shapes.append(shape)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What is truly in a picture.

    Attributes:
        xyxy: (N, 4) float32: x1, y1, x2, y2 in pixels, inside the picture.
        class_ids: (N,) int64, as the model counts.
        crowd: (N,) bool: regions with many objects; detections in them are neither right nor wrong.
        areas: (N,) float64 square pixels: of the mask where the labels say it, else of the box.
        masks: Of data opened for `segment`: COCO's compressed RLE of each object, None where the
            labels have only its box.
        keypoints: Of data opened for `pose`: (N, K, 3) float32 x, y in pixels and 0 for points that
            are not labelled, 1 for hidden and 2 for visible ones.
        rotated: Of data opened for `obb`: (N, 5) float32 centre x, centre y, width, height, angle.
        shape_areas: (N,) float64 square pixels by which masks, poses and rotated boxes are measured
            where the labels say no area: of the mask, 0.53 of the box (as Ultralytics 8.4.190 takes
            it for a person), of the rotated box.
    """

    xyxy: FloatArray
    class_ids: IntArray
    crowd: BoolArray
    areas: DoubleArray
    masks: tuple[dict[str, Any] | None, ...] | None = None
    keypoints: FloatArray | None = None
    rotated: FloatArray | None = None
    shape_areas: DoubleArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A picture and its labels.

    Attributes:
        name: Within the data set, with forward slashes; no two are equal.
        path: The file; None when the picture is generated.
        read: Returns the picture, (H, W, 3) uint8 BGR; raises `ImageError`.
        size: (height, width) in pixels where the labels say it; otherwise `boxes` are fractions.
        boxes: (N, 4) float64 xyxy inside the picture, in pixels or fractions of its sides.
        class_ids: (N,) int64, as the model counts.
        crowd: (N,) bool.
        areas: (N,) float64, in the unit of `boxes`, squared.
        wanted: What was read besides.
        shapes: Of each object, in the unit of `boxes`.
        area_given: (N,) bool: the labels say the area.
    """

    name: str
    path: Path | None
    read: Callable[[], Image]
    size: tuple[int, int] | None
    boxes: DoubleArray
    class_ids: IntArray
    crowd: BoolArray
    areas: DoubleArray
    wanted: Wanted = BOXES_ALONE
    shapes: tuple[Shape, ...] = ()
    area_given: tuple[bool, ...] = ()

    def truth(self, size: tuple[int, int]) -> Truth:
        """Return the labels in pixels of the picture, whose (height, width) is `size`."""
        height, width = size if self.size is None else (1, 1)
        sides = np.array([width, height, width, height], np.float64)
        truth = Truth(
            xyxy=(self.boxes * sides).astype(np.float32),
            class_ids=self.class_ids,
            crowd=self.crowd,
            areas=self.areas * (height * width),
        )
        return self._with_shapes(truth, size, (float(width), float(height)))

    def _with_shapes(
        self, truth: Truth, size: tuple[int, int], scale: tuple[float, float]
    ) -> Truth:
        """Add what the task wants, and the areas that it is measured by."""
        task = self.wanted.task
        if task == "segment":
            masks = masks_from_shapes(self.shapes, size, scale)
            own = areas_of_masks(masks)
            truth = dataclasses.replace(truth, masks=masks)
        elif task == "pose":
            points = keypoints_from_shapes(self.shapes, scale, self.wanted.keypoints)
            own = truth.areas * _BODY
            truth = dataclasses.replace(truth, keypoints=points)
        elif task == "obb":
            rotated = rotated_from_shapes(self.shapes, scale)
            own = rotated[:, 2:4].astype(np.float64).prod(axis=1)
            truth = dataclasses.replace(truth, rotated=rotated)
        else:
            return truth
        areas = np.where(np.array(self.area_given, bool), truth.areas, own)
        return dataclasses.replace(truth, shape_areas=areas)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled pictures, sorted by name.

    Attributes:
        name: For people; the file or folder, and the split.
        class_names: The model's, which the items' class ids count.
        items: The pictures.
        fingerprint: SHA-256 of the names and labels of the items; the order of files, their place
            and the pictures' bytes do not enter it.
        problems: How often something was wrong, by what.
        first: Where it was first met, by what.
        wanted: What was read of the labels besides boxes and classes.
    """

    name: str
    class_names: tuple[str, ...]
    items: tuple[Item, ...]
    fingerprint: str
    problems: Mapping[str, int]
    first: Mapping[str, str]
    wanted: Wanted = BOXES_ALONE

    @property
    def has_shapes(self) -> bool:
        """Whether any object has what the task adds: a mask, a keypoint, or corners."""
        return any(s is not None for i in self.items for s in i.shapes)

    @property
    def objects(self) -> int:
        """How many objects the labels hold, without crowd regions."""
        return sum(int((~i.crowd).sum()) for i in self.items)

    def limited(self, count: int) -> Dataset:
        """Return at most `count` of the pictures, evenly spaced; the problems stay those of all."""
        if len(self.items) <= count:
            return self
        step = len(self.items) / count
        chosen = tuple(self.items[int(i * step)] for i in range(count))
        return dataclasses.replace(
            self,
            name=f"{self.name}, {count} of {len(self.items)}",
            items=chosen,
            fingerprint=_fingerprint(chosen, self.class_names),
        )


def dataset_from_items(
    name: str,
    class_names: Sequence[str],
    items: Iterable[Item],
    problems: Problems,
    wanted: Wanted = BOXES_ALONE,
) -> Dataset:
    """Sort the pictures by name, and sum up."""
    ordered = tuple(sorted(items, key=lambda i: i.name))
    empty = [i for i in ordered if not len(i.boxes)]
    if empty:
        problems.add(NO_OBJECTS, empty[0].name, len(empty))
    if wanted.task in NO_SHAPE and any(s is not None for i in ordered for s in i.shapes):
        for item in ordered:
            bare = [s is None and not c for s, c in zip(item.shapes, item.crowd, strict=True)]
            problems.add(NO_SHAPE[wanted.task], item.name, sum(bare))
    return Dataset(
        name=name,
        class_names=tuple(class_names),
        items=ordered,
        fingerprint=_fingerprint(ordered, class_names),
        problems=MappingProxyType(dict(sorted(problems.counts.items()))),
        first=MappingProxyType(problems.first),
        wanted=wanted,
    )


def _fingerprint(items: Iterable[Item], class_names: Sequence[str]) -> str:
    """Return SHA-256 over names and labels; classes enter by name, objects in no order."""
    digest = hashlib.sha256()
    names = [plain_name(n) for n in class_names]
    for item in items:
        shapes = item.shapes or (None,) * len(item.boxes)
        columns = (item.boxes, item.class_ids, item.crowd, item.areas, shapes)
        rows = sorted(
            (
                names[c],
                bool(k),
                f"{a:.4g}",
                *(f"{v:.5g}" for v in box),
                *(() if s is None else (key_of_shape(s),)),
            )
            for box, c, k, a, s in zip(*columns, strict=True)
        )
        digest.update(json.dumps([item.name, rows]).encode() + b"\n")
    return digest.hexdigest()


def item_from_objects(
    name: str,
    path: Path | None,
    read: Callable[[], Image],
    size: tuple[int, int] | None,
    objects: Objects,
    problems: Problems,
    where: str,
    wanted: Wanted = BOXES_ALONE,
) -> Item:
    """Clip boxes to the picture, drop those without area and repetitions, and count all three.

    Args:
        name, path, read, size: As in `Item`.
        objects: In pixels where there is a size, otherwise in fractions.
        problems: Told of what is found.
        where: The file of the labels.
        wanted: What was read besides. Rotated boxes may reach out of the picture: only the upright
            ones around them are clipped, and that is no problem.
    """
    height, width = size or (1, 1)
    boxes = np.array(objects.boxes, np.float64).reshape(-1, 4)
    limit = np.array([width, height, width, height], np.float64)
    clipped = np.clip(boxes, 0.0, limit)
    slack = 1.0 if size else _LEAST_OUTSIDE
    outside = (np.abs(clipped - boxes) > slack).any(axis=1)
    sides = clipped[:, 2:] - clipped[:, :2]
    flat = ~(sides > 0).all(axis=1)
    if wanted.task != "obb":
        problems.add(CLIPPED, where, int((outside & ~flat).sum()))
    problems.add(FLAT, where, int(flat.sum()))
    keep: list[int] = []
    seen: set[tuple[object, ...]] = set()
    for i in np.flatnonzero(~flat).tolist():
        shape = key_of_shape(objects.shapes[i])
        key = (objects.class_ids[i], objects.crowd[i], *objects.boxes[i], shape)
        if key in seen:
            problems.add(DUPLICATE, where)
            continue
        seen.add(key)
        keep.append(i)
    box_areas = sides.prod(axis=1)
    areas = [box_areas[i] if (a := objects.areas[i]) is None else a for i in keep]
    return Item(
        name=name,
        path=path,
        read=read,
        size=size,
        boxes=clipped[keep],
        class_ids=np.array([objects.class_ids[i] for i in keep], np.int64),
        crowd=np.array([objects.crowd[i] for i in keep], np.bool_),
        areas=np.array(areas, np.float64),
        wanted=wanted,
        shapes=tuple(objects.shapes[i] for i in keep),
        area_given=tuple(objects.areas[i] is not None for i in keep),
    )


def plain_name(name: str) -> str:
    """Return a class name as names are compared: without regard to case and outer blanks."""
    return str(name).strip().lower()


def model_ids_from_names(
    names: Mapping[Key, str], class_names: Sequence[str], what: str
) -> dict[Key, int]:
    """Return the model's class id of each class of the data that the model has, by name.

    Args:
        names: Of the data's classes, by id.
        class_names: Of the model.
        what: The data set, for errors.

    Raises:
        SourceError: Not one name is the model's.

    >>> model_ids_from_names({1: "Person ", 3: "car", 4: "sled"}, ["person", "car"], "data")
    {1: 0, 3: 1}
    """
    known: dict[str, int] = {}
    for class_id, name in enumerate(class_names):
        known.setdefault(plain_name(name), class_id)
    found = {k: known[plain_name(n)] for k, n in names.items() if plain_name(n) in known}
    if not found:
        raise SourceError(
            what,
            f"none of its classes ({_some(names.values())}) is one of the model's "
            f"({_some(class_names)})",
            "check that data and model belong together, or name the model's classes with --labels",
        )
    return found


def _some(names: Iterable[str]) -> str:
    """Return the first few names in words."""
    listed = [str(n) for n in names]
    more = f", and {len(listed) - 4} more" if len(listed) > 4 else ""
    return ", ".join(listed[:4]) + more
