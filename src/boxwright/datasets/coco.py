"""COCO annotation files: boxes in pixels, categories of any numbering, matched by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from boxwright.datasets.records import (
    BAD_CLASS,
    BAD_LINE,
    DUPLICATE_PICTURE,
    MISSING_PICTURE,
    NO_PICTURE,
    UNKNOWN_CLASS,
    UNREADABLE,
    Dataset,
    Item,
    Objects,
    Problems,
    Wanted,
    dataset_from_items,
    item_from_objects,
    model_ids_from_names,
)
from boxwright.datasets.shapes import BOXES_ALONE, Shape, points_from_coco, polygons_from_coco
from boxwright.errors import ImageError, SourceError
from boxwright.images import IMAGE_SUFFIXES, read_image

__all__ = ["dataset_from_coco"]

UNKNOWN_CATEGORY = "classes that the model does not have"
REPEATED_ID = "picture ids given twice, left out"


@dataclass(slots=True)
class _Picture:
    """A picture that the file lists, and what was found of it."""

    name: str
    path: Path
    size: tuple[int, int]
    objects: Objects


def dataset_from_coco(
    path: Path, class_names: Sequence[str], images: Path | None, wanted: Wanted = BOXES_ALONE
) -> Dataset:
    """Open a COCO annotation file (cocodataset.org, "Data format", detection and keypoints).

    Pictures are looked for in the folder `images`; without it beside the file, in `images/` there
    or one folder up, and in a folder that is named like the end of the file's name (`val2017`).

    Args:
        path: The JSON file.
        class_names: Of the model; categories are matched by name, whatever their ids.
        images: Folder of the pictures.
        wanted: What is read besides boxes and classes: masks or keypoints.

    Raises:
        SourceError: The file is no such file, no category is the model's, or no picture is there.
    """
    data = _read(path)
    problems = Problems()
    names = {str(c["id"]): str(c["name"]) for c in data["categories"]}
    model_ids = model_ids_from_names(names, class_names, str(path))
    unknown = [names[k] for k in names if k not in model_ids]
    if unknown:
        problems.add(UNKNOWN_CATEGORY, unknown[0], len(unknown))
    pictures = _listed_pictures(path, data["images"], images, problems)
    for number, annotation in enumerate(data["annotations"]):
        _add_annotation(annotation, f"{path}: annotation {number}", pictures, names, model_ids,
                        problems, wanted)  # fmt: skip
    items: list[Item] = []
    known = {id(p): p for p in pictures.values() if p is not None}
    for picture in known.values():
        items.append(
            item_from_objects(
                picture.name,
                picture.path,
                partial(read_image, picture.path),
                picture.size,
                picture.objects,
                problems,
                f"{path}: {picture.name}",
                wanted,
            )
        )
    return dataset_from_items(path.name, class_names, items, problems, wanted)


def _read(path: Path) -> dict[str, Any]:
    """Read the file and check that its three lists are there."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SourceError(str(path), "there is no such file", "check --data") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SourceError(str(path), f"it cannot be read ({reason})", "check the file") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise SourceError(str(path), f"it is not JSON ({reason})", "mend the file") from None
    advice = "give a COCO annotation file, with images, annotations and categories"
    if isinstance(data, list):
        raise SourceError(str(path), "it is a list, as of detections, and says no truth", advice)
    lists = ("images", "annotations", "categories")
    missing = [k for k in lists if not isinstance(data, dict) or not isinstance(data.get(k), list)]
    if missing:
        raise SourceError(str(path), f"it has no list of {' and of '.join(missing)}", advice)
    for category in data["categories"]:
        if not isinstance(category, dict) or not {"id", "name"} <= category.keys():
            raise SourceError(str(path), "a category has no id or no name", "mend the file")
    result: dict[str, Any] = data
    return result


def _listed_pictures(
    path: Path, entries: list[Any], images: Path | None, problems: Problems
) -> dict[str, _Picture | None]:
    """Find the listed pictures; None stands for one that is left out. Keys are ids as text."""
    finder = _Finder(path, images)
    pictures: dict[str, _Picture | None] = {}
    by_path: dict[Path, _Picture] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: image {number}"
        if not isinstance(entry, dict) or "id" not in entry:
            problems.add(BAD_LINE, where)
            continue
        key, name = str(entry["id"]), str(entry.get("file_name", ""))
        if key in pictures:
            problems.add(REPEATED_ID, f"{where}, id {key}")
            continue
        file = finder.find(name) if name else None
        if file is None:
            pictures[key] = None
            problems.add(MISSING_PICTURE, name or f"{where}, which has no file_name")
        elif file in by_path:
            pictures[key] = by_path[file]
            problems.add(DUPLICATE_PICTURE, name)
        else:
            size = _size(entry, file, problems)
            pictures[key] = None if size is None else _Picture(name, file, size, Objects())
            if (picture := pictures[key]) is not None:
                by_path[file] = picture
    if not by_path:
        found = f"none of its {len(entries)} pictures is there ({finder.places})"
        raise SourceError(str(path), found, "say where they are with --images FOLDER")
    return pictures


def _size(entry: dict[str, Any], file: Path, problems: Problems) -> tuple[int, int] | None:
    """Return (height, width) as the file says; where it says none, the picture is read."""
    height, width = entry.get("height"), entry.get("width")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    try:
        image = read_image(file)
    except ImageError as error:
        problems.add(UNREADABLE, str(error))
        return None
    return image.shape[0], image.shape[1]


class _Finder:
    """Finds pictures by the names that an annotation file gives them."""

    def __init__(self, path: Path, images: Path | None) -> None:
        if images is not None and not images.is_dir():
            raise SourceError(f"--images {images}", "there is no such folder", "check the path")
        here, above, end = path.parent, path.parent.parent, path.stem.split("_")[-1]
        self._deep = [images] if images else [here / "images", above / "images", above / end]
        self._folders = [images] if images else [here, *self._deep, above]
        self._index: dict[str, list[Path]] | None = None

    @property
    def places(self) -> str:
        """Where it looks, in words."""
        return "looked in " + ", ".join(f"{f}/" for f in self._folders)

    def find(self, name: str) -> Path | None:
        """Return the file, or None when there is none, or several and none is meant more."""
        for folder in self._folders:
            if (folder / name).is_file():
                return folder / name
        if self._index is None:
            self._index = {}
            for file in dict.fromkeys(f for d in self._deep for f in _files_below(d)):
                self._index.setdefault(file.name, []).append(file)
        found = self._index.get(Path(name).name, [])
        ending = [f for f in found if f.parts[-len(Path(name).parts) :] == Path(name).parts]
        chosen = ending or found
        return chosen[0] if len(chosen) == 1 else None


def _files_below(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        below = folder.rglob("*")
        yield from sorted(p for p in below if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _add_annotation(
    annotation: Any,
    where: str,
    pictures: dict[str, _Picture | None],
    names: dict[str, str],
    model_ids: dict[str, int],
    problems: Problems,
    wanted: Wanted,
) -> None:
    """Add one object to its picture, or count why not."""
    if not isinstance(annotation, dict):
        problems.add(BAD_LINE, where)
        return
    image_id, category = str(annotation.get("image_id")), str(annotation.get("category_id"))
    box = _box(annotation.get("bbox"))
    if image_id not in pictures:
        problems.add(NO_PICTURE, f"{where}, image_id {image_id}")
    elif box is None:
        problems.add(BAD_LINE, f"{where}, bbox {str(annotation.get('bbox'))[:60]}")
    elif category not in names:
        problems.add(BAD_CLASS, f"{where}, category_id {category}")
    elif category not in model_ids:
        problems.add(UNKNOWN_CLASS, f"{where}, {names[category]}")
    elif (picture := pictures[image_id]) is not None:
        area = annotation.get("area", 0)
        known = float(area) if _is_number(area) and area > 0 else None
        crowd = bool(annotation.get("iscrowd", 0))
        try:
            shape = _shape(annotation, picture, wanted)
        except ValueError as error:
            problems.add(BAD_LINE, f"{where}, {error}")
            return
        picture.objects.add(box, model_ids[category], crowd, known, shape)


def _shape(annotation: dict[str, Any], picture: _Picture, wanted: Wanted) -> Shape:
    """Return what is wanted of an object besides its box.

    Raises:
        ValueError: It is malformed, in words.
    """
    if wanted.task == "segment":
        return polygons_from_coco(annotation.get("segmentation"), picture.size)
    if wanted.task == "pose":
        return points_from_coco(annotation.get("keypoints"), wanted.keypoints)
    return None


def _box(value: Any) -> tuple[float, float, float, float] | None:
    """Return x1, y1, x2, y2 from x, y, width, height; None when these are not four numbers."""
    if not isinstance(value, list) or len(value) != 4 or not all(_is_number(v) for v in value):
        return None
    x, y, width, height = (float(v) for v in value)
    return x, y, x + width, y + height


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
