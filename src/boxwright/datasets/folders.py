"""Pictures to classify: one folder for each class, as Ultralytics and torchvision read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from boxwright.datasets.records import (
    UNKNOWN_CLASS,
    Dataset,
    Item,
    Objects,
    Problems,
    dataset_from_items,
    item_from_objects,
    model_ids_from_names,
)
from boxwright.datasets.shapes import Wanted
from boxwright.errors import RequestError, SourceError
from boxwright.images import IMAGE_SUFFIXES, read_image

__all__ = ["dataset_from_folders"]

IN_ORDER = "folders named by WordNet number, taken in their order for the model's classes"
EMPTY = "class folders without a picture"
_PARTS = ("val", "test", "train")
_WORDNET = re.compile(r"n[0-9]{8}")


def dataset_from_folders(path: Path, class_names: Sequence[str], split: str | None) -> Dataset:
    """Open a folder of class folders, or of the parts `train`, `val`, `test` that hold them.

    Classes are matched by name. ImageNet's folders have WordNet numbers for names: as many of them
    as the model has classes are taken in their order, which is that of ImageNet's classes.

    Args:
        path: The folder.
        class_names: Of the model.
        split: Part of it; `val` by default where there are parts, else `test`.

    Raises:
        RequestError: There is no such part.
        SourceError: It is no such folder, or no class of it is the model's.
    """
    if not path.is_dir():
        found = "it is a file" if path.exists() else "there is no such folder"
        raise SourceError(
            f"--data {path}", found, "give a folder of one folder of pictures for each class"
        )
    root, name = _part(path, split)
    folders = sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: p.name)
    pictures = {f: _pictures(f) for f in folders}
    if not any(pictures.values()):
        raise SourceError(
            f"--data {path}",
            "it holds no folders of pictures",
            "give a folder of one folder of pictures for each class, or --split",
        )
    problems = Problems()
    for folder in folders:
        if not pictures[folder]:
            problems.add(EMPTY, str(folder))
    ids = _class_ids([f.name for f in folders], class_names, path, problems)
    items: list[Item] = []
    for folder in folders:
        if folder.name not in ids:
            first = pictures[folder][0] if pictures[folder] else folder
            problems.add(UNKNOWN_CLASS, str(first), len(pictures[folder]))
            continue
        items += [_item(p, root, ids[folder.name], problems) for p in pictures[folder]]
    if not items:
        raise SourceError(
            f"--data {path}", "the folders of the model's classes hold no picture", "fill them"
        )
    return dataset_from_items(name, class_names, items, problems, Wanted("classify"))


def _part(path: Path, split: str | None) -> tuple[Path, str]:
    """Return the folder that holds the class folders, and a name for it."""
    own = path.resolve().name
    parts = [p for p in _PARTS if (path / p).is_dir()]
    if split is not None:
        if not (path / split).is_dir():
            known = ", ".join(parts) or "no parts"
            advice = "choose one of them with --split" if parts else "drop --split"
            raise RequestError(f"--split {split}", f"{path} holds {known}", advice)
        return path / split, f"{own}:{split}"
    measured = [p for p in parts if p != "train"]
    if measured:
        return path / measured[0], f"{own}:{measured[0]}"
    if parts:
        raise RequestError(
            f"--data {path}", "it holds the part train alone", "say --split train if it is meant"
        )
    return path, own


def _pictures(folder: Path) -> list[Path]:
    below = folder.rglob("*")
    return sorted(p for p in below if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _class_ids(
    names: Sequence[str], class_names: Sequence[str], path: Path, problems: Problems
) -> dict[str, int]:
    """Return the model's class id of each folder that means one of its classes."""
    try:
        return model_ids_from_names({n: n for n in names}, class_names, str(path))
    except SourceError:
        numbered = all(_WORDNET.fullmatch(n) for n in names)
        if not numbered or len(names) != len(class_names):
            raise
    problems.add(IN_ORDER, str(path), len(names))
    return {name: index for index, name in enumerate(names)}


def _item(picture: Path, root: Path, class_id: int, problems: Problems) -> Item:
    objects = Objects()
    objects.add((0.0, 0.0, 1.0, 1.0), class_id)  # the whole picture
    return item_from_objects(
        picture.relative_to(root).as_posix(),
        picture.absolute(),
        partial(read_image, picture),
        None,
        objects,
        problems,
        str(picture),
        Wanted("classify"),
    )
