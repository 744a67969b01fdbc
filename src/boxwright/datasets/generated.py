"""The embedded sample's pages as a data set: labelled pictures without a download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np

from boxwright.datasets.records import (
    Dataset,
    Item,
    Objects,
    Problems,
    dataset_from_items,
    item_from_objects,
    model_ids_from_names,
)
from boxwright.sample.pages import Page, generate_page
from boxwright.sample.pages_on_disk import CLASS_NAME
from boxwright.types import Image

__all__ = ["FIRST_SEED", "dataset_from_pages"]

FIRST_SEED = 20_000  # the embedded detector was never trained on these
_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def dataset_from_pages(
    pages: int,
    class_names: Sequence[str],
    count: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Generate pages and hold them in memory as PNG, about 0.7 MB each.

    Args:
        pages: How many, from seed 20000 on.
        class_names: Of the model.
        count: Told how many are done, and of how many.

    Raises:
        SourceError: The model knows no `text_block`.
    """
    class_id = model_ids_from_names({1: CLASS_NAME}, class_names, "sample")[1]
    problems = Problems()
    items = []
    for index in range(pages):
        items.append(_item(FIRST_SEED + index, class_id, problems))
        count(index + 1, pages)
    last = FIRST_SEED + pages - 1
    return dataset_from_items(f"sample, seeds {FIRST_SEED} to {last}", class_names, items, problems)


def _item(seed: int, class_id: int, problems: Problems) -> Item:
    page: Page = generate_page(seed)
    objects = Objects()
    for block in page.blocks:
        objects.add(block.xyxy, class_id)
    done, data = cv2.imencode(".png", page.image, _FAST)
    assert done, "a page is a picture that PNG can hold"
    height, width = page.image.shape[:2]
    name = f"page_{seed:06d}.png"
    read = partial(_decode, data.tobytes())
    return item_from_objects(name, None, read, (height, width), objects, problems, name)


def _decode(png: bytes) -> Image:
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), np.uint8)
