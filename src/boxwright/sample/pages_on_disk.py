"""Generated pages as files, with their truth as COCO JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2

from boxwright.sample.pages import Page, generate_page

__all__ = [
    "CLASS_NAME",
    "LabelledPage",
    "coco_bytes",
    "coco_from_pages",
    "png_bytes",
    "sample_pages",
]

CLASS_NAME = "text_block"


@dataclass(frozen=True, slots=True)
class LabelledPage:
    """A page and the name of its file."""

    name: str
    seed: int
    page: Page


def sample_pages(seeds: Iterable[int], *, cjk: bool = False) -> list[LabelledPage]:
    """Generate the pages of some seeds."""
    return [LabelledPage(f"page_{s:06d}.png", s, generate_page(s, cjk=cjk)) for s in seeds]


def png_bytes(page: Page) -> bytes:
    """Return a page as a PNG file; its pixels are exact."""
    ok, data = cv2.imencode(".png", page.image)
    assert ok, "a page is a picture that PNG can hold"
    return bytes(data)


def coco_from_pages(pages: Iterable[LabelledPage]) -> dict[str, Any]:
    """Return the truth of pages as a COCO data set.

    Boxes are [x, y, width, height] in pixels; besides COCO's own keys each annotation says its
    `letter_height_px`, `kind` and `script`.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, labelled in enumerate(pages, 1):
        height, width = labelled.page.image.shape[:2]
        images.append({"id": number, "file_name": labelled.name, "width": width, "height": height})
        for block in labelled.page.blocks:
            x1, y1, x2, y2 = block.xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "letter_height_px": round(block.letter_height_px, 2),
                    "kind": block.kind,
                    "script": block.script,
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": CLASS_NAME}],
    }


def coco_bytes(pages: Iterable[LabelledPage]) -> bytes:
    """Return `coco_from_pages` as a file's bytes."""
    return (json.dumps(coco_from_pages(pages), indent=1) + "\n").encode()
