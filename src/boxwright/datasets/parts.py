"""Which pictures a part of a YOLO data set holds: YAML files, folders, lists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.errors import RequestError, SourceError
from boxwright.images import IMAGE_SUFFIXES

__all__ = ["Part", "part_from_folder", "part_from_list", "part_from_yaml"]

_YAML_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
_YAML_PARTS = ("train", "val", "test")
# `val`, and what tools write for it: valid (Roboflow), validation, val2017 (COCO).
_PART = re.compile(r"(train|val|test)(?:ing|id|idation)?[-_]?[0-9]*")


@dataclass(frozen=True, slots=True)
class Part:
    """What to look at.

    Attributes:
        name: For people.
        pictures: Files, in no order; some may be missing.
        label_folders: Where labels without a picture are looked for.
        names: Of the classes, by id; None when the data names none.
        keypoint_shape: (keypoints, 2 or 3 numbers each) where a YAML file says `kpt_shape`.
    """

    name: str
    pictures: list[Path]
    label_folders: list[Path]
    names: dict[int, str] | None
    keypoint_shape: tuple[int, int] | None = None


def part_from_yaml(path: Path, split: str | None) -> Part:
    """Read a data set's YAML file (keys path, train, val, test, names); nothing is downloaded.

    Relative places count from `path:`, which itself counts from the YAML file or the working
    folder; or else from the YAML file. Roboflow's `../train/images` is understood as beside it.

    Raises:
        RequestError: There is no such part.
        SourceError: The file or a place that it names cannot be read.
    """
    data = _read_yaml(path)
    named = [k for k in _YAML_PARTS if data.get(k)]
    wanted = split or "val"
    key = wanted if wanted in data else _kind(wanted)
    if not data.get(key):
        known = ", ".join(named) or "none"
        raise RequestError(
            f"--split {wanted}", f"{path} names {known}", "choose one of them with --split"
        )
    entries = data[key] if isinstance(data[key], list) else [data[key]]
    pictures: list[Path] = []
    folders: list[Path] = []
    for entry in entries:
        place = _place(str(entry), path, data.get("path"))
        if place.is_dir():
            pictures += _pictures_below(place)
            folders += [place, _mirrored(place)]
        else:
            pictures += _listed(place, path.parent)
    names = _names_from_yaml(data, path)
    return Part(f"{path.name}:{key}", pictures, folders, names, _keypoint_shape(data, path))


def part_from_folder(folder: Path, split: str | None) -> Part:
    """Read a folder: by its data.yaml when that names parts, otherwise as it lies there.

    Raises:
        RequestError: There is no such part, or there are several and none is chosen.
        SourceError: Something in it cannot be read.
    """
    description = next((folder / n for n in _YAML_NAMES if (folder / n).is_file()), None)
    if description is not None and any(_read_yaml(description).get(k) for k in _YAML_PARTS):
        return part_from_yaml(description, split)
    chosen, name = folder, folder.resolve().name
    parts = _parts_of(folder)
    if split is not None:
        chosen = _choose(folder, parts, split)
        name = f"{name}:{chosen.name if chosen.name != 'images' else chosen.parent.name}"
    elif len({_kind(n) for n in parts if _PART.fullmatch(n.lower())}) > 1:
        found = f"it holds the parts {', '.join(sorted(parts))}"
        raise RequestError(f"--data {folder}", found, "choose one with --split")
    folders = [chosen, _mirrored(chosen)]
    return Part(name, _pictures_below(chosen), folders, _names_near(folder))


def part_from_list(path: Path, split: str | None) -> Part:
    """Read a text file with a picture's path on each line.

    Raises:
        RequestError: A part is asked for.
        SourceError: It cannot be read.
    """
    if split is not None:
        raise RequestError(f"--split {split}", f"{path} is a list, without parts", "drop --split")
    return Part(path.name, _listed(path, path.parent), [], _names_near(path.parent))


def _kind(name: str) -> str:
    """Return train, val or test for a part's name, or the name itself.

    >>> _kind("valid"), _kind("val2017"), _kind("night")
    ('val', 'val', 'night')
    """
    match = _PART.fullmatch(name.lower())
    return match.group(1) if match else name


def _parts_of(folder: Path) -> dict[str, Path]:
    """Return the parts of a folder: the folders in `images/`, and train/, val/, test/."""
    inner = folder / "images"
    parts = {p.name: p for p in sorted(inner.iterdir()) if p.is_dir()} if inner.is_dir() else {}
    for place in sorted(folder.iterdir()):
        if place.is_dir() and _PART.fullmatch(place.name.lower()):
            parts.setdefault(place.name, place)
    return parts


def _choose(folder: Path, parts: dict[str, Path], split: str) -> Path:
    """Return the folder of a part: the one of that name, or the only one that means it."""
    alike = [p for n, p in parts.items() if n == split] or [
        p for n, p in parts.items() if _kind(n) == _kind(split)
    ]
    if len(alike) == 1:
        return alike[0]
    found = f"{folder} holds {', '.join(sorted(parts)) or 'no parts'}"
    raise RequestError(f"--split {split}", found, "name one of them" if parts else "drop --split")


def _mirrored(folder: Path) -> Path:
    """Return the folder of the labels: `labels` in the place of the last `images`."""
    parts = list(folder.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            return Path(*parts)
    return folder


def _pictures_below(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]


def _listed(file: Path, fallback: Path) -> list[Path]:
    """Return the pictures of a list; relative ones count from the list, or from `fallback`."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError):
        raise SourceError(str(file), "it cannot be read as a list of pictures", "mend it") from None
    found = []
    for line in (text.strip() for text in lines):
        if not line:
            continue
        beside = file.parent / line
        found.append(beside if beside.is_file() else fallback / line)
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())[:100]
        raise SourceError(str(path), f"it cannot be read as YAML ({reason})", "mend it") from None
    if not isinstance(data, dict):
        raise SourceError(str(path), "it is no data set's YAML", "give path, train, val and names")
    return data


def _place(entry: str, path: Path, root: object) -> Path:
    """Return the folder or list that an entry of a YAML file means."""
    bases = [path.parent / str(root), Path(str(root))] if root else []
    bases.append(path.parent)
    for name in (entry, entry.removeprefix("../")):
        for base in bases:
            if (base / name).exists():
                return base / name
    raise SourceError(
        str(path),
        f"it names {entry}, which is not there (looked in {', '.join(f'{b}/' for b in bases)})",
        "correct path: in it",
    )


def _names_from_yaml(data: dict[str, Any], path: Path) -> dict[int, str] | None:
    names = data.get("names")
    if names is None:
        return None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(k, int) for k in names) or not names:
        raise SourceError(str(path), "its names are no list and no mapping by number", "mend it")
    count = data.get("nc")
    if isinstance(count, int) and count != len(names):
        raise SourceError(str(path), f"nc is {count}, but it names {len(names)}", "mend it")
    return {int(k): str(v) for k, v in names.items()}


def _keypoint_shape(data: dict[str, Any], path: Path) -> tuple[int, int] | None:
    value = data.get("kpt_shape")
    if value is None:
        return None
    whole = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
    if not whole or value[0] < 1 or value[1] not in (2, 3):
        found = f"kpt_shape is {str(value)[:40]}"
        raise SourceError(str(path), found, "write e.g. kpt_shape: [17, 3], the second 2 or 3")
    return value[0], value[1]


def _names_near(folder: Path) -> dict[int, str] | None:
    """Return class names from a data.yaml or classes.txt in the folder or the one above it."""
    for place in (folder, folder / "labels", folder.absolute().parent):
        for name in _YAML_NAMES:
            if (place / name).is_file():
                return _names_from_yaml(_read_yaml(place / name), place / name)
        if (place / "classes.txt").is_file():
            text = (place / "classes.txt").read_text(encoding="utf-8-sig", errors="replace")
            names = [line.strip() for line in text.splitlines() if line.strip()]
            return dict(enumerate(names)) or None
    return None
