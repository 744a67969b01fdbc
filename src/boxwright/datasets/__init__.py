"""Data sets: pictures with the boxes that are truly there, to measure accuracy on.

Nothing in a data set is believed: whatever is wrong with it is counted, with the first place where
it was met, and said; nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from boxwright.datasets.records import Dataset, Item, Truth
from boxwright.datasets.shapes import BOXES_ALONE, Wanted
from boxwright.errors import RequestError
from boxwright.types import ModelSpec

__all__ = ["SAMPLE", "Dataset", "Item", "Truth", "Wanted", "open_dataset", "wanted_of"]

SAMPLE = "sample"
_DEFAULT_PAGES = 200


def open_dataset(
    text: str,
    *,
    class_names: Sequence[str],
    split: str | None = None,
    images: Path | None = None,
    pages: int | None = None,
    wanted: Wanted = BOXES_ALONE,
    count: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Open labelled pictures; pictures of files are read later, one by one.

    Args:
        text: A COCO JSON file; a data set's YAML file of Ultralytics, a folder with pictures and
            YOLO label files, or a text file that lists pictures; `sample` for generated pages; for
            classifiers a folder of one folder a class.
        class_names: Of the model. The data's own names are matched with them without regard to
            case and outer blanks; data without names are taken to count the classes as the model
            does.
        split: Which part of a YAML or folder; `val` by default where a YAML names parts.
        images: Folder of the pictures of a COCO JSON, when they lie elsewhere.
        pages: How many pages `sample` generates; 200 by default.
        wanted: What the model's task needs of the labels besides boxes, see `wanted_of`.
        count: Told how many pages are generated, and of how many.

    Raises:
        RequestError: An option does not fit the kind of data, or there is no such split.
        SourceError: There is no such data set, it cannot be read, or no class of it is the model's.

    >>> open_dataset("sample", class_names=["Text_Block"], pages=1).items[0].name
    'page_020000.png'
    """
    _refuse_misplaced(text, split, images, pages)
    path = Path(text)
    is_json = path.suffix.lower() == ".json" and not path.is_dir()
    if wanted.task == "classify" and (is_json or text == SAMPLE):
        raise RequestError(
            f"--data {text}",
            "it has no class of a whole picture, and the model is a classifier",
            "give a folder of one folder of pictures for each class",
        )
    if wanted.task == "obb" and (is_json or text == SAMPLE):
        raise RequestError(
            f"--data {text}",
            "it has no rotated boxes",
            "give a data.yaml or folder whose label lines are a class and four corners",
        )
    if wanted.task == "classify":
        from boxwright.datasets.folders import dataset_from_folders

        return dataset_from_folders(path, class_names, split)
    if text == SAMPLE:
        from boxwright.datasets.generated import dataset_from_pages

        return dataset_from_pages(pages or _DEFAULT_PAGES, class_names, count)
    if is_json:
        from boxwright.datasets.coco import dataset_from_coco

        return dataset_from_coco(path, class_names, images, wanted)
    from boxwright.datasets.yolo import dataset_from_yolo

    return dataset_from_yolo(path, class_names, split, wanted)


def wanted_of(spec: ModelSpec) -> Wanted:
    """Return what a model's task needs of labels."""
    return Wanted(spec.task, spec.layout.keypoint_shape[0] if spec.task == "pose" else 0)


def _refuse_misplaced(text: str, split: str | None, images: Path | None, pages: int | None) -> None:
    """Refuse options that say nothing about this kind of data."""
    is_json = text.lower().endswith(".json") and not Path(text).is_dir()
    for option, value, fits, kind in (
        ("--split", split, text != SAMPLE and not is_json, "a YAML file or a folder"),
        ("--images", images, is_json, "a COCO JSON file"),
        ("--pages", pages, text == SAMPLE, "--data sample"),
    ):
        if value is not None and not fits:
            raise RequestError(f"{option} {value}", f"it belongs to {kind}", f"drop {option}")
    if pages is not None and pages < 1:
        raise RequestError(f"--pages {pages}", "it is not a positive number", "use e.g. 200")
